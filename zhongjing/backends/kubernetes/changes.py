"""Changes of TrainingPipeline objects: what is to be written, and what a refusal of the API server means."""

from __future__ import annotations

import re

from zhongjing.backends.kubernetes.pipelines import Pipeline
from zhongjing.backends.kubernetes.resources import Object
from zhongjing.codes import cluster as cluster_codes
from zhongjing.codes import document as document_codes
from zhongjing.errors import BackendError, ConfigError, ZhongjingError

_UNKNOWN = re.compile(r'unknown field "(?P<path>[^"]+)"')
_INVALID = re.compile(r'^TrainingPipeline\S* "[^"]*" is invalid: ')
# What the words of a rule end with is said by the code's remedy.
_ADVICE = re.compile(r": suspend the pipeline first.*$", re.DOTALL)


def changes(there: Pipeline, wanted: Object) -> list[Object]:
    """The JSON patch that makes an object want the same as ``wanted``; empty where it does already.

    Labels and annotations of others stay, and so does a ``storage`` that was written by hand. The patch is
    refused when somebody changed the ``spec`` in between; changes of the status do not matter.
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
