"""Asks whether the workers of each stage find room on this machine."""

from __future__ import annotations

from collections.abc import Iterable

from zhongjing.backends.local import machine
from zhongjing.codes import local as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.quantity import from_bytes, to_bytes
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError

LEAST_CORES = 2  # two workers share one core slowly, but well enough to try things out


def check_machine(document: TrainingPipeline, stages: Iterable[Stage]) -> None:
    """Compares workers x resources of each stage with what is there.

    Raises:
        ConfigError: a stage asks for more cores, GPUs or memory than there are; names what would fit.
    """
    for stage in stages:
        settings = document.spec.stages[stage]
        _check_cores(stage, settings)
        _check_gpus(stage, settings)
        _check_memory(stage, settings)


def _check_cores(stage: Stage, settings: AnySettings) -> None:
    each, there = settings.resources.cpus, max(LEAST_CORES, machine.cores())
    wanted = settings.workers * each
    if wanted > there:
        raise _too_many(stage, settings, f"{wanted:g} cores", f"{there}", int(there / each))


def _check_gpus(stage: Stage, settings: AnySettings) -> None:
    each = settings.resources.gpus
    there = machine.gpus() if each else None
    if there is None:
        return
    wanted = settings.workers * each
    if there == 0:
        raise ConfigError(
            f"{stage} asks for {wanted} GPU{'s' if wanted > 1 else ''}, and none is found on this machine",
            code=codes.NO_GPU,
            where=f"spec.stages.{stage}.resources.gpus",
        )
    if wanted > there:
        raise _too_many(stage, settings, f"{wanted} GPUs", f"{there}", there // each)


def _check_memory(stage: Stage, settings: AnySettings) -> None:
    if settings.resources.memory is None:
        return
    each, there = to_bytes(settings.resources.memory), machine.memory()
    wanted = settings.workers * each
    if wanted > there:
        raise _too_many(stage, settings, f"{from_bytes(wanted)} of memory", from_bytes(there), there // each)


def _too_many(stage: Stage, settings: AnySettings, wanted: str, there: str, fitting: int) -> ConfigError:
    one = settings.workers == 1
    if fitting:
        remedy = f"set spec.stages.{stage}.workers to at most {fitting}, or run on a cluster"
    else:
        remedy = f"lower spec.stages.{stage}.resources, not one worker fits; or run on a cluster"
    return ConfigError(
        f"the {settings.workers} worker{'' if one else 's'} of {stage} would take {wanted}, "
        f"this machine has {there}",
        code=codes.TOO_MANY_WORKERS,
        where=f"spec.stages.{stage}.{'resources' if not fitting else 'workers'}",
        remedy=remedy,
    )
