"""Between a desired state and a TrainingPipeline object.

The object holds what was written and no default: the controller fills those in and freezes them. It names
nothing of the machine that it was submitted from.
"""

from __future__ import annotations

import re

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.trainingpipeline import ORIGIN_ANNOTATION, Pipeline
from zhongjing.codes import cluster as cluster_codes
from zhongjing.codes import document as document_codes
from zhongjing.config.pipeline import API_VERSION, KIND, Metadata, PipelineSpec, TrainingPipeline
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.resolve import UserDocument, resolve
from zhongjing.config.sources import Base, TinyBase
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, ZhongjingError
from zhongjing.pipeline import graph
from zhongjing.pipeline.prepare import defaults_of
from zhongjing.pipeline.state import DesiredState, placed, stamp

_UNKNOWN = re.compile(r'unknown field "(?P<path>[^"]+)"')
_INVALID = re.compile(r'^TrainingPipeline\S* "[^"]*" is invalid: ')
# What the words of a rule end with is said by the code's remedy.
_ADVICE = re.compile(r": suspend the pipeline first.*$", re.DOTALL)

# Set from the desired state, or decided by the release (storage).
_OWN = ("storage", "targets", "reruns", "suspend")


def to_object(desired: DesiredState) -> Object:
    """The manifest of the desired state, for ``kubectl apply``.

    Raises:
        ConfigError: what was written is no valid document.
    """
    written = resolve(desired.user).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    spec = {name: value for name, value in written["spec"].items() if name not in _OWN}
    spec["targets"] = [stage.value for stage in desired.targets]
    reruns = {stage: count for stage, count in desired.reruns.items() if count}
    if reruns:
        spec["reruns"] = {stage.value: count for stage, count in reruns.items()}
    if desired.suspend:
        spec["suspend"] = True
    metadata: Object = {"name": desired.pipeline, "namespace": desired.namespace}
    for name in ("labels", "annotations"):
        if written["metadata"].get(name):
            metadata[name] = dict(written["metadata"][name])
    if desired.origin:
        metadata["annotations"] = {**metadata.get("annotations", {}), ORIGIN_ANNOTATION: desired.origin}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def to_desired(
    pipeline: Pipeline, release: ReleaseConfig, stored: DesiredState | None = None
) -> DesiredState:
    """The desired state of an object.

    Args:
        pipeline: the object.
        release: where it runs.
        stored: what the controller made of the object, now or of an earlier generation, where that was read:
            it has the listings of sources, which the object does not hold.
    """
    if stored is not None and stored.uid != pipeline.short_uid:
        stored = None  # of an object of the same name that was deleted
    written = pipeline.document()
    origin = str((pipeline.metadata.get("annotations") or {}).get(ORIGIN_ANNOTATION) or "")
    if stored is not None and stored.generation == pipeline.generation:
        return stored.model_copy(update={"user": written, "origin": origin})
    document = placed(_document(pipeline, written, stored), release.namespace, release.storage.storage())
    before = {source.name: source.place for source in stored.document.spec.sources} if stored else {}
    same = {source.name for source in document.spec.sources if before.get(source.name) == source.place}
    now = pipeline.created or stamp(0)
    return DesiredState(
        namespace=release.namespace,
        pipeline=pipeline.name,
        uid=pipeline.short_uid,
        generation=pipeline.generation,
        user=written,
        origin=origin,
        document=document,
        sources=[source for source in stored.sources if source.name in same] if stored else [],
        waiting=[name for name in stored.waiting if name in same] if stored else [],
        targets=_targets(document),
        reruns=document.spec.reruns,
        suspend=pipeline.suspend,
        created_at=now,
        updated_at=str(pipeline.status.get("updatedAt") or now),
    )


def _document(pipeline: Pipeline, written: Object, stored: DesiredState | None) -> TrainingPipeline:
    """The complete document of an object: the controller's, else what is known of it here."""
    status = pipeline.status
    resolved = status.get("resolvedSpec")
    if resolved and status.get("observedGeneration") == pipeline.generation:
        written = written | {"spec": resolved}
        frozen = None
    else:
        frozen = defaults_of(stored)
    try:
        return resolve(UserDocument(written, pipeline.name, {}), frozen=frozen)
    except ConfigError:
        # The controller says in a condition what is wrong with it: it must be possible to look at that.
        metadata = Metadata.model_construct(name=pipeline.name)
        spec = PipelineSpec(base=Base(tiny=TinyBase()))
        return TrainingPipeline.model_construct(metadata=metadata, spec=spec)


def _targets(document: TrainingPipeline) -> list[Stage]:
    try:
        return graph.targets(document)
    except ConfigError:
        return []


def changes(there: Pipeline, wanted: Object) -> list[Object]:
    """The JSON patch that makes an object want the same as ``wanted``; empty where it does already.

    Labels and annotations of others stay, and so does a ``storage`` that was written by hand. The patch is
    refused when the ``spec`` has changed in between; changes of the status do not matter.
    """
    spec = dict(wanted["spec"])
    if "storage" in there.spec:
        spec["storage"] = there.spec["storage"]
    if there.spec.get("suspend") is False:
        spec.setdefault("suspend", False)  # of a run that was taken up again
    operations: list[Object] = []
    if spec != there.spec:
        operations.append({"op": "replace", "path": "/spec", "value": spec})
    for name in ("labels", "annotations"):
        new = wanted["metadata"].get(name) or {}
        old = there.metadata.get(name) or {}
        merged = {**old, **new}
        if merged != old:
            operations.append({"op": "add", "path": f"/metadata/{name}", "value": merged})
    if operations:
        fence = {"op": "test", "path": "/metadata/generation", "value": there.generation}
        return [fence, *operations]
    return []


def refusal(error: BackendError, pipeline: str) -> ZhongjingError:
    """What it means that the API server refuses an object: the place in the document, and what to do."""
    if error.code is not cluster_codes.OBJECT_REFUSED:
        return error
    unknown = _UNKNOWN.search(error.message)
    if unknown is not None:
        return ConfigError(
            "the TrainingPipelines of the cluster have no such field",
            code=document_codes.UNKNOWN_FIELD,
            where=unknown["path"],
            remedy="the cluster's CRD is of another version than this command line: install the same one, or "
            "update the CRD: `kubectl apply --server-side -f helm/files/trainingpipeline-crd.yaml`",
        )
    if not _INVALID.match(error.message):
        return error
    where, _, message = _INVALID.sub("", error.message).strip("[] ").partition(": ")
    kind, _, words = message.partition(": ")
    if kind == "Forbidden":
        return ConfigError(
            _ADVICE.sub("", words),
            code=document_codes.STAGE_RUNS,
            where=where,
            remedy=f"`zhongjing stop {pipeline}`, then submit the changed document",
        )
    return ConfigError(
        f"the cluster refuses the document: {message}", code=document_codes.INVALID_VALUE, where=where
    )
