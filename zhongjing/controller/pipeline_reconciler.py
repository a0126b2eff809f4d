"""Reconciles one TrainingPipeline: its object, its desired state, its passes."""

from __future__ import annotations

import logging

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.codes.unexpected import UNEXPECTED
from zhongjing.config.stages import Stage
from zhongjing.controller.outage import SILENCE_SECONDS
from zhongjing.controller.queue import is_queued
from zhongjing.controller.records import KubernetesRecords
from zhongjing.controller.services import Services
from zhongjing.errors import (
    BackendUnavailableError,
    ConflictError,
    StorageUnavailableError,
    TransientError,
    ZhongjingError,
)
from zhongjing.pipeline.actions import SUSPENDED, Action, Adopt, Conclude, Mark, apply
from zhongjing.pipeline.faults import failed, held_up, is_documents, sentence
from zhongjing.pipeline.reconcile import Reconciler
from zhongjing.pipeline.repeats import Repeats
from zhongjing.pipeline.state import (
    CLUSTER_STARTING,
    QUEUED,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    stamp,
)

logger = logging.getLogger(__name__)

TELL_PASSES = 2  # live progress is written in every second pass at most
_TROUBLE_SECONDS = 3.0  # until a pass that could not be made is made again
_DEFECT_SECONDS = 20.0


