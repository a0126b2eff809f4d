"""Which program a stage has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, RmSettings, SftSettings
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.stages.causal import PretrainProgram, SftProgram
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import StageProgram
from zhongjing.train.stages.rm import RmProgram

_PROGRAMS: dict[type[AnySettings], Callable[[Any, StageInputs], StageProgram]] = {
    PretrainSettings: PretrainProgram,
    SftSettings: SftProgram,
    RmSettings: RmProgram,
    PpoSettings: PpoProgram,
}


def build_program(settings: AnySettings, inputs: StageInputs) -> StageProgram:
    """The program of a stage; the kind of its settings says which.

    Raises:
        DataError: a model, adapter or split cannot be used.
        ConfigError: settings contradict each other.
    """
    return _PROGRAMS[type(settings)](settings, inputs)
