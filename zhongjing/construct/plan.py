"""What a construction will take, before anything is written: records, characters, tokens, money, hours.

The beginning of the source is read, and some of its records go through the steps here. The rest is taken to
be like them. Steps that ask a language model ask nothing here: what they would send is counted, of the
records as they are read (:mod:`zhongjing.construct.llm.estimate`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from zhongjing.config.sources import Source
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.estimate import Estimator
from zhongjing.construct.llm.ledger import Ledger
from zhongjing.construct.llm.model_step import ModelStep
from zhongjing.construct.manifest import lineage_has_passed
from zhongjing.construct.parts import Making
from zhongjing.construct.runner import Feed, Reading
from zhongjing.construct.step import Step, admit
from zhongjing.data.records import Record as Neutral
from zhongjing.data.records import Rejected, record_texts
from zhongjing.errors import StorageError, ZhongjingError
from zhongjing.storage.manifest import Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

READ_SECONDS = 20.0
TRIED_SECONDS = 5.0
_TRIED = 500  # records that go through the steps at most


class AskingPlan(Record):
    """What a step that asks a language model will take."""

    step: str
    model: str
    records: int = Field(description="that it asks for")
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = Field(description="None: no prices are known")
    currency: str | None
    hours: float


class Paid(Record):
    """What was paid for the output already; the answers are stored, and not asked for again."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    currency: str | None


class ConstructionPlan(Record):
    """Figures of a construction; ``exact``: the whole source was read for them."""

    objects: int
    bytes: int
    exact: bool
    records: int
    unreadable: int
    characters: int
    characters_per_second: float | None = Field(description="of one process; None: no record to try")
    processes: int
    asking: list[AskingPlan] = Field(default_factory=list)
    paid: Paid | None = Field(default=None, description="by earlier runs; the figures of asking are of all")
    refused: str | None = Field(default=None, description="why a step would not let the source through")
    hours: float | None


def plan(
    store: ObjectStore | None,
    source: Source,
    steps: Sequence[Step],
    *,
    processes: int,
    feed: Feed | None = None,
) -> ConstructionPlan:
    """Looks ahead.

    Args:
        store: needed for s3://.
        source: as for :func:`~zhongjing.construct.runner.construct`.
        steps: in their order.
        processes: that the work will be shared by.
        feed: as for :func:`~zhongjing.construct.runner.construct`.

    Raises:
        MissingInputError: the source does not exist.
        DataError: it cannot be read, or a step failed.
    """
    asking = [Estimator(step) for step in steps if isinstance(step, ModelStep)]
    own = [step for step in steps if not isinstance(step, ModelStep)]
    feed = feed or Feed()
    frozen = feed.freeze(store, source)
    refused = None
    try:
        admit(steps, partial(lineage_has_passed, *feed.lineage(store, frozen.objects)), source.place)
    except ZhongjingError as error:
        refused = f"{error.message}; {error.remedy}" if error.remedy else error.message
    reading = Reading(store, source, frozen, feed)
    records = unreadable = characters = 0
    tried: list[Neutral] = []
    end = time.monotonic() + READ_SECONDS
    exact = True
    with closing(reading.entries()) as entries:
        for entry in entries:
            if isinstance(entry, Rejected):
                unreadable += 1
            else:
                records += 1
                characters += _characters(entry)
                for estimator in asking:
                    estimator.add(entry)
                if len(tried) < _TRIED:
                    tried.append(entry)
            if time.monotonic() > end:
                exact = False
                break
    scale = 1.0 if exact else reading.size / max(1, reading.position)
    speed = _speed(tried, lambda: Making(own, source, [item.uri for item in frozen.objects]))
    total = round(characters * scale)
    asked = [_asking(estimator, scale) for estimator in asking]
    here = None if speed is None else total / speed / processes / 3600
    return ConstructionPlan(
        objects=len(frozen.objects),
        bytes=reading.size,
        exact=exact,
        records=round(records * scale),
        unreadable=round(unreadable * scale),
        characters=total,
        characters_per_second=speed,
        processes=processes,
        asking=asked,
        paid=None if store is None or not asking else _paid(store, asking[0].step.desk),
        refused=refused,
        hours=None if here is None else here + sum(each.hours for each in asked),
    )


def _paid(store: ObjectStore, desk: Desk) -> Paid | None:
    try:
        total = Ledger(store, desk.ledger).account(desk.account).total
    except StorageError:  # there is no such bucket yet, or it may not be read
        return None
    if not total.requests:
        return None
    prices = desk.limits.prices
    return Paid(
        requests=total.requests,
        prompt_tokens=total.used.prompt,
        completion_tokens=total.used.completion,
        cost=None if prices is None else prices.of(total.used),
        currency=None if prices is None else prices.currency,
    )


def _asking(estimator: Estimator, scale: float) -> AskingPlan:
    found = estimator.result(scale)
    return AskingPlan(
        step=estimator.step.name,
        model=estimator.step.desk.server.model,
        records=found.asked,
        requests=found.requests,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        cost=found.money,
        currency=found.currency,
        hours=found.hours,
    )


def _characters(record: Neutral) -> int:
    return sum(map(len, record_texts(record)))


def _speed(tried: Sequence[Neutral], new: Callable[[], Making]) -> float | None:
    """Characters a second of one process."""
    if not tried:
        return None
    new().add(tried[0])  # what a step loads, it loads once
    making = new()
    began = time.monotonic()
    done = 0
    # Again from the first where there are few: a clock that ticked once or twice tells nothing.
    for count, record in enumerate(itertools.cycle(tried), start=1):
        making.add(record)
        done += _characters(record)
        spent = time.monotonic() - began
        if spent > TRIED_SECONDS or (count >= len(tried) and spent > 0.05):
            break
    return done / (time.monotonic() - began)