class PipelineReconciler:
    """One pipeline of this release; made of the object as it was first seen."""

    def __init__(self, services: Services, pipeline: Pipeline) -> None:
        self._services = services
        layout = services.specs.layout(pipeline)
        self.records = KubernetesRecords(services, layout, pipeline)
        self._reconciler = Reconciler(
            services.store,
            layout,
            services.backend,
            records=self.records,
            policy=services.policy,
            cadence=services.cadence,
            gate=services.gate,
        )
        self._left_at = ""  # version of the object after the last pass
        self._blocked_by: str | None = None
        self._told = 0.0
        self._counted = False
        self._failing_since: float | None = None
        self._repeats = Repeats(logger)
        self.due: float | None = None
        self.error: ZhongjingError | None = None

    @property
    def pipeline(self) -> Pipeline:
        """The object as it was last seen or written."""
        return self.records.pipeline

    def is_due(self, pipeline: Pipeline, blocked_by: str | None, now: float) -> bool:
        """Whether a pass could bring anything new."""
        changed = pipeline.version != self._left_at or blocked_by != self._blocked_by
        return changed or (self.due is not None and now >= self.due)

    def reconcile(self, pipeline: Pipeline, blocked_by: str | None, now: float) -> None:
        """One pass. Nothing that goes wrong with one pipeline is raised.

        While the store is away, only the condition is written.

        Args:
            pipeline: the object as it is now.
            blocked_by: why no stage may start; None: one may.
            now: seconds since the epoch.

        Raises:
            ConflictError: the object is another by now; list again.
        """
        self.records.use(pipeline)
        self._blocked_by = blocked_by
        outage = self._services.outage
        wait: float | None
        try:
            if blocked_by is not None and is_queued(pipeline):
                self._queue(blocked_by, now)
                wait = None
            elif outage.holds:
                wait = self._wait_for_store(now)
            else:
                wait = self._pass(pipeline, blocked_by, now)
                if self.error is not None and self._repeats.forget(pipeline.name):
                    logger.info("%s: recovered", pipeline.name)
                self.error = self._failing_since = None
        except ConflictError:
            self._left_at = ""
            raise
        except Exception as error:
            wait = self._wait_for_store(now) if outage.explains(error, now) else self._trouble(error, now)
        self.due = None if wait is None else now + wait
        self._left_at = self.pipeline.version

    def _pass(self, pipeline: Pipeline, blocked_by: str | None, now: float) -> float | None:
        services = self._services
        self._count_attempts(pipeline)
        status = self.records.read()
        try:
            desired = services.specs.desired(pipeline, status, now)
        except ZhongjingError as error:
            if not is_documents(error):
                raise
            return self._refuse(pipeline, status, error, now)
        if pipeline.is_deleting:
            desired = desired.model_copy(update={"suspend": True})
        return self._go(desired, blocked_by, now)

    def _go(self, desired: DesiredState, blocked_by: str | None, now: float) -> float | None:
        """A pass of the reconciler, with live progress."""
        self.records.want(desired)
        version = self.pipeline.version
        wait = self._reconciler.once(now, blocked_by)
        if self.records.has_news and now - self._told >= TELL_PASSES * self._services.cadence.active:
            self.records.tell()
        if self.pipeline.version != version:
            self._told = now
        return wait

    def _count_attempts(self, pipeline: Pipeline) -> None:
        """An object of a name that was used before: its attempts go on counting."""
        if self._counted or pipeline.status.get("stages"):
            return
        self.records.count_from(self._services.specs.attempts(pipeline))
        self._counted = True

    def _refuse(
        self, pipeline: Pipeline, status: PipelineStatus, error: ZhongjingError, now: float
    ) -> float | None:
        """The document cannot be run: says why. What runs goes on under the document that it began with."""
        active = any(entry.state.is_active for entry in status.stages.values())
        previous = self._services.specs.previous(pipeline) if active else None
        reason = sentence(error)
        if previous is not None:
            self._repeats.say(pipeline.name, f"generation {pipeline.generation}: {reason}")
            suspend = pipeline.suspend or pipeline.is_deleting
            desired = previous.model_copy(update={"suspend": suspend})
            blocked_by = f"the edited document cannot be run: {reason}"
            wait = self._go(desired, blocked_by, now)
            # When what runs has ended, the document as it is now is all that is left to speak of.
            return self._services.cadence.active if wait is None else wait
        self._repeats.say(pipeline.name, reason)
        self.records.want(None)
        self._say(status, [Adopt(pipeline.generation), failed(error)], now)
        return None

    def _queue(self, blocked_by: str, now: float) -> None:
        """Another pipeline has the cluster now: that is all that is new, and asks the store for nothing."""
        status = self.records.read()
        waiting = [stage for stage, entry in status.stages.items() if entry.reason == QUEUED]
        marks = [Mark(stage, StageState.PENDING, QUEUED, blocked_by) for stage in waiting]
        self._say(status, [*marks, Conclude(ConditionType.PROGRESSING, QUEUED, blocked_by)], now)

    def _wait_for_store(self, now: float) -> float:
        """What can be done without the store: a suspension where nothing runs, and word of the outage.

        Returns:
            Seconds until something may be new.
        """
        outage, pipeline = self._services.outage, self.pipeline
        if pipeline.suspend and not pipeline.is_active:
            self._try_to_say(_suspended(pipeline), now)
            return outage.wait(now)
        # Who changes something is answered at once.
        answered = int(pipeline.status.get("observedGeneration") or 0) == pipeline.generation
        told = outage.told(now) if answered and not pipeline.is_deleting else outage.error
        self.error = told
        if told is not None:
            self._try_to_say([held_up(told)], now)
        return outage.wait(now)

    def _trouble(self, error: Exception, now: float) -> float:
        """Says what keeps the pipeline from going on, and when to try again."""
        name = self.pipeline.name
        if not isinstance(error, ZhongjingError):
            # A defect with one pipeline must not end the others.
            unexpected = ZhongjingError(f"{type(error).__name__}: {error}", code=UNEXPECTED)
            if self._repeats.say(name, unexpected.message, logging.ERROR):
                logger.error("%s: unexpected error", name, exc_info=error)
            error = unexpected
        else:
            starts = held_up(error).reason == CLUSTER_STARTING
            self._repeats.say(name, sentence(error), logging.INFO if starts else logging.WARNING)
        self.error = error
        if isinstance(error, BackendUnavailableError):
            return _TROUBLE_SECONDS  # the condition says so already
        since = self._failing_since = self._failing_since or now
        if isinstance(error, StorageUnavailableError) and now - since < SILENCE_SECONDS:
            return _TROUBLE_SECONDS  # a single request failed: the store as a whole answers
        self._try_to_say([held_up(error)], now)
        return _TROUBLE_SECONDS if isinstance(error, TransientError) else _DEFECT_SECONDS

    def _try_to_say(self, actions: list[Action], now: float) -> None:
        try:
            self._say(self.records.read(), actions, now)
        except ConflictError:
            raise
        except Exception as error:
            self._repeats.say(f"{self.pipeline.name}: its status", f"could not be written: {error}")

    def _say(self, status: PipelineStatus, actions: list[Action], now: float) -> None:
        after = apply(status, actions, now)
        if after != status:
            after = after.model_copy(update={"updated_at": stamp(now)})
        self.records.write_status(after, self.pipeline.version)


def _suspended(pipeline: Pipeline) -> list[Action]:
    """Settles a pipeline of which nothing runs as suspended, as a pass would."""
    idle = (StageState.PENDING.value, StageState.WAITING_FOR_INPUT.value)
    stages = [
        Stage(name)
        for name, entry in (pipeline.status.get("stages") or {}).items()
        if name in set(Stage) and entry.get("state") in idle
    ]
    marks = [Mark(stage, StageState.PENDING, "Suspended", "the pipeline is suspended") for stage in stages]
    return [Adopt(pipeline.generation), *marks, SUSPENDED]
