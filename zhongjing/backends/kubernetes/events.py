"""Events of TrainingPipelines: what ``kubectl describe tp`` lists. They are told once a transition."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import EVENTS
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.config.pipeline import API_GROUP, API_VERSION, KIND
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.repeats import Repeats
from zhongjing.pipeline.state import (
    CLUSTER_NOT_READY,
    REFUSALS,
    RETRYING,
    RUNNING,
    ConditionType,
    PipelineStatus,
    StageState,
    StageStatus,
)

logger = logging.getLogger(__name__)

CONTROLLER = f"{API_GROUP}/controller"

_NOTE_BYTES = 1000  # the API takes 1 kB


@dataclass(frozen=True)
class Note:
    """What an event says."""

    type: Literal["Normal", "Warning"]
    reason: str
    text: str


def transitions(before: PipelineStatus, after: PipelineStatus) -> list[Note]:
    """What happened between two statuses. Pure."""
    notes = []
    for stage in Stage:
        if stage in after.stages:
            notes += _of_stage(stage, before.stage(stage), after.stage(stage))
    was, now = before.condition(), after.condition()
    if now is None:
        return notes
    same = was is not None and (was.type, was.reason) == (now.type, now.reason)
    # That a stage runs is told by the stage.
    if same or (now.type is ConditionType.PROGRESSING and now.reason == RUNNING):
        return notes
    bad = now.type is ConditionType.FAILED or now.reason in (CLUSTER_NOT_READY, *REFUSALS, RETRYING)
    text = f"{now.message} (remedy: {now.remedy})" if now.remedy else now.message
    return [*notes, Note("Warning" if bad else "Normal", now.reason, text)]


def _of_stage(stage: Stage, before: StageStatus, after: StageStatus) -> list[Note]:
    def entered(state: StageState) -> bool:
        return after.state is state and before.state is not state

    told = []
    if after.state.is_active and after.attempt != before.attempt:
        told.append(("StageSubmitted", f"attempt {after.attempt}: {after.message}"))
    if entered(StageState.RUNNING):
        told.append(("StageRunning", f"attempt {after.attempt} runs"))
    if entered(StageState.SUCCEEDED):
        told.append(("StageSucceeded", after.model_uri or ""))
    if after.stop_reason not in (None, before.stop_reason):
        told.append(("StageStopping", after.message))
    return [Note("Normal", reason, f"{stage}: {text}") for reason, text in told]


class Recorder:
    """Writes events. That one could not be written is logged and harms nothing."""

    def __init__(self, api: KubeApi, instance: str) -> None:
        self._api = api
        self._instance = instance[:128]
        self._repeats = Repeats(logger)

    def tell(self, pipeline: Pipeline, note: Note) -> None:
        """Writes one event, unless the same was told lately."""
        if not self._repeats.is_news((pipeline.uid, note.reason, note.text)):
            return
        try:
            self._api.create(EVENTS, self._event(pipeline, note))
        except ZhongjingError as error:
            logger.warning("an event of %s could not be written: %s", pipeline.name, error.message)

    def _event(self, pipeline: Pipeline, note: Note) -> dict[str, object]:
        return {
            "apiVersion": EVENTS.api_version,
            "kind": "Event",
            "metadata": {"name": f"{pipeline.name}.{secrets.token_hex(8)}", "namespace": pipeline.namespace},
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": note.type,
            "reason": note.reason[:128],
            "note": note.text.encode()[:_NOTE_BYTES].decode(errors="ignore"),
            "action": "Reconcile",
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": pipeline.namespace,
                "name": pipeline.name,
                "uid": pipeline.uid,
            },
        }
