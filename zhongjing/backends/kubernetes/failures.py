"""Answers of the Kubernetes API that are no success, as our errors."""

from __future__ import annotations

import json
import re
from typing import Any

from zhongjing.backends.kubernetes.resources import PIPELINES, Request, Resource
from zhongjing.codes import cluster as codes
from zhongjing.errors import (
    BackendError,
    BackendUnavailableError,
    ObjectConflictError,
    ObjectNotFoundError,
    ZhongjingError,
)

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# 'User "x" cannot patch resource "pods" in API group "" in the namespace "y"'
_DENIED = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)

_ANONYMOUS = 'User "system:anonymous"'


def refused(status: int, body: str, request: Request) -> ZhongjingError:
    """The error for an answer of that HTTP status; its body is usually a Status object."""
    told = _status(body)
    message = str(told.get("message") or body.strip()[:500] or f"HTTP {status}")
    where = request.where
    if status == 401:
        return BackendError(f"the API refuses the credentials: {message}", code=codes.NOT_LOGGED_IN)
    if status == 403:
        return _forbidden(message, told, where)
    if status == 404:
        return _not_found(message, told, request.resource, where)
    if status == 409:
        return ObjectConflictError(message, code=codes.KUBERNETES_OBJECT_CONFLICT, where=where)
    if status in (400, 405, 413, 415, 422):
        return BackendError(message, code=codes.OBJECT_REFUSED, where=where)
    verb = _VERBS.get(request.method, request.method)
    return BackendUnavailableError(
        f"the API answers {status} to {verb} {where}: {message}", code=codes.API_UNREACHABLE
    )


def unreachable(reason: object, where: str) -> BackendUnavailableError:
    """The error for no answer at all."""
    return BackendUnavailableError(
        f"the Kubernetes API does not answer: {reason}", code=codes.API_UNREACHABLE, where=where
    )


def _status(body: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _forbidden(message: str, told: dict[str, Any], where: str) -> BackendError:
    causes = (told.get("details") or {}).get("causes") or []
    if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return BackendError(message, code=codes.NAMESPACE_TERMINATING, where=where)
    if _ANONYMOUS in message:
        # The client goes on without credentials where a login plugin of the kubeconfig fails.
        return BackendError("the API was given no credentials", code=codes.NOT_LOGGED_IN, where=where)
    denied = _DENIED.search(message)
    if denied is None:
        # A quota or an admission policy, which answer 403 as well.
        return BackendError(message, code=codes.OBJECT_REFUSED, where=where)
    group = f".{denied['group']}" if denied["group"] else ""
    return forbidden(denied["verb"], f"{denied['resource']}{group}", denied["namespace"], where)


def forbidden(
    verb: str, kind: str, namespace: str | None, where: str, *, needed: str | None = None
) -> BackendError:
    """The error for what this user may not do; ``needed`` are the verbs of a Role that allows it."""
    place = f" in the namespace {namespace}" if namespace else " in the whole cluster"
    option = f" -n {namespace}" if namespace else " -A"
    return BackendError(
        f"may not {verb} {kind}{place}",
        code=codes.FORBIDDEN,
        where=where,
        remedy=f"have a Role bound that allows {needed or verb} on {kind}; check it with: "
        f"`kubectl auth can-i {verb} {kind}{option}`",
    )


def _not_found(message: str, told: dict[str, Any], resource: Resource, where: str) -> ZhongjingError:
    # A path that the server does not serve at all has no Status with details of an object.
    if not (told.get("details") or {}).get("name"):
        if resource == PIPELINES:
            return BackendError(
                "the cluster does not know TrainingPipelines", code=codes.CRD_MISSING, where=where
            )
        return BackendError(f"the cluster does not know {resource.full_name}", code=codes.OBJECT_REFUSED)
    return ObjectNotFoundError(message, code=codes.KUBERNETES_OBJECT_NOT_FOUND, where=where)
