"""Runs in a namespace of a cluster, as commands see them: TrainingPipelines in, their status out.

Looking at a run takes nothing but the right to read TrainingPipelines. The object store is opened when
something in it is asked for (results, logs of the past, uploads), Ray when a log is followed.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.changes import changes, refusal
from zhongjing.backends.kubernetes.codec import decode, decode_live, progress_of
from zhongjing.backends.kubernetes.documents import to_desired, to_object
from zhongjing.backends.kubernetes.looks import Looks
from zhongjing.backends.kubernetes.pipelines import REFRESH_ANNOTATION, Pipeline
from zhongjing.backends.kubernetes.releases import find_release, installed
from zhongjing.backends.kubernetes.resources import PIPELINES, Object
from zhongjing.backends.kubernetes.services import Services
from zhongjing.backends.logs import chosen_attempt, kept_log
from zhongjing.codes import cluster as codes
from zhongjing.codes.command import UNKNOWN_PIPELINE
from zhongjing.codes.document import INVALID_REFERENCE
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import (
    BackendError,
    ConfigError,
    ConflictError,
    NotFoundError,
    ObjectConflictError,
    ObjectNotFoundError,
    TransientError,
    ZhongjingError,
)
from zhongjing.pipeline.context import submission_id
from zhongjing.pipeline.plan import make_plan
from zhongjing.pipeline.records import done_stages, find_record, manifest_in_use
from zhongjing.pipeline.state import ConditionType, DesiredState, PipelineStatus, stamp
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, StageManifest
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Progress

_KILL_SECONDS = 2.0  # so long Ray may take to hear that a job shall end


class KubernetesSession:
    """The TrainingPipelines of a release. Implements :class:`zhongjing.pipeline.session.Session`.

    Args:
        api: the cluster; its namespace is the release's.
        release: what runs them.
        flags: the options by which a command line reaches it.
        claim: whether pipelines applied here name the release (several share the namespace).
    """

    stops_on_interrupt = False
    dashboard_url: str | None = None
    dashboard_login: str | None = None

    def __init__(self, api: KubeApi, release: ReleaseConfig, *, flags: str = "", claim: bool = False) -> None:
        self.api = api
        self.release = release
        self.flags = flags
        self.namespace = release.namespace
        self._claim = claim
        self._looks = Looks(api, release.release)
        self._services = Services(api, release)
        self._stored: dict[tuple[str, int], DesiredState | None] = {}
        self._late: dict[str, FrozenSource] = {}

    @classmethod
    def open(
        cls, *, namespace: str | None = None, context: str | None = None, release: str | None = None
    ) -> KubernetesSession:
        """Finds the release.

        Args:
            namespace: where; None: the namespace of the context.
            context: of the kubeconfig; None: the current one.
            release: its name, where there are several.

        Raises:
            BackendError: no cluster, no release, several of them, or the API does not answer or refuses.
        """
        api = connect(context, namespace)
        try:
            found = find_release(api, release)
        except BaseException:
            api.close()
            raise
        given = {"-n": namespace, "--context": context, "--release": release}
        flags = shlex.join(word for name, value in given.items() if value for word in (name, value))
        return cls(api, found, flags=flags, claim=release is not None)

    # What there is

    @property
    def store(self) -> ObjectStore:
        """The release's object store, opened when it is first asked for.

        Raises:
            BackendError: it cannot be reached, or its credentials cannot be read.
        """
        return self._services.store

    def use(self, store: ObjectStore) -> None:
        """Looks into another store instead: one that shows what will be uploaded."""
        self._services.use(store)

    @property
    def storage(self) -> Storage:
        """The release's storage section: as the pods reach it."""
        return self.release.storage.storage()

    def layout(self, pipeline: str) -> Layout:
        """Where the pipeline's objects are."""
        return Layout(self.release.storage.uri, self.release.namespace, pipeline)

    def pipelines(self) -> list[str]:
        """Names of the TrainingPipelines that are this release's, or nobody's yet; sorted."""
        return sorted(each.name for each in self._looks.mine())

    def snapshot(self) -> AbstractContextManager[None]:
        """While entered, all pipelines are seen as they were at its beginning, by one request."""
        return self._looks.snapshot()

    def desired(self, pipeline: str) -> DesiredState | None:
        """What is wanted, or None if there is no such pipeline.

        Once the store is open, the listings of its sources are part of it.
        """
        found = self._looks.get(pipeline)
        return self._wanted(found) if found is not None else None

    def status(self, pipeline: str) -> PipelineStatus | None:
        """What is so, or None if the controller has not looked at the pipeline yet."""
        found = self._looks.get(pipeline, recent=True)
        if found is None or not found.status:
            return None
        value = found.status if self._services.has_store else {**found.status, "sources": []}
        try:
            return decode(value, found.short_uid, self._listing)
        except (ValidationError, ValueError, KeyError) as error:
            raise ConfigError(
                f"the status of {pipeline} cannot be read: {str(error).splitlines()[0]}",
                code=codes.INVALID_RELEASE,
                where=f"{self.namespace}/{PIPELINES.full_name}/{pipeline}",
            ) from error

    def progress(self, pipeline: str, stage: Stage) -> Progress | None:
        """Live progress of the stage's current attempt, as far as the status has it."""
        found = self._looks.get(pipeline, recent=True)
        live = decode_live(found.status).get(stage) if found is not None else None
        status = self.status(pipeline)
        if live is None or status is None:
            return None
        return progress_of(live, stage, status.stage(stage))

    def manifest(self, pipeline: str, stage: Stage) -> StageManifest | None:
        """The result of a stage that is in use, or None if there is none."""
        return manifest_in_use(self.store, self.layout(pipeline), stage)

    # What is wanted

    def apply(self, desired: DesiredState) -> DesiredState:
        """Creates or changes the TrainingPipeline; returns what is wanted now.

        Who wants what is wanted already changes nothing, and a run that ended is tried again.

        Raises:
            ConfigError: the API server refuses the document, or a running stage reads what would change.
            ConflictError: somebody else changed the pipeline in between; prepare it again.
            BackendError: the API does not answer, or this user may not.
        """
        wanted = self.render(desired)
        there = self._looks.get(desired.pipeline)
        where = f"{self.namespace}/{PIPELINES.full_name}/{desired.pipeline}"
        if there is None:
            if desired.generation != 1:
                raise ConflictError(
                    f"the pipeline {desired.pipeline} was removed", code=CONFLICT, where=where
                )
            return self._take(self._write(desired.pipeline, lambda: self.api.create(PIPELINES, wanted)))
        if there.is_deleting:
            raise BackendError(
                f"the pipeline {desired.pipeline} is being deleted",
                code=codes.OBJECT_REFUSED,
                where=where,
                remedy="wait until it is gone, and give the command again",
            )
        self._refuse_foreign(there, where)
        if desired.uid != there.short_uid or desired.generation not in (
            there.generation,
            there.generation + 1,
        ):
            raise ConflictError(
                f"the pipeline {desired.pipeline} was changed by another command", code=CONFLICT, where=where
            )
        if desired.generation == there.generation:
            return self._take(there)  # attached
        operations = changes(there, wanted)
        now = there
        if operations:
            try:
                now = self._write(
                    desired.pipeline,
                    lambda: self.api.patch(
                        PIPELINES, there.name, operations, kind="json", field_manager="zhongjing-submit"
                    ),
                )
            except ZhongjingError:
                newer = self._looks.get(desired.pipeline)
                if newer is None or newer.generation != there.generation:
                    raise ConflictError(
                        f"the pipeline {desired.pipeline} was changed by another command",
                        code=CONFLICT,
                        where=where,
                    ) from None
                raise
        if now.generation == there.generation and self._has_ended(now, desired):
            now = self._again(now)
        return self._take(now)

    def render(self, desired: DesiredState) -> Object:
        """The object that ``kubectl apply`` would take to want the same.

        Raises:
            ConfigError: the document is meant for another release.
        """
        wanted = to_object(desired)
        mine = self.release.release
        asked = wanted["spec"].get("managedBy")
        if asked not in (None, mine):
            raise ConfigError(
                f"the document is for the release {asked}, not for {mine}",
                code=INVALID_REFERENCE,
                where="spec.managedBy",
                remedy=f"add --release {asked}, or take the field out",
            )
        if self._claim:
            wanted["spec"]["managedBy"] = mine
        return wanted

    def check(self, desired: DesiredState) -> None:
        """Has the API server check what :meth:`apply` would write; writes nothing.

        Raises:
            ConfigError: it refuses the document.
            BackendError: the API does not answer, or this user may not.
        """
        wanted = self.render(desired)
        there = self._looks.get(desired.pipeline)
        if there is None:
            self._write(desired.pipeline, lambda: self.api.create(PIPELINES, wanted, dry_run=True))
            return
        operations = changes(there, wanted)
        if operations:
            self._write(
                desired.pipeline,
                lambda: self.api.patch(PIPELINES, there.name, operations, kind="json", dry_run=True),
            )

    def with_refresh(self, user: Mapping[str, Any]) -> dict[str, Any]:
        """The document with the wish that its sources are listed anew."""
        metadata = dict(user.get("metadata") or {})
        annotations = {**(metadata.get("annotations") or {}), REFRESH_ANNOTATION: stamp(time.time())}
        return {**user, "metadata": {**metadata, "annotations": annotations}}

    def suspend(self, pipeline: str) -> DesiredState:
        """Wants the pipeline stopped with a checkpoint; returns at once."""
        return self._take(self._set_suspend(self._looks.there(pipeline), True))

    def kill(self, pipeline: str) -> DesiredState:
        """Suspends the pipeline and ends its running attempt now; steps since the last checkpoint are lost.

        Ray is asked directly. Where it does not answer within seconds, the controller goes on stopping it.
        """
        desired = self.suspend(pipeline)
        status = self.status(pipeline)
        for entry in status.stages.values() if status is not None else ():
            if entry.state.is_active and entry.submission_id is not None:
                with contextlib.suppress(BackendError):
                    self._services.jobs(_KILL_SECONDS).stop(entry.submission_id)
        return desired

    def resume(self, pipeline: str) -> DesiredState:
        """Wants a suspended or failed pipeline to go on."""
        there = self._looks.there(pipeline)
        if there.suspend:
            there = self._set_suspend(there, None)
        elif there.is_settled and not there.holds(ConditionType.COMPLETE):
            there = self._again(there)
        return self._take(there)

    # Logs

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        """Lines of the driver's log of an attempt (the latest): from Ray while it runs, else from the store.

        Raises:
            ConfigError: the stage has not been run, or there was no such attempt.
            NotFoundError: no log of that attempt was kept.
            BackendError: Ray refuses the token, or its pod cannot be reached and the store has no log either.
        """
        desired, status = self.desired(pipeline), self.status(pipeline)
        number, entry = chosen_attempt(pipeline, status, stage, attempt)
        assert desired is not None, "what has a status was wanted"
        silent: TransientError | None = None
        if entry.state.is_active and number == entry.attempt:
            try:
                live = self._services.live_log(submission_id(desired, stage, number), follow=follow)
                if live is not None:
                    yield from live
                    return
            except TransientError as error:
                silent = error
        try:
            yield from kept_log(self.store, self.layout(pipeline), stage, number, entry.key)
        except NotFoundError:
            if silent is not None:
                raise silent from None
            raise

    # Being there

    def obstacles(self) -> list[str]:
        """What keeps the pods of the release from serving, each with its remedy, the gravest first.

        Raises:
            BackendError: the API does not answer.
        """
        from zhongjing.backends.kubernetes.explain import Explainer

        return [
            f"{finding}\n  remedy: {finding.remedy}"
            for finding in Explainer(self.api, self.release).findings()
        ]

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Nothing is needed: the controller lives by itself."""
        yield

    def close(self) -> None:
        """Ends the session and its forwards; pipelines go on."""
        self._services.close()
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Objects

    def _refuse_foreign(self, there: Pipeline, where: str) -> None:
        owner = there.managed_by or there.release
        if owner not in (None, self.release.release) and owner in installed(self.api):
            raise BackendError(
                f"the pipeline {there.name} belongs to the release {owner}",
                code=codes.SEVERAL_RELEASES,
                where=where,
                remedy=f"add --release {owner}, or give the pipeline another name",
            )

    def _take(self, pipeline: Pipeline) -> DesiredState:
        self._looks.take(pipeline)
        return self._wanted(pipeline)

    def _write(self, name: str, write: Callable[[], Object]) -> Pipeline:
        try:
            return Pipeline(write())
        except ObjectNotFoundError:
            raise
        except ObjectConflictError as error:
            raise ConflictError(error.message, code=CONFLICT, where=error.where) from error
        except BackendError as error:
            raise refusal(error, name) from error

    def _set_suspend(self, there: Pipeline, wanted: bool | None) -> Pipeline:
        patch = {"spec": {"suspend": wanted}}
        try:
            return self._write(there.name, lambda: self.api.patch(PIPELINES, there.name, patch))
        except ObjectNotFoundError:
            raise ConfigError(f"the pipeline {there.name!r} was deleted", code=UNKNOWN_PIPELINE) from None

    def _again(self, there: Pipeline) -> Pipeline:
        """Makes the controller take up a run that has ended: it does when ``spec`` changes.

        One write, so that nobody sees a run suspended that should go on: that it is not suspended is said
        where it was not, and no longer said where it was.
        """
        return self._set_suspend(there, False if "suspend" not in there.spec else None)

    def _has_ended(self, there: Pipeline, desired: DesiredState) -> bool:
        """Whether nothing will be done about a pipeline although not all of its results are there."""
        if not there.is_settled:
            return False
        if not there.holds(ConditionType.COMPLETE):
            return True
        if not self._services.has_store:
            return False  # who may not look into the store has no reason to doubt the status
        status = self.status(there.name)
        plan = make_plan(desired, status.sources if status is not None else ())
        keys = {stage: plan[stage].key for stage in desired.targets}
        return not all(done_stages(self.store, self.layout(there.name), keys).values())

    def _wanted(self, pipeline: Pipeline) -> DesiredState:
        stored = None
        if self._services.has_store:
            key = (pipeline.uid, int(pipeline.status.get("observedGeneration") or 0))
            if key not in self._stored:
                self._stored[key] = find_record(self.store, self.layout(pipeline.name).desired, DesiredState)
            stored = self._stored[key]
        return to_desired(pipeline, self.release, stored)

    def _listing(self, uri: str) -> FrozenSource:
        if uri not in self._late:
            self._late[uri] = self.store.get_record(uri, FrozenSource)
        return self._late[uri]
