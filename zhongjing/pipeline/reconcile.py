"""One pass over one pipeline: read, observe, decide, write the status, act.

The status is written (If-Match) before anything is done outside. Whoever loses that write does nothing, so
two reconcilers cannot both act on one state; whoever dies after it is made good by the next pass, because
every act may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from zhongjing.config.stages import Stage
from zhongjing.errors import (
    BackendError,
    ConflictError,
    StorageError,
    TransientError,
    ZhongjingError,
)
from zhongjing.pipeline.actions import Action, Conclude, Kill, Mark, RequestStop, Submit, fold
from zhongjing.pipeline.backend import Backend, ForeignJobError, JobRequest, JobState
from zhongjing.pipeline.decide import decide
from zhongjing.pipeline.freeze import freeze_source
from zhongjing.pipeline.observe import AttemptView, Observed, Policy, ResultView
from zhongjing.pipeline.plan import make_plan, make_request
from zhongjing.pipeline.state import (
    WAITING_FOR_INPUT,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    StageStatus,
    seconds,
    stamp,
)
from zhongjing.pipeline.stored import Versioned, find_record, read_desired, read_status, write
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, StageManifest
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Progress

logger = logging.getLogger(__name__)

LOG_BYTES = 8 * 2**20  # of a driver's log that is kept; its end, where the reason stands


@dataclass
class _Mark:
    """When the progress of an attempt last changed, by this process's clock."""

    text: str
    since: float
    step: str
    step_since: float


@dataclass
class Watch:
    """What a reconciler remembers between passes. Losing it costs patience, never correctness."""

    marks: dict[str, _Mark] = field(default_factory=dict)
    results: dict[tuple[Stage, str], ResultView] = field(default_factory=dict)
    published: dict[Stage, str] = field(default_factory=dict)
    next_poll: float = 0.0

    def look(self, submission_id: str, progress: Progress | None, now: float) -> _Mark:
        """Notes what an attempt's progress says now."""
        text = progress.updated_at if progress is not None else ""
        step = f"{progress.activity} {progress.step} {progress.message}" if progress is not None else ""
        mark = self.marks.get(submission_id)
        if mark is None:
            mark = self.marks[submission_id] = _Mark(text, now, step, now)
        if mark.text != text:
            mark.text, mark.since = text, now
        if mark.step != step:
            mark.step, mark.step_since = step, now
        return mark


@dataclass(frozen=True)
class Cadence:
    """How long until the next pass, in seconds."""

    active: float = 5.0
    waiting: float = 20.0


def reconcile_once(
    store: ObjectStore,
    layout: Layout,
    backend: Backend,
    now: float,
    *,
    watch: Watch | None = None,
    policy: Policy | None = None,
    cadence: Cadence | None = None,
) -> float | None:
    """One pass over a pipeline.

    Args:
        store: where the pipeline's documents and artifacts are.
        layout: the pipeline.
        backend: where its jobs run.
        now: seconds since the epoch.
        watch: what earlier passes of this process saw.
        policy: times of decisions.
        cadence: times between passes.

    Returns:
        Seconds until the next pass is due, or None if nothing will change until something else is wanted.

    Raises:
        TransientError: store or backend did not answer; the pass may be repeated at any time.
        ConflictError: somebody else wrote the status in between; nothing was done.
        StorageError: ``pipeline.json`` cannot be read.
    """
    watch = watch if watch is not None else Watch()
    policy = policy or Policy()
    wanted = read_desired(store, layout)
    if wanted is None:
        return None
    desired = wanted.value
    stored = read_status(store, layout)
    etag = stored.etag if stored is not None else None
    if stored is None or stored.value.uid != desired.uid:
        status = PipelineStatus(uid=desired.uid)
    else:
        status = stored.value
    before = status
    try:
        status = _take_late(store, layout, desired, status, watch, now, (cadence or Cadence()).waiting)
        observed = _observe(store, layout, backend, desired, status, watch, now)
        actions = decide(desired, status, observed, policy)
    except ZhongjingError as error:
        if isinstance(error, TransientError | BackendError):
            raise
        # What cannot be read must be seen by whoever asks for the status, not only in a log.
        conclusion = Conclude(ConditionType.FAILED, type(error).__name__, str(error), error.remedy)
        actions = [conclusion]
    after = fold(status, actions, now)
    version: Versioned[PipelineStatus] | None = None
    if after != before or stored is None:
        after = after.model_copy(update={"updated_at": stamp(now)})
        version = write(store, layout.status, after, etag)
    after = _perform(store, layout, backend, desired, after, version, actions, now)
    _publish(store, layout, after, watch)
    _keep_logs(store, layout, backend, before, after)
    return _next(after, now, cadence or Cadence())


