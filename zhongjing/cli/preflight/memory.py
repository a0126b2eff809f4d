"""Plans the stages that will run, and refuses what cannot fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.pipeline.fit import TermsOf, Verdict, judge
from zhongjing.planning.base_shape import Read
from zhongjing.planning.hardware import gpus_of
from zhongjing.planning.stage_plan import Terms


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
    verdict: Verdict = judge(document, stages, terms_of, read)
    refusal = verdict.error()
    if refusal is None:
        return list(verdict.unknown)
    if not document.spec.force:
        raise refusal
    return [f"started in spite of this (--force): {each.message}" for each in verdict.unfit] + list(
        verdict.unknown
    )


def terms_here() -> TermsOf:
    """What workers can have on this machine, asked for once."""
    from zhongjing.backends.local import machine  # psutil is not installed with the client of a cluster

    gpu_memory: Callable[[], int | None] = cache(machine.gpu_memory)

    def terms(settings: AnySettings) -> Terms:
        size = gpu_memory() if settings.resources.gpus else None
        gpus = gpus_of(settings.workers, size) if size is not None else None
        return Terms(gpus=gpus, machine=machine.memory())

    return terms
