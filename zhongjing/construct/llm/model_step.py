"""A step that a language model writes, as the other steps are: records in, outcomes out.

:meth:`ModelStep.apply` asks for one record and waits. :meth:`ModelStep.apply_all` asks for many at a time, in
the order of the records; who runs a part calls that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import ClassVar

from zhongjing.codes import language_model as codes
from zhongjing.construct.access import opened
from zhongjing.construct.llm.author import Author, Question
from zhongjing.construct.llm.batch import Batch, Desk, Report, close_batch, shared_batch
from zhongjing.construct.llm.consent import STEP, not_deidentified
from zhongjing.construct.llm.drugs import DrugNames
from zhongjing.construct.llm.ledger import Ledger
from zhongjing.construct.llm.prompt import Prompt, load_prompt
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Record, Turns
from zhongjing.errors import LanguageModelError

UNUSABLE = "unusable"
"""The label of records that no usable answer came for."""
_GIVEN_UP = frozenset({codes.UNUSABLE_ANSWER, codes.REQUEST_REFUSED})
_FIRST = 100  # records that are asked for before a fraction of them says much


@dataclass(frozen=True)
class ModelStep(ABC):
    """Base of the steps that a language model writes; a Step.

    Attributes:
        desk: where and how is asked.
        drugs: names that are looked for beside the endings of substances.
        prompt_version: of the prompt of the step's name; None: its newest.

    Class attributes: ``done`` is the label of records that the model has written or judged; ``growth`` and
    ``shortest_answer`` say about how long an answer is (:mod:`zhongjing.construct.llm.estimate`): characters
    for each of the record's, and at least.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    newest_prompt: ClassVar[int]
    done: ClassVar[str]
    growth: ClassVar[float] = 1.5
    shortest_answer: ClassVar[int] = 150

    desk: Desk
    drugs: DrugNames = field(default_factory=DrugNames)
    prompt_version: int | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt in use.

        Raises:
            ConfigError: there is none of that version.
        """
        return load_prompt(self.name, self.prompt_version or self.newest_prompt)

    def parameters(self) -> dict[str, object]:
        """What decides the outcome beside name and version. Address and limits do not."""
        prompt = self.prompt
        return {
            "prompt": {"name": prompt.name, "version": prompt.version, "digest": prompt.digest},
            "model": self.desk.server.model,
            "sampling": self.desk.sampling.as_json(),
            "tries": self.desk.tries,
            "drugs": self.drugs.digest if self.drugs.names else None,
            **self.settings(),
        }

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Parameters of the step's own."""

    @abstractmethod
    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The first messages that a record takes; None: it takes none."""

    def openings(self, record: Record) -> list[tuple[dict[str, str], ...]]:
        """The first messages of all questions that a record takes."""
        found = self.opening(record)
        return [] if found is None else [found]

    @abstractmethod
    async def write(self, author: Author, record: Record) -> Outcome:
        """What becomes of a record. Raises as :meth:`Author.write` does."""

    def apply(self, record: Record) -> Outcome:
        """What becomes of a record. Raises as :meth:`apply_all` does."""
        (outcome,) = self.apply_all([record])
        return outcome

    def apply_all(self, records: Iterable[Record], batch: Batch | None = None) -> Iterator[Outcome]:
        """What becomes of each record, in order; several are asked for at a time.

        Args:
            records: any number; a window of them is in memory.
            batch: an open one; None: the process's own for this desk.

        Raises:
            LanguageModelError: the run cannot go on. What is done is kept: the same call goes on from there.
            StorageError: the ledger cannot be read or written.
        """
        if batch is not None:
            yield from self._watched(records, batch)
            return
        try:
            yield from self._watched(records, shared_batch(self.desk))
        except BaseException:
            close_batch(self.desk)  # it asks nothing any more
            raise

    def _watched(self, records: Iterable[Record], batch: Batch) -> Generator[Outcome]:
        """The outcomes, until too many records are given up."""
        given_up = batch.unusable.setdefault(self.name, Counter())
        with closing(batch.map(records, self.write)) as outcomes:
            for outcome in outcomes:
                left = outcome.quarantined
                if left is not None and left.code in _GIVEN_UP:
                    given_up[left.reason] += 1
                    batch.records[self.name] += 1
                    yield replace(outcome, counts={**outcome.counts, UNUSABLE: 1})
                    asked = batch.records[self.name]
                    if given_up.total() > self.desk.most_unusable * max(asked, _FIRST):
                        raise self._too_many(asked, given_up)
                else:
                    batch.records[self.name] += self.done in outcome.counts
                    yield outcome

    def _too_many(self, asked: int, given_up: Mapping[str, int]) -> LanguageModelError:
        number = sum(given_up.values())
        reasons = "; ".join(f"{reason}: {count}" for reason, count in Counter(given_up).most_common(3))
        return LanguageModelError(
            f"the step {self.name} got no usable answer for {number} of {asked} records, and "
            f"{self.desk.most_unusable:.1%} are allowed ({reasons})",
            code=codes.TOO_MANY_UNUSABLE_ANSWERS,
            where=self.desk.server.name,
        )

    def admit(self, passed: Callable[[str], bool], source: str) -> None:
        """Refuses records that were not de-identified, unless the desk accepts them.

        Raises:
            LanguageModelError: they were not.
        """
        if not (self.desk.accept_identifiable or passed(STEP)):
            raise not_deidentified(source)

    def finish(self, counts: Mapping[str, int], quarantined: Mapping[str, int]) -> dict[str, object]:
        """What was asked and paid over all processes and kills. Closes what this process has open.

        Raises:
            LanguageModelError: too many records got no usable answer.
            StorageError: the account cannot be read.
        """
        self.close()
        unusable = counts.get(UNUSABLE, 0)
        asked = counts.get(self.done, 0) + unusable
        if unusable > self.desk.most_unusable * asked:
            raise self._too_many(asked, quarantined)
        desk, prices = self.desk, self.desk.limits.prices
        total = Ledger(opened(desk.storage), desk.ledger).account(desk.account).total
        return {
            "model": desk.server.model,
            "baseUrl": desk.server.base_url,
            "ledger": desk.ledger,
            "account": desk.account,
            "acceptIdentifiable": desk.accept_identifiable,
            "records": asked,
            "requests": total.requests,
            "repeatedAfterKills": total.repeated,
            "retries": dict(total.failed),
            "promptTokens": total.used.prompt,
            "completionTokens": total.used.completion,
            "lostTokensAtMost": total.lost.total,
            "cost": None if prices is None else prices.of(total.used + total.lost),
            "currency": None if prices is None else prices.currency,
        }

    def report(self) -> Report:
        """What this process has done at the desk up to now."""
        return shared_batch(self.desk).report()

    def close(self) -> None:
        """Closes what this process has open at the desk; the next record opens it again."""
        close_batch(self.desk)


def left_as_it_is(record: Record, label: str) -> Outcome:
    """The outcome of a record that the step is not for."""
    return Outcome(records=(record,), counts={label: 1})


async def rewritten(
    author: Author,
    dialogue: Dialogue,
    question: Question[Turns],
    counted: Callable[[Turns], Mapping[str, int]],
) -> Outcome:
    """The dialogue with the turns that the model wrote, counted by ``counted``, or its quarantine."""
    written = await author.write(question)
    if written.value is None:
        return Outcome(counts=written.counts, quarantined=rejected(dialogue, written.reason, written.code))
    counts = {**written.counts, **counted(written.value)}
    return Outcome(records=(replace(dialogue, turns=written.value),), counts=counts)
