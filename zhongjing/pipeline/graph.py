"""The stage graph: construct -> pretrain -> {sft, rm} -> ppo.

What a stage starts from is named in its ``from`` (and PPO's ``reward``): another stage, ``base``, a folder,
an s3:// URI or a hub id. Without pretrain, sft and rm start from the base. The reward model never starts
from sft: it would learn to prefer its own style (paper section 3). What construct makes is needed by the
stages that read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from zhongjing.codes.document import INVALID_REFERENCE, MISSING_FIELD, UNKNOWN_STAGE
from zhongjing.codes.model import TOO_LONG_FOR_MODEL
from zhongjing.config.keys import tokenizer_sources
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import (
    ConstructSettings,
    PpoSettings,
    PretrainSettings,
    RmSettings,
    SftSettings,
    Stage,
)
from zhongjing.errors import ConfigError, DataError

Role = Literal["from", "reward"]

BASE = "base"

# Which other stages a role may name; "base" and places outside the pipeline come on top where allowed.
_ALLOWED: dict[tuple[Stage, Role], tuple[str, ...]] = {
    (Stage.PRETRAIN, "from"): (BASE,),
    (Stage.SFT, "from"): (BASE, Stage.PRETRAIN),
    (Stage.RM, "from"): (BASE, Stage.PRETRAIN),
    (Stage.PPO, "from"): (Stage.SFT,),
    (Stage.PPO, "reward"): (Stage.RM,),
}

_NAMES = {BASE, *(stage.value for stage in Stage)}


@dataclass(frozen=True)
class Need:
    """A model that a stage uses: made by ``stage``, the base (``reference == "base"``), or elsewhere."""

    role: Role
    reference: str
    stage: Stage | None = None


def needs(document: TrainingPipeline, stage: Stage) -> tuple[Need, ...]:
    """The models that ``stage`` uses, ``from`` first.

    Raises:
        ConfigError: ``from`` or ``reward`` names a stage that this stage cannot start from, or that the
            document does not have.
    """
    settings = document.spec.stages.job(stage)
    if isinstance(settings, ConstructSettings):
        return ()
    if isinstance(settings, PretrainSettings):
        return (_need(document, stage, "from", settings.from_),)
    if isinstance(settings, SftSettings | RmSettings):
        default = Stage.PRETRAIN.value if document.spec.stages.pretrain is not None else BASE
        return (_need(document, stage, "from", settings.from_ or default),)
    if isinstance(settings, PpoSettings):
        return (
            _need(document, stage, "from", settings.from_),
            _need(document, stage, "reward", settings.reward),
        )
    raise ConfigError(f"the pipeline has no stage {stage}", code=UNKNOWN_STAGE, where="spec.stages")


def _need(document: TrainingPipeline, stage: Stage, role: Role, reference: str) -> Need:
    where = f"spec.stages.{stage}.{role}"
    if reference not in _NAMES:
        return Need(role, reference)
    allowed = _ALLOWED[stage, role]
    if reference not in allowed:
        remedy = f"write {' or '.join(allowed)}, a folder, an s3:// URI or a hub id"
        if stage is Stage.RM and reference == Stage.SFT:
            remedy += "; a reward model starts from the pretrained base (paper section 3)"
        raise ConfigError(
            f"{stage} cannot use {reference!r} here", code=INVALID_REFERENCE, where=where, remedy=remedy
        )
    if reference == BASE:
        return Need(role, BASE)
    upstream = Stage(reference)
    if document.spec.stages.job(upstream) is None:
        raise ConfigError(
            f"the pipeline has no stage {upstream}",
            code=INVALID_REFERENCE,
            where=where,
            remedy=f"add spec.stages.{upstream}, or name a folder, an s3:// URI or a hub id",
        )
    return Need(role, reference, upstream)


def upstream(document: TrainingPipeline, stage: Stage) -> tuple[Stage, ...]:
    """The stages that ``stage`` needs directly."""
    models = tuple(need.stage for need in needs(document, stage) if need.stage is not None)
    made = stage is not Stage.CONSTRUCT and made_sources(document, stage)
    return (Stage.CONSTRUCT, *models) if made else models


def read_sources(document: TrainingPipeline, stage: Stage) -> list[str]:
    """Names of the sources that ``stage`` reads, in its order; of construct, of those that it makes."""
    settings = document.spec.stages.get(stage)
    if settings is None:
        return [source.name for source in document.spec.sources if source.made is not None]
    return [ref.source for ref in settings.data]


def required_sources(document: TrainingPipeline, stage: Stage) -> list[str]:
    """Names of the sources that ``stage`` cannot run without."""
    names = read_sources(document, stage)
    if document.spec.base.tiny is not None:
        names += [source.name for source in tokenizer_sources(document)]
    return list(dict.fromkeys(names))


def visible_sources(document: TrainingPipeline, stage: Stage) -> list[str]:
    """Names of the sources that ``stage`` is shown: those it reads, and all test data to be taken out.

    A source with ``wait: true`` is shown only to the stages that read it. It cannot be taken out of stages
    that ran before it came, and counting it for them when it comes would run the whole pipeline again. One
    that is made, and holds no test data, is shown to them alone too: others need not wait for it.
    """
    required = required_sources(document, stage)
    if stage is Stage.CONSTRUCT:
        return required
    return [
        source.name
        for source in document.spec.sources
        if source.name in required or (not source.wait and (source.made is None or source.has_test_data))
    ]


def made_sources(document: TrainingPipeline, stage: Stage) -> list[str]:
    """Names of the sources that ``stage`` is shown and that construct makes."""
    return [name for name in visible_sources(document, stage) if document.spec.source(name).made is not None]


def closure(document: TrainingPipeline, targets: Iterable[Stage]) -> list[Stage]:
    """``targets`` and everything that they need, in an order in which they can run.

    Raises:
        ConfigError: as :func:`needs` does.
    """
    found: set[Stage] = set()
    todo = list(targets)
    while todo:
        stage = todo.pop()
        if stage in found:
            continue
        found.add(stage)
        todo += upstream(document, stage)
    # The enumeration's order is a topological one: every edge of _ALLOWED points forward in it.
    return [stage for stage in Stage if stage in found]


def targets(document: TrainingPipeline, wanted: Iterable[Stage] = ()) -> list[Stage]:
    """The stages to bring about: those asked for, else ``spec.targets``, else all that can be run.

    Raises:
        ConfigError: a stage that the document does not have.
    """
    chosen = list(wanted) or list(document.spec.targets) or document.spec.stages.present()
    for stage in chosen:
        if document.spec.stages.job(stage) is None:
            present = ", ".join(document.spec.stages.present()) or "none"
            raise ConfigError(
                f"the pipeline has no stage {stage}",
                code=UNKNOWN_STAGE,
                where="spec.stages",
                remedy=f"it has: {present}",
            )
    if not chosen:
        raise ConfigError(
            "the pipeline has no stages", code=MISSING_FIELD, where="spec.stages", remedy="add one"
        )
    return [stage for stage in Stage if stage in chosen]


def check(document: TrainingPipeline) -> None:
    """Checks what stages say of each other and of the base, whether they are wanted now or not.

    Raises:
        ConfigError: a stage's inputs are named wrongly.
        DataError: a stage's sequences are longer than the document says that its base takes.
    """
    base = document.spec.base
    for stage in document.spec.stages.trained():
        if start_of(document, stage)[1].reference != BASE:
            continue
        if base.tiny is not None:
            check_length(document, stage, base.tiny.max_positions, "spec.base.tiny.maxPositions")
        elif base.max_positions is not None:
            check_length(document, stage, base.max_positions, "spec.base.maxPositions")


def start_of(document: TrainingPipeline, stage: Stage) -> tuple[Stage, Need]:
    """The model from outside that a stage that trains stands on, and the stage that starts from it.

    Raises:
        ConfigError: as :func:`needs` does.
    """
    need = needs(document, stage)[0]
    return (stage, need) if need.stage is None else start_of(document, need.stage)


def check_length(
    document: TrainingPipeline, stage: Stage, positions: int, place: str, *, raised_by: str | None = None
) -> None:
    """Checks that a stage's sequences are not longer than the positions of the model that it stands on.

    Args:
        document: the document.
        stage: which.
        positions: of the model, in tokens.
        place: where the number is from: a field of the document, or a file.
        raised_by: the field that raises it; none: ``place`` where that is a field.

    Raises:
        DataError: they are longer.
    """
    settings = document.spec.stages[stage]
    # How much room the prompts of PPO leave is known when they are tokens: the job tells.
    if isinstance(settings, PpoSettings):
        field, length, most = "maxNewTokens", settings.max_new_tokens, "less than"
    else:
        field, length, most = "maxLength", settings.max_length, "at most"
    if length <= positions:
        return
    raised_by = raised_by or (place if place.startswith("spec.") else None)
    raise_it = f"; or, where the base is to learn longer sequences, {raised_by}: {length}"
    raise DataError(
        f"{field} {length} is longer than the model's {positions} positions ({place})",
        code=TOO_LONG_FOR_MODEL,
        where=f"spec.stages.{stage}.{field}",
        remedy=f"set {field} to {most} {positions}{raise_it if raised_by else ''}",
    )
