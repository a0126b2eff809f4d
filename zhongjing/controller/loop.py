"""The loop: passes over all pipelines of the namespace, one after the other.

One thread, level-triggered: what is to be done follows from what is there now, so a pass may be missed,
repeated or broken off. Pipelines that are settled cost nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from zhongjing.backends.kubernetes.demand import WorkerMemory
from zhongjing.backends.kubernetes.events import Recorder, transitions
from zhongjing.backends.kubernetes.releases import CONFIG_LABELS
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.backends.kubernetes.workloads import INSTANCE
from zhongjing.config.release import ReleaseConfig
from zhongjing.controller.fencing import FencedBackend, RayCluster
from zhongjing.controller.finalizers import is_expired, lacks_finalizer, remove_artifacts
from zhongjing.controller.gate import ReleaseGate
from zhongjing.controller.inventory import Inventory
from zhongjing.controller.metrics import Metrics
from zhongjing.controller.orphans import Orphans
from zhongjing.controller.outage import Outage
from zhongjing.controller.pipeline_reconciler import PipelineReconciler
from zhongjing.controller.queue import holds_cluster, is_ours, is_queued, is_refused, preparing, queue_order
from zhongjing.controller.services import Services
from zhongjing.controller.spec import Specs
from zhongjing.controller.store import ReleaseStore
from zhongjing.errors import BackendError, ConflictError, ObjectConflictError, ZhongjingError
from zhongjing.pipeline.faults import sentence
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.pipeline.repeats import Repeats
from zhongjing.pipeline.state import PipelineStatus

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 20.0
CADENCE = Cadence(active=2.0, waiting=20.0)
PASS_SECONDS = 5.0  # a longer pass is broken off, and the next begins with the pipeline that has the cluster
_SHORTEST = 0.05
_UNREACHABLE_SECONDS = 3.0
_DEFECT_SECONDS = 20.0
_ROUND = "a pass over the pipelines failed"


class Controller:
    """Drives the pipelines of one release, while ``may_act`` says that this process leads.

    Every ``resync_seconds`` the API's objects are listed in full.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        release: ReleaseConfig,
        store: ReleaseStore,
        ray: RayCluster,
        *,
        may_act: Callable[[], bool],
        recorder: Recorder,
        metrics: Metrics,
        policy: Policy,
        cadence: Cadence = CADENCE,
        resync_seconds: float = RESYNC_SECONDS,
    ) -> None:
        self._release = release
        self._may_act = may_act
        self._recorder = recorder
        self._metrics = metrics
        self._pipelines = pipelines
        self.inventory = Inventory(pipelines, resync_seconds)
        self._outage = Outage(store.ask)
        self._services = Services(
            pipelines=pipelines,
            store=store.objects,
            outage=self._outage,
            specs=Specs(store.objects, store.storage),
            backend=FencedBackend(ray.jobs, release.release, may_act),
            gate=ReleaseGate(
                release.ray.groups if ray.capacity is not None else None,
                WorkerMemory(pipelines.api, release),
                store.objects,
            ),
            release=release.release,
            policy=policy,
            cadence=cadence,
            may_act=may_act,
            on_change=self._tell,
        )
        self._resync = resync_seconds
        self._store = store
        self._ray = ray
        self._orphans = Orphans(ray.jobs, self._services, release)
        self._reconcilers: dict[str, PipelineReconciler] = {}
        self._repeats = Repeats(logger)
        self.beat = time.monotonic()

    def run(self, ending: threading.Event) -> None:
        """Passes, until this process ends or does not lead any more."""
        self.inventory.start()
        try:
            while not ending.is_set() and self._may_act():
                wait = self.once()
                self.beat = time.monotonic()
                if not ending.is_set():
                    self.inventory.wait(wait)
        finally:
            self.inventory.close()

    def once(self) -> float:
        """One pass over everything; seconds until the next is due. Raises nothing that may pass."""
        began = time.monotonic()
        try:
            wait = self._pass(time.time)
            self._repeats.forget(_ROUND)
        except Exception as error:
            self._report(_ROUND, error)
            self.inventory.expire()
            wait = _UNREACHABLE_SECONDS if isinstance(error, ZhongjingError) else _DEFECT_SECONDS
        self._metrics.passed(time.monotonic() - began)
        return wait

    def _pass(self, clock: Callable[[], float]) -> float:
        listed = self.inventory.refresh()
        everything = self.inventory.all()
        now = clock()  # read last: nothing starts before the object that asks for it was made
        gone = self._forget(everything)
        others = self._others(everything)
        ours = [each for each in everything if is_ours(each, self._release.release, others)]
        self._orphans.look(ours, now, force=listed or gone)
        holder = self._orphans.holder
        times = [self._services.cadence.active] if holder is not None else []
        todo = queue_order(each for each in ours if self._has_work(each, now))
        # A new release's bucket is made before it is used, and an outage can end while no pipeline works.
        if todo or self._outage.holds or not self._store.is_ready:
            self._store.follow_keys()
            self._outage.look(now)
        if self._outage.holds:
            times.append(self._outage.wait(now))
        ends = time.monotonic() + PASS_SECONDS
        for pipeline in todo:
            # While the store is away a pipeline only gets a condition, which takes no time.
            late = time.monotonic() > ends and not self._outage.holds
            if late or not self._may_act():
                times.append(_SHORTEST)
                break
            self.beat = time.monotonic()
            after = self._attend(pipeline, holder, now)
            if after is None:
                continue
            if holder is None and holds_cluster(after):
                holder = after.name
            due = self._reconcilers[after.uid].due if after.uid in self._reconcilers else None
            if due is not None:
                times.append(due - time.time())
            if after.is_deleting and after.has_finalizer and not after.is_active:
                # What is left is to delete its artifacts: now, if it has just stopped.
                times.append(_SHORTEST if pipeline.is_active else _UNREACHABLE_SECONDS)
        mine = self._release.release
        now_ours = [each for each in self.inventory.all() if is_ours(each, mine, others)]
        self._metrics.count(now_ours, holder is not None, self._ray.worker_pods)
        if listed:
            job = next((found for each in now_ours if (found := preparing(each)) is not None), None)
            try:
                self._ray.look_after(
                    busy=holder is not None and job is None,
                    preparing=job,
                    verification=self._orphans.verification,
                )
            except BackendError as error:
                self._report("Ray's pods", error)  # one workload that was just deleted, say
        return max(_SHORTEST, min([*times, self._resync]))

    def _has_work(self, pipeline: Pipeline, now: float) -> bool:
        """Whether the pipeline is to be looked at; if not, it costs nothing."""
        return (
            not pipeline.is_settled
            or self._looks_again(pipeline)
            or pipeline.is_deleting
            or lacks_finalizer(pipeline)
            or is_expired(pipeline, now)
        )

    def _looks_again(self, pipeline: Pipeline) -> bool:
        """Whether a refused document is looked at once more: this controller may be another version."""
        return pipeline.uid not in self._reconcilers and is_refused(pipeline)

    def _attend(self, pipeline: Pipeline, holder: str | None, now: float) -> Pipeline | None:
        """Does what one pipeline needs; the object afterwards, None when it is gone."""
        try:
            after = self._upkeep(pipeline, now)
            # Of an object that is being deleted only what still runs is of interest.
            ends = after is not None and after.is_deleting and not after.is_active
            if after is not None and not ends and (self._looks_again(after) or not after.is_settled):
                after = self._reconcile(after, holder, now)
        except (ConflictError, ObjectConflictError) as error:
            logger.info("%s: %s; reading it again", pipeline.name, error.message)
            self.inventory.expire()
            # What was written before the conflict counts.
            reconciler = self._reconcilers.get(pipeline.uid)
            return reconciler.pipeline if reconciler is not None else pipeline
        except Exception as error:
            # The API refuses just this object, a newer release wrote its status, or there is a defect: the
            # others go on.
            self._report(pipeline.name, error)
            return pipeline
        if after is None:
            self.inventory.remove(pipeline)
        else:
            self.inventory.put(after)
        return after

    def _report(self, subject: str, error: Exception) -> None:
        """Logs and counts what broke off a pass, or the part of it that was about one subject."""
        known = isinstance(error, ZhongjingError)
        text = sentence(error) if isinstance(error, ZhongjingError) else f"{type(error).__name__}: {error}"
        if self._repeats.say(subject, text, logging.WARNING if known else logging.ERROR) and not known:
            logger.error("%s: unexpected error", subject, exc_info=error)
        self._metrics.fail()

    def _upkeep(self, pipeline: Pipeline, now: float) -> Pipeline | None:
        """Finalizer, time to live, and the last steps of a deletion."""
        if lacks_finalizer(pipeline):
            return self._pipelines.set_finalizer(pipeline, pipeline.deletes_artifacts)
        if is_expired(pipeline, now):
            logger.info("%s: ttlSecondsAfterFinished is over, deleting it", pipeline.name)
            self._pipelines.delete(pipeline)
            self.inventory.expire()
        elif pipeline.is_deleting and pipeline.has_finalizer and not pipeline.is_active:
            if self._outage.holds:
                return pipeline
            try:
                remove_artifacts(self._services, pipeline)
            except ZhongjingError as error:
                if not self._outage.explains(error, now):
                    self._repeats.say(pipeline.name, f"its artifacts could not be deleted: {error.message}")
                return pipeline
            return self._pipelines.set_finalizer(pipeline, False)
        return pipeline

    def _reconcile(self, pipeline: Pipeline, holder: str | None, now: float) -> Pipeline:
        blocked_by = f"waits for {holder}" if holder is not None else None
        reconciler = self._reconcilers.get(pipeline.uid)
        if reconciler is None:
            if blocked_by is not None and is_queued(pipeline, blocked_by):
                return pipeline  # nothing is new since the last controller said so
            reconciler = self._reconcilers[pipeline.uid] = PipelineReconciler(self._services, pipeline)
        if reconciler.is_due(pipeline, blocked_by, now):
            reconciler.reconcile(pipeline, blocked_by, now)
            if reconciler.error is not None:
                self._metrics.fail()
        return reconciler.pipeline

    def _forget(self, everything: Sequence[Pipeline]) -> bool:
        """Lets go of pipelines that are gone; whether there were any."""
        there = {each.uid for each in everything}
        gone = [uid for uid in self._reconcilers if uid not in there]
        for uid in gone:
            logger.info("%s: deleted", self._reconcilers[uid].pipeline.name)
            del self._reconcilers[uid]
            self._services.specs.forget(uid)
        return bool(gone)

    def _others(self, everything: Sequence[Pipeline]) -> frozenset[str]:
        """Releases that are installed beside this one; asked for only where it matters."""
        mine = self._release.release
        if all(each.managed_by is not None or each.release in (None, mine) for each in everything):
            return frozenset()
        found = self._pipelines.api.find(CONFIG_MAPS, labels=CONFIG_LABELS).items
        names = {str((each["metadata"].get("labels") or {}).get(INSTANCE) or "") for each in found}
        return frozenset(names - {mine})

    def _tell(self, pipeline: Pipeline, before: PipelineStatus, after: PipelineStatus) -> None:
        for note in transitions(before, after):
            self._recorder.tell(pipeline, note)
