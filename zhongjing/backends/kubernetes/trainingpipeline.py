"""TrainingPipeline objects: what they say, how they are read, and the few writes that there are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES, Object
from zhongjing.codes.command import UNKNOWN_PIPELINE
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.pipeline import API_GROUP, API_VERSION, KIND
from zhongjing.errors import ConfigError, ConflictError, ObjectConflictError, ObjectNotFoundError
from zhongjing.pipeline.state import ConditionType

FINALIZER = f"{API_GROUP}/artifacts"
"""Keeps an object until its artifacts are deleted. Only objects with deletionPolicy Delete have it."""

ORIGIN_ANNOTATION = f"{API_GROUP}/origin"
"""Names the file or recipe that the document was written in; no part of the document."""

REFRESH_ANNOTATION = f"{API_GROUP}/refresh-data"
"""A new value has the sources listed anew at the next generation. ``submit --refresh-data`` sets it."""

FIELD_MANAGER = "zhongjing-controller"

RECENT_SECONDS = 0.5
"""A command that shows a run asks for its parts one after the other: they are of one object."""


class Pipeline:
    """One object, as the API sent it. Nothing in it is trusted to be valid but name and metadata."""

    def __init__(self, raw: Object) -> None:
        self.raw = raw
        self.metadata: Object = raw["metadata"]
        self.name = str(self.metadata.get("name", ""))
        self.namespace = str(self.metadata.get("namespace", ""))
        self.uid = str(self.metadata.get("uid", ""))
        self.short_uid = self.uid[:8]  # part of the ids of all jobs
        self.generation = int(self.metadata.get("generation") or 1)  # raised whenever `spec` changes
        self.version = str(self.metadata.get("resourceVersion", ""))  # a write must name the current one
        self.created = str(self.metadata.get("creationTimestamp") or "")
        self.is_deleting = bool(self.metadata.get("deletionTimestamp"))  # only finalizers keep it then
        self.has_finalizer = FINALIZER in (self.metadata.get("finalizers") or [])
        self.spec: Object = raw.get("spec") or {}
        self.status: Object = raw.get("status") or {}  # empty until a controller has seen the pipeline
        self.suspend = self.spec.get("suspend") is True
        self.priority = self.spec["priority"] if isinstance(self.spec.get("priority"), int) else 0
        self.managed_by: str | None = self.spec.get("managedBy") or None  # the release that it asks for
        self.release: str | None = self.status.get("release") or None  # the release that took it up
        self.deletes_artifacts = self.spec.get("deletionPolicy") == "Delete"

    @property
    def is_active(self) -> bool:
        """Whether an attempt may be alive, by its status."""
        stages = self.status.get("stages") or {}
        return any(each.get("state") in ("Queued", "Running") for each in stages.values())

    def condition(self) -> Object | None:
        """The condition that holds."""
        conditions = self.status.get("conditions") or []
        return next((each for each in conditions if each.get("status") == "True"), None)

    def holds(self, type_: ConditionType) -> bool:
        """Whether the condition ``type_`` holds."""
        condition = self.condition()
        return condition is not None and condition.get("type") == type_.value

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be done until its ``spec`` changes."""
        condition = self.condition()
        if condition is None or int(self.status.get("observedGeneration") or 0) != self.generation:
            return False
        return condition["type"] != ConditionType.PROGRESSING.value and not self.is_active

    def document(self) -> dict[str, Any]:
        """The document as written, for :func:`zhongjing.config.resolve.resolve`."""
        metadata = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": dict(self.metadata.get("labels") or {}),
            # What kubectl keeps there is the document again.
            "annotations": {
                key: value
                for key, value in (self.metadata.get("annotations") or {}).items()
                if not key.startswith("kubectl.kubernetes.io/") and key != ORIGIN_ANNOTATION
            },
        }
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": self.spec}


