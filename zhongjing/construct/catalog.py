"""Steps by name: how each is built from plain settings, for commands and jobs alike.

===========  =============================================  ===============================
name         what becomes of a record                       needs
===========  =============================================  ===============================
deidentify   identifiers are replaced                       a salt where the policy says so
normalize    a model rewrites the doctor's turns            model, base URL
expand       a model makes terse dialogues longer           model, base URL
check        rules leave out what contradicts a graph;      kg
             where a model is named, it judges the rest
             with the graph's facts (step ``judge``)
===========  =============================================  ===============================
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zhongjing.codes import construct as codes
from zhongjing.codes.document import MISSING_FIELD
from zhongjing.config.sources import Storage
from zhongjing.construct.kg.check import QUARANTINED, KnowledgeCheck
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.readers import load_graph
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.drugs import DrugNames
from zhongjing.construct.llm.expand import ExpandStep
from zhongjing.construct.llm.judge import JudgeStep
from zhongjing.construct.llm.limits import Limits
from zhongjing.construct.llm.normalize import NormalizeStep
from zhongjing.construct.llm.server import KeySource, Sampling, Server
from zhongjing.construct.runner import PATIENCE_SECONDS
from zhongjing.construct.step import Step
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore


_ASKING_PATIENCE = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What steps are built from. Paths may be ``s3://``.

    Attributes:
        steps: names, in their order.
        policy: file with what becomes of each class of identifier; None: the shipped one.
        salt: secret of made-up values.
        model, base_url, key, sampling: which model is asked, where and how.
        limits: over all processes that ask.
        tries: answers asked for one record before it is quarantined.
        most_unusable: fraction of the records asked for that may get no usable answer.
        accept_identifiable: text that was not de-identified may be sent.
        drugs: file with names of drugs, one a line.
        kg: file or folder of a knowledge graph.
        rules: for which ``check`` leaves a dialogue out; None: all but underdose.
        ledger: where answers are kept; None: ``ledger`` in the bucket of the output.
    """

    steps: Sequence[str]
    policy: str | None = None
    salt: str | None = field(default=None, repr=False)
    model: str | None = None
    base_url: str | None = None
    key: KeySource | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    tries: int = 3
    most_unusable: float = 0.2
    accept_identifiable: bool = False
    drugs: str | None = None
    kg: str | None = None
    rules: frozenset[str] | None = None
    ledger: str | None = None

    @property
    def asks(self) -> bool:
        """Whether a language model is asked."""
        return self.model is not None or not {"normalize", "expand"}.isdisjoint(self.steps)

    @property
    def patience(self) -> float:
        """Seconds after which a part that no process has ended is made a second time, here.

        One that waits for answers may take days at a low rate; asked for twice, it would be paid twice.
        """
        return _ASKING_PATIENCE if self.asks else PATIENCE_SECONDS

    def processes(self, wanted: int) -> int:
        """How many processes may work at a time, of those wanted.

        No more than questions may be under way; one where there is a budget, so that no other spends it, too.
        """
        if not self.asks:
            return wanted
        return 1 if self.limits.budget is not None else min(wanted, self.limits.concurrency)


def build_steps(
    settings: StepSettings, out: str, store: ObjectStore | None = None, *, processes: int = 1
) -> list[Step]:
    """The steps of a construction.

    Args:
        settings: which, and of what.
        out: folder of the output, s3://; names the account that the work is paid from.
        store: where graph and lists may be, and the ledger is; without it only a plan can be made.
        processes: that work at a time (:meth:`StepSettings.processes`); they share the limits.

    Raises:
        ConfigError: a name that is none, a name twice, or a setting that a step needs is missing.
        DataError: the graph or a list cannot be read.
    """
    twice = {name for name in settings.steps if list(settings.steps).count(name) > 1}
    unknown = [name for name in settings.steps if name not in BUILDERS]
    if twice or unknown:
        raise ConfigError(
            f"there is no step {unknown[0]!r}" if unknown else f"the step {min(twice)!r} is there twice",
            code=codes.UNKNOWN_STEP,
            where="steps",
            remedy=f"there are: {', '.join(BUILDERS)}; each at most once",
        )
    parts = _Parts(settings, out.rstrip("/"), store, processes)
    return [step for name in settings.steps for step in BUILDERS[name](parts)]


def build_desk(settings: StepSettings, out: str, store: ObjectStore) -> Desk:
    """Where a step that is no data step asks its model. ``out``: as for :func:`build_steps`.

    Raises:
        ConfigError: no model is named.
    """
    return _Parts(settings, out.rstrip("/"), store, 1).desk


class _Parts:
    """What steps are made of, each made at its first use and shared by all."""

    def __init__(self, settings: StepSettings, out: str, store: ObjectStore | None, processes: int) -> None:
        self.settings = settings
        self._out = out
        self.store = store
        self._processes = processes

    @functools.cached_property
    def desk(self) -> Desk:
        settings = self.settings
        return Desk(
            server=Server(
                self._given("baseUrl", settings.base_url), self._given("model", settings.model), settings.key
            ),
            storage=Storage() if self.store is None else self.store.storage,
            ledger=settings.ledger or f"{'/'.join(self._out.split('/')[:3])}/ledger",
            account=hashlib.sha256(self._out.encode()).hexdigest()[:16],
            sampling=settings.sampling,
            limits=settings.limits.shared_by(self._processes),
            tries=settings.tries,
            most_unusable=settings.most_unusable,
            accept_identifiable=settings.accept_identifiable,
        )

    @functools.cached_property
    def graph(self) -> Graph:
        return load_graph(self._given("kg", self.settings.kg), self.store)

    @functools.cached_property
    def drugs(self) -> DrugNames:
        place = self.settings.drugs
        return DrugNames() if place is None else DrugNames.load(place, self.store)

    def _given(self, name: str, value: str | None) -> str:
        if not value:
            raise ConfigError(
                f"a step of {', '.join(self.settings.steps)} needs {name}",
                code=MISSING_FIELD,
                where=name,
                remedy=f"give {name}",
            )
        return value


def _deidentify(parts: _Parts) -> list[Step]:
    from zhongjing.construct.deidentify.deidentifier import Deidentifier
    from zhongjing.construct.deidentify.policy import load_policy, parse_policy

    place, store = parts.settings.policy, parts.store
    if place is not None and place.startswith("s3://"):
        assert store is not None, "s3:// needs a store"
        policy = parse_policy(store.get(place).decode("utf-8", "replace"), place)
    else:
        policy = load_policy(place)
    return [Deidentifier(policy, salt=parts.settings.salt)]


def _check(parts: _Parts) -> list[Step]:
    rules = parts.settings.rules
    steps: list[Step] = [KnowledgeCheck(parts.graph, QUARANTINED if rules is None else rules)]
    # Rules first: what they leave out costs nothing.
    return steps if parts.settings.model is None else [*steps, JudgeStep(parts.desk, graph=parts.graph)]


BUILDERS: Mapping[str, Callable[[_Parts], list[Step]]] = {
    "deidentify": _deidentify,
    "normalize": lambda parts: [NormalizeStep(parts.desk, parts.drugs)],
    "expand": lambda parts: [ExpandStep(parts.desk, parts.drugs)],
    "check": _check,
}
"""By name."""
