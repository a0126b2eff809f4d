"""Plans stages before they are started: what cannot fit into the memory of the cluster's workers waits."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from zhongjing.backends.kubernetes.memory import WorkerMemory
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.pipeline.fit import Verdict, judge, reader
from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)


class MemoryGate:
    """The plan of what a release would start. Implements :class:`zhongjing.pipeline.fit.Gate`.

    Args:
        memory: what workers can have.
        store: has the config.json of bases in it.
    """

    def __init__(self, memory: WorkerMemory, store: ObjectStore) -> None:
        self._memory = memory
        self._read = reader(store)
        self._said: set[str] = set()

    def look(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Verdict:
        """Plans stages. What is not known is logged, once for each pipeline, and refuses nothing."""
        verdict = judge(document, stages, self._memory.terms, self._read)
        for sentence in verdict.unknown:
            line = f"{document.name}: {sentence}"
            if line not in self._said:
                self._said.add(line)
                logger.info("%s", line)
        return verdict