def _take_late(
    store: ObjectStore,
    layout: Layout,
    desired: DesiredState,
    status: PipelineStatus,
    watch: Watch,
    now: float,
    interval: float,
) -> PipelineStatus:
    """Looks, now and then, whether a waited-for source has come, and freezes it if so."""
    known = {source.name for source in status.sources}
    missing = [name for name in desired.waiting if name not in known]
    stale = any(source.name not in desired.waiting for source in status.sources)
    if stale:
        kept = [source for source in status.sources if source.name in desired.waiting]
        status = status.model_copy(update={"sources": kept})
    if not missing or (now < watch.next_poll and status.observed_generation == desired.generation):
        return status
    watch.next_poll = now + interval
    found: list[FrozenSource] = []
    for name in missing:
        frozen = freeze_source(store, layout, desired.document.spec.source(name))
        if frozen is not None:
            found.append(frozen)
    return status.model_copy(update={"sources": [*status.sources, *found]}) if found else status


def _observe(
    store: ObjectStore,
    layout: Layout,
    backend: Backend,
    desired: DesiredState,
    status: PipelineStatus,
    watch: Watch,
    now: float,
) -> Observed:
    """Looks at jobs, then progress, then manifests. The order matters (:class:`Observed`)."""
    attempts: dict[Stage, AttemptView] = {}
    for stage, entry in status.stages.items():
        if entry.submission_id is None or entry.key is None or entry.state.is_done:
            continue
        job = backend.describe(entry.submission_id)
        progress = find_record(store, layout.stage(stage, entry.key).progress, Progress)
        if progress is not None and progress.attempt != entry.attempt:
            progress = None
        mark = watch.look(entry.submission_id, progress, now)
        attempts[stage] = AttemptView(job, progress, now - mark.since, now - mark.step_since)
    keys = {(stage, node.key) for stage, node in make_plan(desired, status.sources).items()}
    keys |= {(stage, entry.key) for stage, entry in status.stages.items() if entry.state.is_active}
    results: dict[tuple[Stage, str], ResultView] = {}
    for stage, key in keys:
        result = _result(store, layout, stage, key, watch) if key is not None else None
        if result is not None and key is not None:
            results[stage, key] = result
    return Observed(now, results, attempts)


def _result(store: ObjectStore, layout: Layout, stage: Stage, key: str, watch: Watch) -> ResultView | None:
    uri = layout.stage(stage, key).manifest
    known = watch.results.get((stage, key))
    if known is not None:
        return known if store.exists(uri) else None
    manifest = find_record(store, uri, StageManifest)
    if manifest is None:
        return None
    result = ResultView(uri, manifest.model.uri, manifest.attempt, manifest.submission_id)
    watch.results[stage, key] = result
    return result


def _perform(
    store: ObjectStore,
    layout: Layout,
    backend: Backend,
    desired: DesiredState,
    status: PipelineStatus,
    version: Versioned[PipelineStatus] | None,
    actions: Sequence[Action],
    now: float,
) -> PipelineStatus:
    """Does what reaches outside. A submission that the backend refuses fails its stage."""
    for action in actions:
        if isinstance(action, Submit):
            try:
                _submit(store, layout, backend, desired, status, action)
            except ForeignJobError as error:
                logger.warning("%s", error)  # the next pass sees it and takes another id
            except TransientError:
                raise
            except BackendError as error:
                status = _refused(store, layout, status, version, action, error, now)
        elif isinstance(action, RequestStop):
            uri = layout.stage(action.stage, action.key).stop(action.attempt)
            if not store.exists(uri):
                store.put_json(uri, {"reason": action.reason, "requestedAt": stamp(now)})
        elif isinstance(action, Kill):
            logger.info("ending %s", action.submission_id)
            backend.stop(action.submission_id)
    return status