class Pipelines:
    """The TrainingPipelines of one namespace."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api

    def find(self) -> tuple[list[Pipeline], str]:
        """All objects, and the version to watch from.

        Raises:
            BackendError: the API does not answer, refuses, or has no such kind (``CrdMissing``).
        """
        listing = self.api.find(PIPELINES)
        return [Pipeline(item) for item in listing.items], listing.resource_version

    def get(self, name: str) -> Pipeline | None:
        """An object, or None if there is none."""
        found = self.api.get(PIPELINES, name)
        return Pipeline(found) if found is not None else None

    def write_status(self, pipeline: Pipeline, status: Object) -> Pipeline:
        """Writes ``status`` over the version that ``pipeline`` is of.

        Raises:
            ConflictError: the object has changed in between, or is gone.
        """
        keep = ("name", "namespace", "uid", "resourceVersion")
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {key: pipeline.metadata[key] for key in keep},
            # The whole object is validated, also where only its status is written.
            "spec": pipeline.spec,
            "status": status,
        }
        try:
            return Pipeline(self.api.replace(PIPELINES, body, subresource="status"))
        except ObjectNotFoundError as error:
            raise ConflictError(f"{pipeline.name} is gone", code=CONFLICT, where=error.where) from error
        except ObjectConflictError as error:
            raise ConflictError(error.message, code=CONFLICT, where=error.where) from error

    def set_finalizer(self, pipeline: Pipeline, wanted: bool) -> Pipeline | None:
        """Adds or removes :data:`FINALIZER`; None if the object is gone (after it, nothing keeps it).

        Raises:
            ObjectConflictError: the object has changed in between.
        """
        others = [each for each in pipeline.metadata.get("finalizers") or [] if each != FINALIZER]
        finalizers = [*others, FINALIZER] if wanted else others
        patch = {"metadata": {"finalizers": finalizers, "resourceVersion": pipeline.version}}
        try:
            changed = Pipeline(self.api.patch(PIPELINES, pipeline.name, patch, field_manager=FIELD_MANAGER))
        except ObjectNotFoundError:
            return None
        return None if changed.is_deleting and not finalizers else changed

    def delete(self, pipeline: Pipeline) -> bool:
        """Deletes the object; False if it is gone already.

        Raises:
            ObjectConflictError: another object has the name now.
        """
        return self.api.delete(PIPELINES, pipeline.name, uid=pipeline.uid)


class PipelineReader:
    """The TrainingPipelines of a release."""

    def __init__(self, api: KubeApi, release: str) -> None:
        self._pipelines = Pipelines(api)
        self._mine = (None, release)
        self._recent: tuple[float, Pipeline] | None = None
        self._still: dict[str, Pipeline] | None = None

    def mine(self) -> list[Pipeline]:
        """The pipelines of the release, and those that no release has taken up yet."""
        if self._still is not None:
            return list(self._still.values())
        found, _ = self._pipelines.find()
        return [each for each in found if (each.managed_by or each.release) in self._mine]

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """While entered, all pipelines are seen as they were at its beginning, by one request."""
        self._still = {each.name: each for each in self.mine()}
        try:
            yield
        finally:
            self._still = None

    def get(self, name: str, *, recent: bool = False) -> Pipeline | None:
        """A pipeline, or None if there is none; ``recent``: an object that was just read will do."""
        if self._still is not None:
            return self._still.get(name)
        if recent and self._recent is not None:
            seen, pipeline = self._recent
            if pipeline.name == name and time.monotonic() - seen < RECENT_SECONDS:
                return pipeline
        found = self._pipelines.get(name)
        self._recent = (time.monotonic(), found) if found is not None else None
        return found

    def there(self, name: str) -> Pipeline:
        """A pipeline that must be there.

        Raises:
            ConfigError: it is not.
        """
        found = self.get(name)
        if found is None:
            raise ConfigError(
                f"there is no pipeline {name!r}",
                code=UNKNOWN_PIPELINE,
                remedy="`zhongjing status` lists them",
            )
        return found

    def take(self, pipeline: Pipeline) -> None:
        """Goes on with the object that a write returned."""
        self._recent = (time.monotonic(), pipeline)
