"""Plans stages before they are started: what the release's workers cannot hold waits until they can."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from zhongjing.backends.kubernetes.demand import Demand, WorkerMemory, pods_needed
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Stage
from zhongjing.pipeline.backend import ImpossibleJobError
from zhongjing.pipeline.faults import sentence
from zhongjing.pipeline.fit import Unfit, Verdict, judge, reader
from zhongjing.pipeline.repeats import Repeats
from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)


class ReleaseGate:
    """The plan of what a release would start. Implements :class:`zhongjing.pipeline.fit.Gate`.

    A refusal is no failure: with each look it is found anew, so a release that was made larger, which starts
    its controller again, mends it.

    Args:
        groups: of workers, of the release; None where its Ray is another's, of which nothing is known.
        memory: what workers can have.
        store: has the config.json of bases in it.
    """

    def __init__(
        self, groups: Sequence[WorkerGroup] | None, memory: WorkerMemory, store: ObjectStore
    ) -> None:
        self._groups = groups
        self._memory = memory
        self._read = reader(store)
        self._repeats = Repeats(logger)

    def capacity(self, document: TrainingPipeline, stages: Iterable[Stage]) -> list[Unfit]:
        """The stages whose workers the release can never hold."""
        if self._groups is None:
            return []
        unfit = []
        for stage in stages:
            settings = document.spec.stages.get(stage)
            if settings is None:
                continue  # it asks for no workers
            try:
                pods_needed(self._groups, Demand(stage, settings.workers, settings.resources))
            except ImpossibleJobError as error:
                unfit.append(Unfit(stage, sentence(error), error.remedy, error.code))
        return unfit

    def memory(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Verdict:
        """Plans stages. What is not known is logged, and refuses nothing."""
        verdict = judge(document, stages, self._memory.terms, self._read)
        for doubt in verdict.unknown:
            if self._repeats.is_news((document.name, doubt)):
                logger.info("%s: %s", document.name, doubt)
        return verdict
