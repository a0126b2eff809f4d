"""One pass over one pipeline: read, observe, decide, write the status, act.

The status is written (If-Match) before anything is done outside. A reconciler that loses that write does
nothing, so two of them cannot both act on one state. One that dies after it is made good by the next pass:
every act may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from zhongjing.codes.training import SUBMISSION_REFUSED
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Resources, Stage
from zhongjing.errors import (
    BackendError,
    BackendUnavailableError,
    ConflictError,
    StorageError,
    StorageUnavailableError,
    TransientError,
    ZhongjingError,
)
from zhongjing.pipeline.actions import (
    Action,
    Adopt,
    Conclude,
    Kill,
    Mark,
    RequestStop,
    RequestWorkers,
    Submit,
    apply,
)
from zhongjing.pipeline.attempt_logs import keep_logs, keep_stacks
from zhongjing.pipeline.backend import (
    Backend,
    ForeignJobError,
    ImpossibleJobError,
    JobDescription,
    JobRequest,
    JobState,
)
from zhongjing.pipeline.context import whole
from zhongjing.pipeline.decide import decide
from zhongjing.pipeline.faults import (
    UNREADABLE,
    failed,
    held_up,
    is_documents,
    sentence,
    unavailable,
)
from zhongjing.pipeline.fit import Gate, Unfit
from zhongjing.pipeline.freeze import freeze_source
from zhongjing.pipeline.observe import AttemptView, Observed, Policy, ResultView
from zhongjing.pipeline.plan import Plan, make_plan, make_request
from zhongjing.pipeline.records import Records, StoredRecords
from zhongjing.pipeline.repeats import Repeats
from zhongjing.pipeline.staleness import Staleness
from zhongjing.pipeline.state import (
    QUEUED,
    UNREADY,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    StageStatus,
    seconds,
    stamp,
)
from zhongjing.storage.artifacts import request_stop
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import MadeSource, StageManifest
from zhongjing.storage.objects import ObjectInfo, ObjectStore
from zhongjing.storage.progress import Activity, Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cadence:
    """How long until the next pass, in seconds."""

    active: float = 5.0
    waiting: float = 20.0


class Reconciler:
    """Drives one pipeline. Losing it costs patience (times since it first looked), never correctness.

    Args:
        store, layout: where the pipeline's artifacts are.
        backend: where its jobs run.
        records: where its two documents are; none: in the store.
        policy, cadence: times of decisions, and between passes.
        gate: says which stages cannot fit; none: all are started.
    """

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        backend: Backend,
        *,
        records: Records | None = None,
        policy: Policy | None = None,
        cadence: Cadence | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.records = records or StoredRecords(store, layout)
        self.store = store
        self.layout = layout
        self.backend = backend
        self.policy = policy or Policy()
        self.cadence = cadence or Cadence()
        self._gate = gate
        self.status: PipelineStatus | None = None
        self.document: TrainingPipeline | None = None
        self._staleness = Staleness()
        self._results: dict[tuple[Stage, str], ResultView] = {}
        self._published: dict[Stage, str] = {}
        self._repeats = Repeats(logger)
        self._requests: dict[Stage, ObjectInfo | None] = {}
        self._next_poll = 0.0
        # Of this pass: why the backend did not say how jobs are, and why an action could not be done.
        self._away: BackendUnavailableError | None = None
        self._unready: BackendUnavailableError | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether nothing goes on before something outside changes, as of the last pass."""
        return self.status is not None and self.status.stands_still

    def once(self, now: float, blocked_by: str | None = None) -> float | None:
        """One pass.

        Args:
            now: seconds since the epoch.
            blocked_by: why no stage of this pipeline may start now (others have the cluster); None: one may.

        Returns:
            Seconds until the next pass is due, or None if nothing will change before the desired state does
            or ``blocked_by`` changes.

        Raises:
            StorageUnavailableError: the store did not answer; the pass may be repeated at any time.
            BackendUnavailableError: the backend did not, which is in the status, and all that can be done
                without it was done.
            ConflictError: another writer was first with the status or the request: nothing was submitted.
            ZhongjingError: something else that is not the document's fault keeps the pipeline from going on.
                It is in the status, and the pass may be repeated.
        """
        desired = self.records.desired()
        if desired is None:
            self.status = None
            return None
        self.document = desired.document
        stored = self.records.status()
        before = PipelineStatus(uid=desired.uid)
        if stored is not None and stored.value.uid == desired.uid:
            before = stored.value
        self._away = self._unready = None
        trouble: ZhongjingError | None = None
        status = before
        try:
            status = self._take_late(desired, before, now)
            actions = decide(desired, status, self._observe(desired, status, now, blocked_by), self.policy)
        except (ConflictError, StorageUnavailableError):
            raise
        except ZhongjingError as error:
            # What keeps a pipeline must show in its status, not only in a log.
            actions = [whole(action, self.policy, desired) for action in _held_up(error, desired, status)]
            trouble = None if is_documents(error) else error
        after = apply(status, actions, now)
        # Before the status: who reads there that a stage is done finds its result in use.
        self._publish(after)
        # Before the status, which fences: who is late finds another request than this one.
        self._requests = {
            action.stage: self.store.head(self.layout.stage(action.stage, action.key).request(action.attempt))
            for action in actions
            if isinstance(action, Submit)
        }
        etag = stored.etag if stored is not None else None
        if stored is None or after != before:
            after = after.model_copy(update={"updated_at": stamp(now)})
            etag = self.records.write_status(after, etag)
        self.status = after
        if trouble is not None:
            raise trouble
        news = [new for action in actions for new in self._perform(desired, after, action, now)]
        # As decisions have them: else each pass would write the two forms of one remedy.
        told = apply(after, [whole(action, self.policy, desired) for action in news], now)
        if told != after:
            self.records.write_status(told, etag)
            self.status = after = told
        active = any(entry.state.is_active for entry in after.stages.values())
        unready = self._unready or (self._away if active else None)
        if unready is not None:
            raise unready
        keep_logs(self.store, self.layout, self.backend, before, after)
        return self._next(after, now, blocked_by)

    def _take_late(self, desired: DesiredState, status: PipelineStatus, now: float) -> PipelineStatus:
        """Looks, now and then, whether a waited-for source has come, and freezes it if so."""
        kept = [source for source in status.sources if source.name in desired.waiting]
        if len(kept) != len(status.sources):
            status = status.model_copy(update={"sources": kept})
        missing = [name for name in desired.waiting if name not in {source.name for source in kept}]
        if not missing or (now < self._next_poll and status.observed_generation == desired.generation):
            return status
        self._next_poll = now + self.cadence.waiting
        sources = [desired.document.spec.source(name) for name in missing]
        frozen = [freeze_source(self.store, self.layout, source) for source in sources]
        found = [source for source in frozen if source is not None]
        return status.model_copy(update={"sources": [*kept, *found]}) if found else status

    def _observe(
        self, desired: DesiredState, status: PipelineStatus, now: float, blocked_by: str | None
    ) -> Observed:
        """Looks at jobs, then progress, then manifests. The order matters (:class:`Observed`)."""
        attempts: dict[Stage, AttemptView] = {}
        for stage, entry in status.stages.items():
            if entry.submission_id is None or entry.key is None or entry.state.is_done:
                continue
            job = self._describe(entry.submission_id)
            progress = self._progress(stage, entry.key, entry)
            quiet, stuck = self._staleness.look(entry.submission_id, progress, now)
            attempts[stage] = AttemptView(job, progress, quiet, stuck)
        plan = make_plan(desired, status.sources)
        keys = {(stage, node.key) for stage, node in plan.items()}
        keys |= {(stage, entry.key) for stage, entry in status.stages.items() if entry.state.is_active}
        results: dict[tuple[Stage, str], ResultView] = {}
        for stage, key in keys:
            result = self._result(stage, key) if key is not None else None
            if result is not None and key is not None:
                results[stage, key] = result
        waits = blocked_by is not None or desired.suspend
        unfit = {} if waits else self._find_unfit(desired, status, plan, results)
        away = held_up(self._away) if self._away is not None else None
        return Observed(now, results, attempts, blocked_by, unfit, away)

    def _describe(self, submission_id: str) -> JobDescription:
        """State of a job. A backend that did not answer is not asked again in the same pass."""
        if self._away is None:
            try:
                return self.backend.describe(submission_id)
            except BackendUnavailableError as error:
                self._away = error
        return JobDescription(submission_id=submission_id, state=JobState.UNREACHABLE)

    def _progress(self, stage: Stage, key: str, entry: StageStatus) -> Progress | None:
        """What the attempt itself says, if it has said anything yet.

        A record that cannot be read says that it began, and nothing more. A job that lives writes the next
        one in seconds; of one that is dead it never mattered.
        """
        try:
            progress = self.store.find_record(self.layout.stage(stage, key).progress, Progress)
        except StorageError as error:
            if error.code not in UNREADABLE:
                raise
            self._repeats.say(f"progress of {stage}", f"{sentence(error)}; continuing without it")
            return Progress(stage=stage, key=key, attempt=entry.attempt, activity=Activity.STARTING)
        if progress is None or progress.attempt != entry.attempt:
            return None
        if entry.state.is_active:
            self.records.see(stage, progress)
        return progress

    def _find_unfit(
        self,
        desired: DesiredState,
        status: PipelineStatus,
        plan: Plan,
        results: Collection[tuple[Stage, str]],
    ) -> dict[Stage, Unfit]:
        """The stages that cannot fit. Memory is not planned of what was forced, nor of what has run."""
        if self._gate is None or any(entry.state.is_active for entry in status.stages.values()):
            return {}
        document = desired.document
        todo = [node for node in plan.values() if node.wanted and (node.stage, node.key or "") not in results]
        unfit = {each.stage: each for each in self._gate.capacity(document, [node.stage for node in todo])}
        new = []
        for node in todo:
            entry = status.stage(node.stage)
            if not document.spec.force and not (entry.attempt and entry.key == node.key):
                new.append(node.stage)
        planned = self._gate.memory(document, new).unfit if new else ()
        return {each.stage: each for each in planned} | unfit

    def _result(self, stage: Stage, key: str) -> ResultView | None:
        place = self.layout.stage(stage, key)
        known = self._results.get((stage, key))
        if known is not None:
            # A manifest never changes, but a user may have deleted it.
            return known if self.store.exists(place.manifest) else None
        manifest = self.store.find_record(place.manifest, StageManifest)
        if manifest is None:
            return None
        model = None if manifest.model is None else manifest.model.uri
        result = ResultView(place.manifest, model, manifest.attempt, manifest.submission_id)
        self._results[stage, key] = result
        return result

    def _perform(
        self, desired: DesiredState, status: PipelineStatus, action: Action, now: float
    ) -> list[Action]:
        """Does what reaches outside; returns what came of it."""
        if isinstance(action, Submit):
            # What waits for its submission does not hang.
            self._staleness.forget(action.submission_id)
            return self._submit(desired, status, action)
        if isinstance(action, RequestWorkers):
            return self._request_workers(desired, status, action.stage, now)
        if isinstance(action, RequestStop):
            uri = self.layout.stage(action.stage, action.key).stop(action.attempt)
            if not self.store.exists(uri):
                logger.info("asked %s a%d to stop: %s", action.stage, action.attempt, action.message)
                keep_stacks(self.store, self.layout, self.backend, status, action)
                request_stop(self.store, uri, action.reason, action.message)
        elif isinstance(action, Kill):
            try:
                self.backend.stop(action.submission_id)
            except BackendUnavailableError as error:
                self._unready = error  # the next pass ends it
            else:
                self._repeats.say(action.submission_id, "stopped", logging.INFO)
        return []

    def _request_workers(
        self, desired: DesiredState, status: PipelineStatus, stage: Stage, now: float
    ) -> list[Action]:
        """Asks for workers; returns what the stage is to be marked with."""
        entry = status.stage(stage)
        try:
            self.backend.request_workers(self._job(desired, stage, entry))
        except BackendError as error:
            self._staleness.excuse(entry.submission_id, now)  # what waits for workers does not hang
            self._unready = unavailable(error)
            since = entry.waiting_since or stamp(now)
            return _marked(stage, StageState.QUEUED, held_up(error), waiting_since=since)
        if entry.waiting_since is None:
            return []
        return [Mark(stage, StageState.RUNNING, "Running", update=entry.waited(now))]

    def _submit(self, desired: DesiredState, status: PipelineStatus, action: Submit) -> list[Action]:
        """Submits. What cannot be submitted yet is submitted by the next pass, under the same id."""
        stage = action.stage
        plan = make_plan(desired, status.sources)
        node = plan[stage]
        request = make_request(
            desired,
            status.sources,
            node,
            self.layout,
            attempt=action.attempt,
            submission_id=action.submission_id,
            made=self._made(plan) if node.made else None,
        )
        job = self._job(desired, stage, status.stage(stage))
        there = self._requests[stage]
        etag = there.etag if there is not None else None
        self.store.put_record(job.request_uri, request, if_none_match=there is None, if_match=etag)
        try:
            self.backend.submit(job)
        except ForeignJobError as error:
            logger.warning("%s", error)  # the next pass sees it and takes another id
        except BackendUnavailableError as error:
            self._unready = error
            return _marked(stage, StageState.QUEUED, held_up(error))
        except ImpossibleJobError as error:
            # Another release may hold it: the gate looks again.
            why = Conclude(ConditionType.PROGRESSING, error.code.name, sentence(error), error.remedy)
            return _marked(stage, StageState.BLOCKED, why)
        except TransientError:
            raise
        except BackendError as error:
            logger.error("%s", error)
            message, reason = sentence(error), SUBMISSION_REFUSED.name
            return [
                Mark(stage, StageState.FAILED, reason, message, error.remedy),
                Conclude(ConditionType.FAILED, reason, f"{stage}: {message}", error.remedy),
            ]
        else:
            waited = status.stage(stage).reason in UNREADY
            logger.info("submitted %s%s", action.submission_id, "" if waited else f" ({action.message})")
        return []

    def _made(self, plan: Plan) -> dict[str, MadeSource]:
        """The sources that construct made; it is done."""
        key = plan[Stage.CONSTRUCT].key
        assert key is not None
        return self.store.get_record(self.layout.stage(Stage.CONSTRUCT, key).manifest, StageManifest).made

    def _job(self, desired: DesiredState, stage: Stage, entry: StageStatus) -> JobRequest:
        """The job of the attempt in the status."""
        settings = desired.document.spec.stages.get(stage)
        assert entry.submission_id is not None
        assert entry.key is not None
        metadata = {
            "specHash": entry.spec_hash or "",
            "pipeline": desired.pipeline,
            "namespace": desired.namespace,
            "stage": stage.value,
            "key": entry.key,
            "attempt": str(entry.attempt),
        }
        return JobRequest(
            submission_id=entry.submission_id,
            stage=stage,
            request_uri=self.layout.stage(stage, entry.key).request(entry.attempt),
            metadata=metadata,
            workers=0 if settings is None else settings.workers,
            resources=Resources() if settings is None else settings.resources,
        )

    def _publish(self, status: PipelineStatus) -> None:
        """Points ``current.json`` of each finished stage at the result in use."""
        for stage, entry in status.stages.items():
            if not entry.state.is_done or entry.key is None or self._published.get(stage) == entry.key:
                continue
            uri = self.layout.current(stage)
            info = self.store.head(uri)
            value = {"key": entry.key, "manifestUri": entry.manifest_uri}
            try:
                if info is None:
                    self.store.put_json(uri, value, if_none_match=True)
                elif self.store.get_json(uri) != value:
                    self.store.put_json(uri, value, if_match=info.etag)
            except ConflictError:
                continue  # the next pass looks again
            self._published[stage] = entry.key

    def _next(self, status: PipelineStatus, now: float, blocked_by: str | None) -> float | None:
        condition = status.condition()
        if condition is None:
            return self.cadence.active
        if condition.type is not ConditionType.PROGRESSING:
            return None
        if condition.reason == QUEUED and blocked_by is not None:
            return None  # the controller calls again when that changes
        if status.stands_still:
            return self.cadence.waiting
        # A retry time in the past no longer counts: the stage waits for others or for its last attempt.
        retries = [seconds(each.next_retry_at) - now for each in status.stages.values() if each.next_retry_at]
        return max(min([self.cadence.active, *(after for after in retries if after > 0)]), 0.05)


def _held_up(error: ZhongjingError, desired: DesiredState, status: PipelineStatus) -> list[Action]:
    """Says what keeps the pipeline from going on."""
    why = failed(error) if is_documents(error) else held_up(error)
    if isinstance(error, BackendError) or status.observed_generation == desired.generation:
        return [why]
    return [Adopt(desired.generation), why]


def _marked(stage: Stage, state: StageState, why: Conclude, **update: str) -> list[Action]:
    """What holds for a stage, and so for the whole pipeline."""
    return [Mark(stage, state, why.reason, why.message, why.remedy, update), why]
