"""The end of an object: finalizer, deletion of artifacts, time to live.

Only objects with ``deletionPolicy: Delete`` have our finalizer. It would otherwise hang the deletion of a
namespace, which takes the controller and its rights along.
"""

from __future__ import annotations

import logging

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.controller.services import Services
from zhongjing.controller.spec import RESERVED
from zhongjing.pipeline.state import ConditionType, seconds

logger = logging.getLogger(__name__)


def lacks_finalizer(pipeline: Pipeline) -> bool:
    """Whether the finalizer is not as ``deletionPolicy`` wants it."""
    return not pipeline.is_deleting and pipeline.deletes_artifacts != pipeline.has_finalizer


def is_expired(pipeline: Pipeline, now: float) -> bool:
    """Whether the object has been complete for ``ttlSecondsAfterFinished``."""
    ttl = pipeline.spec.get("ttlSecondsAfterFinished")
    completed = pipeline.status.get("completionTime")
    if not isinstance(ttl, int) or not completed or pipeline.is_deleting:
        return False
    complete = pipeline.is_settled and pipeline.holds(ConditionType.COMPLETE)
    return complete and now - seconds(str(completed)) >= ttl


def remove_artifacts(services: Services, pipeline: Pipeline) -> int:
    """Deletes everything that the pipeline made; caches that others share stay.

    Returns:
        The number of objects that were deleted.

    Raises:
        StorageError: the store does not answer or refuses; the same call goes on.
    """
    if pipeline.name in RESERVED:
        return 0
    deleted = services.store.delete_folder(services.specs.layout(pipeline).home)
    logger.info("%s: deleted its artifacts (%d objects)", pipeline.name, deleted)
    return deleted
