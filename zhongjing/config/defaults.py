"""``spec.stages.defaults``: settings that are written once and hold for every stage that trains.

They are filled into the stages before anything else is done with a document: what a stage says itself wins,
and everything behind sees stages as if each had said it. The CRD has no such field: ``submit`` sends what
came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zhongjing.codes.document import UNKNOWN_FIELD
from zhongjing.config.fields import DocumentModel
from zhongjing.config.stages import (
    PpoSettings,
    PretrainSettings,
    RmSettings,
    SftSettings,
    Stage,
    StageSettings,
)
from zhongjing.errors import ConfigError

DEFAULTS = "defaults"
"""Its name beside the stages."""

_MODELS: dict[Stage, type[StageSettings]] = {
    Stage.PRETRAIN: PretrainSettings,
    Stage.SFT: SftSettings,
    Stage.RM: RmSettings,
    Stage.PPO: PpoSettings,
}
Path = tuple[str | int, ...]
_STAGES: Path = ("spec", "stages")


def names() -> list[str]:
    """The settings that may be given to all stages: those that all have, and what all adapters have."""
    shared = [info.alias or name for name, info in StageSettings.model_fields.items() if name != "data"]
    return [*shared, "lora", "quantization"]


def expand(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, Path]]:
    """Fills the defaults of the stages in.

    Args:
        data: a document as written.

    Returns:
        The document without ``defaults``, and for every path that was filled in the path where it is written.

    Raises:
        ConfigError: a setting that stages do not share.
    """
    spec = data.get("spec")
    stages = spec.get("stages") if isinstance(spec, Mapping) else None
    defaults = stages.get(DEFAULTS) if isinstance(stages, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(stages, Mapping) or not isinstance(defaults, Mapping):
        return dict(data), {}
    for name in defaults:
        if name not in names():
            raise ConfigError(
                f"{name} is no setting that all stages share (known: {', '.join(names())})",
                code=UNKNOWN_FIELD,
                where=f"spec.stages.{DEFAULTS}.{name}",
            )
    origins: dict[Path, Path] = {}
    filled: dict[str, Any] = {}
    for stage, settings in stages.items():
        if stage == DEFAULTS:
            continue
        filled[stage] = settings
        if stage in _MODELS and isinstance(settings, Mapping):
            model = _MODELS[Stage(stage)]
            own = {name: value for name, value in defaults.items() if name in _aliases(model)}
            place, source = (*_STAGES, stage), (*_STAGES, DEFAULTS)
            filled[stage] = _under(own, settings, place, source, origins)
    return {**data, "spec": {**spec, "stages": filled}}, origins


def _aliases(model: type[DocumentModel]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


def _under(
    defaults: Mapping[str, Any], own: Mapping[str, Any], place: Path, source: Path, origins: dict[Path, Path]
) -> dict[str, Any]:
    """``own`` over ``defaults``, objects merged; notes where each value that is filled in was written."""
    merged = dict(own)
    for name, value in defaults.items():
        here, there = (*place, name), (*source, name)
        if name not in own:
            merged[name] = value
            origins[here] = there
        elif isinstance(value, Mapping) and isinstance(own[name], Mapping):
            merged[name] = _under(value, own[name], here, there, origins)
    return merged
