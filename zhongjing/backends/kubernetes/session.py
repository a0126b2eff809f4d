"""Runs in a namespace of a cluster, as commands see them: TrainingPipelines in, their status out.

Looking at a run takes nothing but the right to read TrainingPipelines. The object store is opened when
something in it is asked for (results, logs of the past, uploads), Ray when a log is followed.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Self

from pydantic import ValidationError

from zhongjing.backends.attempts import kill, read_log
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.documents import changes, refusal, to_desired, to_object
from zhongjing.backends.kubernetes.releases import find_release, installed
from zhongjing.backends.kubernetes.resources import PIPELINES, Object
from zhongjing.backends.kubernetes.services import Services
from zhongjing.backends.kubernetes.status_codec import decode, decode_live, progress_of
from zhongjing.backends.kubernetes.trainingpipeline import REFRESH_ANNOTATION, Pipeline, PipelineReader
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
    ObjectConflictError,
    ObjectNotFoundError,
    ZhongjingError,
)
from zhongjing.pipeline.plan import make_plan
from zhongjing.pipeline.records import done_stages, manifest_in_use
from zhongjing.pipeline.state import ConditionType, DesiredState, PipelineStatus, stamp
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, StageManifest
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Progress


class KubernetesSession:
    """The TrainingPipelines of a release. Implements :class:`zhongjing.pipeline.session.Session`.

    Args:
        api: the cluster; its namespace is the release's.
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
        self._reader = PipelineReader(api, release.release)
        self._services = Services(api, release)
        self._stored: dict[tuple[str, int], DesiredState | None] = {}
        self._late: dict[str, FrozenSource] = {}

    @classmethod
    def open(
        cls, *, namespace: str | None = None, context: str | None = None, release: str | None = None
    ) -> KubernetesSession:
        """Finds the release.

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
        """The release's object store, opened when it is first asked for."""
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
        """Names of the pipelines of this release and of those without a release yet; sorted."""
        return sorted(each.name for each in self._reader.mine())

    def snapshot(self) -> AbstractContextManager[None]:
        """While entered, all pipelines are seen as they were at its beginning, by one request."""
        return self._reader.snapshot()

    def desired(self, pipeline: str) -> DesiredState | None:
        """The desired state, with the listings of sources once the store is open; None: no such pipeline."""
        found = self._reader.get(pipeline)
        return self._desired(found) if found is not None else None

    def status(self, pipeline: str) -> PipelineStatus | None:
        """The observed status, or None if the controller has not seen the pipeline yet."""
        found = self._reader.get(pipeline, recent=True)
        if found is None or not found.status:
            return None
        value = found.status if self._services.has_store else {**found.status, "sources": []}
        try:
            return decode(value, found.short_uid, self._listing)
        except (ValidationError, ValueError, KeyError) as error:
            raise ConfigError(
                f"the status of {pipeline} cannot be read: {str(error).splitlines()[0]}",
                code=codes.INVALID_RELEASE,
                where=self._where(pipeline),
            ) from error

    def progress(self, pipeline: str, stage: Stage) -> Progress | None:
        """Live progress of the stage's current attempt, as far as the status has it."""
        found = self._reader.get(pipeline, recent=True)
        live = decode_live(found.status).get(stage) if found is not None else None
        status = self.status(pipeline)
        if live is None or status is None:
            return None
        return progress_of(live, stage, status.stage(stage))

    def manifest(self, pipeline: str, stage: Stage) -> StageManifest | None:
        """The result of a stage that is in use, or None if there is none."""
        return manifest_in_use(self.store, self.layout(pipeline), stage)

    # The desired state

    def apply(self, desired: DesiredState) -> DesiredState:
        """Creates or changes the TrainingPipeline. A desired state that is there already changes nothing.

        A run that ended is tried again.
        """
        name = desired.pipeline
        manifest = self.render(desired)
        there = self._reader.get(name)
        where = self._where(name)
        if there is None:
            if desired.generation != 1:
                raise ConflictError(f"the pipeline {name} was removed", code=CONFLICT, where=where)
            return self._take(self._write(name, lambda: self.api.create(PIPELINES, manifest)))
        if there.is_deleting:
            raise BackendError(
                f"the pipeline {name} is being deleted",
                code=codes.OBJECT_REFUSED,
                where=where,
                remedy="wait until it is gone, and give the command again",
            )
        self._refuse_foreign(there, where)
        changed = ConflictError(
            f"the pipeline {name} was changed by another command", code=CONFLICT, where=where
        )
        if desired.uid != there.short_uid or desired.generation - there.generation not in (0, 1):
            raise changed
        if desired.generation == there.generation:
            return self._take(there)  # attached
        now = there
        if operations := changes(there, manifest):
            try:
                now = self._patch(there, operations)
            except ZhongjingError:
                newer = self._reader.get(name)
                if newer is None or newer.generation != there.generation:
                    raise changed from None
                raise
        if now.generation == there.generation and self._has_ended(now, desired):
            now = self._again(now)
        return self._take(now)

    def render(self, desired: DesiredState) -> Object:
        """The manifest of the desired state, for ``kubectl apply``.

        Raises:
            ConfigError: the document is meant for another release.
        """
        manifest = to_object(desired)
        mine = self.release.release
        asked = manifest["spec"].get("managedBy")
        if asked not in (None, mine):
            raise ConfigError(
                f"the document is for the release {asked}, not for {mine}",
                code=INVALID_REFERENCE,
                where="spec.managedBy",
                remedy=f"add --release {asked}, or take the field out",
            )
        if self._claim:
            manifest["spec"]["managedBy"] = mine
        return manifest

    def check(self, desired: DesiredState) -> None:
        """Has the API server check what :meth:`apply` would write; writes nothing.

        Raises:
            ConfigError: it refuses the document.
            BackendError: the API does not answer, or this user may not.
        """
        manifest = self.render(desired)
        there = self._reader.get(desired.pipeline)
        if there is None:
            self._write(desired.pipeline, lambda: self.api.create(PIPELINES, manifest, dry_run=True))
        elif operations := changes(there, manifest):
            self._patch(there, operations, dry_run=True)

    def with_refresh(self, user: Mapping[str, Any]) -> dict[str, Any]:
        """The document with the wish that its sources are listed anew."""
        metadata = dict(user.get("metadata") or {})
        annotations = {**(metadata.get("annotations") or {}), REFRESH_ANNOTATION: stamp(time.time())}
        return {**user, "metadata": {**metadata, "annotations": annotations}}

    def suspend(self, pipeline: str) -> DesiredState:
        """Has the pipeline stop with a checkpoint; returns at once."""
        return self._take(self._set_suspend(self._reader.there(pipeline), True))

    def kill(self, pipeline: str) -> DesiredState:
        """Suspends the pipeline and ends its running attempt now, without another checkpoint."""
        return kill(self, pipeline, self._services.jobs)

    def resume(self, pipeline: str) -> DesiredState:
        """Has a suspended or failed pipeline go on."""
        there = self._reader.there(pipeline)
        if there.suspend:
            there = self._set_suspend(there, None)
        elif there.is_settled and not there.holds(ConditionType.COMPLETE):
            there = self._again(there)
        return self._take(there)

    # Logs

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        """Lines of the driver's log of an attempt: from Ray while it runs, else from the store."""
        live = partial(self._services.live_log, follow=follow)
        return read_log(self, pipeline, stage, attempt, live, past=False)

    # Being there

    def warm(self) -> None:
        """Nothing is started early: the controller asks for pods when a job needs them."""

    def obstacles(self, *, ignored: bool = False) -> list[str]:
        """What keeps the pods of the release from serving, each with its remedy, the gravest first."""
        from zhongjing.backends.kubernetes.diagnosis import Explainer

        found = Explainer(self.api, self.release).findings()
        if ignored and not found:
            return ["the controller has not seen the pipeline yet"]
        return [f"{finding}\n  remedy: {finding.remedy}" for finding in found]

    def heartbeat(self) -> AbstractContextManager[None]:
        """Nothing is needed: the controller lives by itself."""
        return nullcontext()

    def close(self) -> None:
        """Ends the session and its forwards; pipelines go on."""
        self._services.close()
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # Objects

    def _where(self, pipeline: str) -> str:
        return f"{self.namespace}/{PIPELINES.full_name}/{pipeline}"

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
        self._reader.take(pipeline)
        return self._desired(pipeline)

    def _write(self, name: str, write: Callable[[], Object]) -> Pipeline:
        try:
            return Pipeline(write())
        except ObjectNotFoundError:
            raise
        except ObjectConflictError as error:
            raise ConflictError(error.message, code=CONFLICT, where=error.where) from error
        except BackendError as error:
            raise refusal(error, name) from error

    def _patch(self, there: Pipeline, operations: list[Object], *, dry_run: bool = False) -> Pipeline:
        options: Any = {"kind": "json", "field_manager": "zhongjing-submit", "dry_run": dry_run}
        return self._write(there.name, lambda: self.api.patch(PIPELINES, there.name, operations, **options))

    def _set_suspend(self, there: Pipeline, wanted: bool | None) -> Pipeline:
        patch = {"spec": {"suspend": wanted}}
        try:
            return self._write(there.name, lambda: self.api.patch(PIPELINES, there.name, patch))
        except ObjectNotFoundError:
            raise ConfigError(f"the pipeline {there.name!r} was deleted", code=UNKNOWN_PIPELINE) from None

    def _again(self, there: Pipeline) -> Pipeline:
        """Has the controller take up a run that has ended: it does when ``spec`` changes.

        One write, in which the run is never suspended: ``suspend: false`` is added, or taken away again.
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

    def _desired(self, pipeline: Pipeline) -> DesiredState:
        stored = None
        if self._services.has_store:
            key = (pipeline.uid, int(pipeline.status.get("observedGeneration") or 0))
            if key not in self._stored:
                self._stored[key] = self.store.find_record(self.layout(pipeline.name).desired, DesiredState)
            stored = self._stored[key]
        return to_desired(pipeline, self.release, stored)

    def _listing(self, uri: str) -> FrozenSource:
        if uri not in self._late:
            self._late[uri] = self.store.get_record(uri, FrozenSource)
        return self._late[uri]
