"""TrainingPipeline objects: what they say, and the few writes that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES, Object
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.pipeline import API_GROUP, API_VERSION, KIND
from zhongjing.errors import ConflictError, ObjectConflictError, ObjectNotFoundError
from zhongjing.pipeline.state import ConditionType

FINALIZER = f"{API_GROUP}/artifacts"
"""Keeps an object until its artifacts are deleted. Only objects with deletionPolicy Delete have it."""

ORIGIN_ANNOTATION = f"{API_GROUP}/origin"
"""Names the file or recipe that the document was written in; no part of the document."""

REFRESH_ANNOTATION = f"{API_GROUP}/refresh-data"
"""A new value has the sources listed anew at the next generation. ``submit --refresh-data`` sets it."""

FIELD_MANAGER = "zhongjing-controller"


@dataclass(frozen=True)
class Pipeline:
    """One object, as the API sent it. Nothing in it is trusted to be valid but name and metadata."""

    raw: Object

    @property
    def metadata(self) -> Object:
        """``metadata``."""
        return cast(Object, self.raw["metadata"])

    @property
    def name(self) -> str:
        """Name of the object and of the pipeline."""
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        """Namespace."""
        return str(self.metadata["namespace"])

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.metadata["uid"])

    @property
    def short_uid(self) -> str:
        """First eight hex digits of the uid: part of the ids of all jobs."""
        return self.uid[:8]

    @property
    def generation(self) -> int:
        """Raised by the API server whenever ``spec`` changes."""
        return int(self.metadata.get("generation") or 1)

    @property
    def version(self) -> str:
        """Resource version: a write must name the current one."""
        return str(self.metadata["resourceVersion"])

    @property
    def created(self) -> str:
        """Time of creation, ISO 8601."""
        return str(self.metadata.get("creationTimestamp") or "")

    @property
    def is_deleting(self) -> bool:
        """Whether somebody deleted it, and only finalizers keep it."""
        return bool(self.metadata.get("deletionTimestamp"))

    @property
    def has_finalizer(self) -> bool:
        """Whether it waits for its artifacts to be deleted."""
        return FINALIZER in (self.metadata.get("finalizers") or [])

    @property
    def spec(self) -> Object:
        """``spec`` as written."""
        return self.raw.get("spec") or {}

    @property
    def status(self) -> Object:
        """``status``; empty where nobody has looked at the pipeline yet."""
        return self.raw.get("status") or {}

    @property
    def priority(self) -> int:
        """The highest runs first."""
        value = self.spec.get("priority")
        return value if isinstance(value, int) else 0

    @property
    def suspend(self) -> bool:
        """Whether it shall stop with a checkpoint."""
        return self.spec.get("suspend") is True

    @property
    def managed_by(self) -> str | None:
        """The release that it asks for."""
        return self.spec.get("managedBy") or None

    @property
    def release(self) -> str | None:
        """The release that took it up."""
        return self.status.get("release") or None

    @property
    def deletes_artifacts(self) -> bool:
        """Whether its artifacts go with it."""
        return self.spec.get("deletionPolicy") == "Delete"

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
    """The TrainingPipelines of one namespace.

    Args:
        api: its namespace is the one.
    """

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
            ConflictError: somebody else wrote in between, or the object is gone.
            BackendError: the API does not answer or refuses.
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
            ObjectConflictError: somebody else wrote in between.
            BackendError: the API does not answer or refuses.
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
            BackendError: the API does not answer or refuses.
        """
        return self.api.delete(PIPELINES, pipeline.name, uid=pipeline.uid)