def _submit(
    store: ObjectStore,
    layout: Layout,
    backend: Backend,
    desired: DesiredState,
    status: PipelineStatus,
    action: Submit,
) -> None:
    node = make_plan(desired, status.sources)[action.stage]
    request = make_request(
        desired,
        status.sources,
        node,
        layout,
        attempt=action.attempt,
        submission_id=action.submission_id,
    )
    uri = layout.stage(action.stage, action.key).request(action.attempt)
    store.put_record(uri, request)
    logger.info("submitting %s (%s)", action.submission_id, action.message)
    backend.submit(
        JobRequest(
            submission_id=action.submission_id,
            stage=action.stage,
            request_uri=uri,
            metadata={
                "specHash": action.spec_hash,
                "pipeline": desired.pipeline,
                "namespace": desired.namespace,
                "stage": action.stage.value,
                "key": action.key,
                "attempt": str(action.attempt),
            },
        )
    )


def _refused(
    store: ObjectStore,
    layout: Layout,
    status: PipelineStatus,
    version: Versioned[PipelineStatus] | None,
    action: Submit,
    error: BackendError,
    now: float,
) -> PipelineStatus:
    failed: list[Action] = [
        Mark(action.stage, StageState.FAILED, "SubmissionRefused", error.message, error.remedy),
        Conclude(ConditionType.FAILED, "SubmissionRefused", f"{action.stage}: {error.message}", error.remedy),
    ]
    after = fold(status, failed, now)
    write(store, layout.status, after, version.etag if version is not None else None)
    return after


def _publish(store: ObjectStore, layout: Layout, status: PipelineStatus, watch: Watch) -> None:
    """Points ``current.json`` of each finished stage at the result in use."""
    for stage, entry in status.stages.items():
        if not entry.state.is_done or entry.key is None or watch.published.get(stage) == entry.key:
            continue
        uri = layout.current(stage)
        info = store.head(uri)
        value = {"key": entry.key, "manifestUri": entry.manifest_uri}
        try:
            if info is None:
                store.put_json(uri, value, if_none_match=True)
            elif store.get_json(uri) != value:
                store.put_json(uri, value, if_match=info.etag)
        except ConflictError:
            continue  # the next pass looks again
        watch.published[stage] = entry.key


def _keep_logs(
    store: ObjectStore, layout: Layout, backend: Backend, before: PipelineStatus, after: PipelineStatus
) -> None:
    """Copies the driver's log of each attempt that just ended: a backend forgets, the store does not."""
    for stage, entry in before.stages.items():
        now = after.stage(stage)
        if entry.state.is_active and not now.state.is_active and entry.submission_id and entry.key:
            try:
                if backend.describe(entry.submission_id).state is not JobState.UNKNOWN:
                    store.put(driver_log(layout, stage, entry), _tail(backend, entry.submission_id))
            except (BackendError, StorageError) as error:
                logger.warning("the log of %s could not be kept: %s", entry.submission_id, error)


def driver_log(layout: Layout, stage: Stage, entry: StageStatus) -> str:
    """Where the driver's log of an attempt is kept after its end."""
    assert entry.key is not None
    return f"{layout.stage(stage, entry.key).logs}/a{entry.attempt}/driver.log"


def _tail(backend: Backend, submission_id: str) -> bytes:
    lines: list[bytes] = []
    size = 0
    for line in backend.tail_logs(submission_id):
        data = line.encode() + b"\n"
        lines.append(data)
        size += len(data)
        while size > LOG_BYTES and len(lines) > 1:
            size -= len(lines.pop(0))
    return b"".join(lines)[-LOG_BYTES:]


def _next(status: PipelineStatus, now: float, cadence: Cadence) -> float | None:
    condition = status.condition()
    if condition is None:
        return cadence.active
    if condition.type is not ConditionType.PROGRESSING:
        return None
    if condition.reason == WAITING_FOR_INPUT:
        return cadence.waiting
    times = [
        seconds(entry.next_retry_at) - now
        for entry in status.stages.values()
        if entry.state is StageState.PENDING and entry.next_retry_at is not None
    ]
    if times and not any(entry.state.is_active for entry in status.stages.values()):
        return max(min(*times, cadence.active) if len(times) > 1 else min(times[0], cadence.active), 0.05)
    return cadence.active
