"""Whether stages fit into memory, asked before they are started. What is not known is never refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zhongjing.codes import Code
from zhongjing.codes.document import DOES_NOT_FIT
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError, StorageError
from zhongjing.pipeline import graph
from zhongjing.planning.base_shape import Read, shape_of, shape_of_base
from zhongjing.planning.shape import Shape
from zhongjing.planning.stage_plan import Terms, find_problems, find_remedies, limit_of
from zhongjing.storage.objects import ObjectStore

_MOST_REMEDIES = 3

TermsOf = Callable[[AnySettings], Terms]
"""What a worker of a stage can have where the stage would run."""


@dataclass(frozen=True)
class Unfit:
    """A stage that by the plan cannot fit: what it takes and what there is, and the smallest changes."""

    stage: Stage
    message: str
    remedy: str
    code: Code = DOES_NOT_FIT


@dataclass(frozen=True)
class Verdict:
    """The stages that cannot fit, and in a sentence each what could not be told."""

    unfit: tuple[Unfit, ...] = ()
    unknown: tuple[str, ...] = ()

    def error(self) -> ConfigError | None:
        """The refusal; None where nothing is refused."""
        if not self.unfit:
            return None
        one, *others = self.unfit
        where = f"spec.stages.{one.stage}"
        lines = [one.message, *(f"spec.stages.{each.stage}: {each.message}" for each in others)]
        remedies = [one.remedy, *(each.remedy for each in others), "--force starts it all the same"]
        return ConfigError("\n".join(lines), code=DOES_NOT_FIT, where=where, remedy="; ".join(remedies))


def reader(store: ObjectStore | None) -> Read:
    """Reads a store that may not be there: what cannot be read is not known."""

    def read(uri: str) -> bytes | None:
        try:
            return store.get(uri) if store is not None else None
        except StorageError:
            return None

    return read


class Gate(Protocol):
    """Says of the place where stages run what cannot fit there."""

    def capacity(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Sequence[Unfit]:
        """The stages whose workers the place can never hold, by their number and what each asks for."""

    def memory(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Verdict:
        """Plans the memory of stages. Raises nothing that a place may be in trouble with: that is unknown."""


def judge(document: TrainingPipeline, stages: Iterable[Stage], terms_of: TermsOf, read: Read) -> Verdict:
    """Plans the stages that will run.

    Args:
        document: resolved.
        stages: those that will run.
        terms_of: what there is for a worker.
        read: reads objects of the store, where a base may lie.
    """
    unfit: list[Unfit] = []
    unknown: dict[str, list[Stage]] = {}
    shapes: dict[str, Shape | None] = {}
    for stage in stages:
        settings = document.spec.stages.get(stage)
        if settings is None:
            continue  # no model is loaded
        reference = graph.start_of(document, stage)[1].reference
        if reference not in shapes:
            base = document.spec.base
            is_base = reference == graph.BASE
            shapes[reference] = shape_of_base(base, read) if is_base else shape_of(reference, read)
        shape, terms = shapes[reference], terms_of(settings)
        if shape is None:
            named = "of the base" if reference == graph.BASE else f"of {reference}"
            unknown.setdefault(f"the sizes {named} are not known here", []).append(stage)
            continue
        if limit_of(settings, terms) is None:
            what = "a GPU" if settings.resources.gpus else "a worker"
            unknown.setdefault(f"the memory of {what} is not known here", []).append(stage)
        problems = find_problems(settings, shape, terms)
        if problems:
            remedies = find_remedies(settings, shape, terms)
            unfit.append(Unfit(stage, f"{stage} cannot fit: {'; '.join(problems)}", _remedy(stage, remedies)))
    return Verdict(
        tuple(unfit),
        tuple(f"whether {', '.join(names)} fits is not known: {why}" for why, names in unknown.items()),
    )


def _remedy(stage: Stage, remedies: Iterable[Mapping[str, Any]]) -> str:
    shown = [
        " ".join(f"--set {each}" for each in _assignments(f"spec.stages.{stage}", change))
        for change in remedies
    ]
    if not shown:
        return f"{stage} fits by no single field: use a smaller base or more memory"
    return f"add {', or '.join(shown[:_MOST_REMEDIES])}"


def _assignments(path: str, change: Mapping[str, Any]) -> list[str]:
    """A remedy as ``path=value``, as ``--set`` takes it."""
    found: list[str] = []
    for key, value in change.items():
        if isinstance(value, Mapping):
            found += _assignments(f"{path}.{key}", value)
        else:
            found.append(f"{path}.{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found
