"""Asks whether the stages that will run fit: their workers on this machine, each worker into memory.

The local backend is imported where this machine is asked: the client of a cluster has no psutil.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from zhongjing.codes import local as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.quantity import from_bytes, to_bytes
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline.fit import TermsOf, judge
from zhongjing.planning.base_shape import Read
from zhongjing.planning.hardware import gpus_of
from zhongjing.planning.stage_plan import Terms

LEAST_CORES = 2  # two workers share one core slowly, but well enough to try things out


def check_machine(document: TrainingPipeline, stages: Iterable[Stage]) -> None:
    """Compares workers x resources of each stage with what is there.

    Raises:
        ConfigError: a stage asks for more cores, GPUs or memory than there are; names what would fit.
    """
    from zhongjing.backends.local import machine

    for stage in stages:
        settings = document.spec.stages.get(stage)
        if settings is None:
            continue  # construct takes what there is
        asked = settings.resources
        gpus = machine.gpus() if asked.gpus else None
        if gpus == 0:
            count = settings.workers * asked.gpus
            raise ConfigError(
                f"{stage} asks for {count} GPU{'s' if count > 1 else ''}, and none is found on this machine",
                code=codes.NO_GPU,
                where=f"spec.stages.{stage}.resources.gpus",
            )
        memory = to_bytes(asked.memory) if asked.memory is not None else 0
        needs: list[tuple[float, int | None, Callable[[Any], str], str]] = [
            (asked.cpus, max(LEAST_CORES, machine.cores()), "{:g}".format, "cores"),
            (asked.gpus, gpus, "{:g}".format, "GPUs"),
            (memory, machine.memory(), from_bytes, "of memory"),
        ]
        for each, there, text, unit in needs:
            taken = settings.workers * each
            if there is not None and taken > there:
                what = f"{text(taken)} {unit}, this machine has {text(there)}"
                raise _too_many(stage, settings.workers, what, int(there / each))


def _too_many(stage: Stage, workers: int, what: str, fitting: int) -> ConfigError:
    field, remedy = "resources", f"lower spec.stages.{stage}.resources (not one worker fits)"
    if fitting:
        field, remedy = "workers", f"set spec.stages.{stage}.workers to at most {fitting}"
    return ConfigError(
        f"the {workers} worker{'' if workers == 1 else 's'} of {stage} would take {what}",
        code=codes.TOO_MANY_WORKERS,
        where=f"spec.stages.{stage}.{field}",
        remedy=f"{remedy}, or run on a cluster",
    )


def check_memory(
    document: TrainingPipeline, stages: Iterable[Stage], terms_of: TermsOf, read: Read
) -> list[str]:
    """Plans stages; returns what there is to note.

    Args:
        document: resolved. With ``spec.force`` what cannot fit is noted instead.
        stages: those that will run.
        terms_of: what there is for a worker.
        read: reads objects of the store.

    Raises:
        ConfigError: a stage cannot fit; names planned and usable memory and the smallest remedies.
    """
    verdict = judge(document, stages, terms_of, read)
    refusal = verdict.error()
    if refusal is not None and not document.spec.force:
        raise refusal
    forced = [f"started in spite of this (--force): {each.message}" for each in verdict.unfit]
    return [*forced, *verdict.unknown]


def terms_here() -> TermsOf:
    """What workers can have on this machine, asked for once."""
    from zhongjing.backends.local import machine

    gpu_memory: Callable[[], int | None] = cache(machine.gpu_memory)

    def terms(settings: AnySettings) -> Terms:
        size = gpu_memory() if settings.resources.gpus else None
        gpus = gpus_of(settings.workers, size) if size is not None else None
        return Terms(gpus=gpus, machine=machine.memory())

    return terms
