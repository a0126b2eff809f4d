"""The one place that speaks to the Kubernetes API: clients, timeouts, errors.

Objects are the plain JSON that the API sends. The generated classes of the client are not used: they drop
what they do not know, cost memory, and have nothing to say of custom resources. Writes are checked strictly
(``fieldValidation=Strict``): an unknown field is an error, not silently left out. A status is the exception:
it is written by a controller that may be newer than the definition on the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME, load_incluster_config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger, load_kube_config
from yaml import YAMLError

from zhongjing import __version__
from zhongjing.backends.kubernetes.failures import refused, unreachable
from zhongjing.backends.kubernetes.resources import ACCESS_REVIEWS, Object, Request, Resource
from zhongjing.codes import cluster as codes
from zhongjing.codes.ray import NO_CLUSTER
from zhongjing.errors import BackendError, ObjectNotFoundError

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
_PAGE = 500

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

PatchKind = Literal["merge", "json", "apply"]
_PATCH_TYPES: dict[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True)
class Listing:
    """Objects of a collection and the version of the collection, from which a watch may go on."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True)
class Change:
    """One event of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str
    object: Object


class KubeApi:
    """A Kubernetes API server, as one user sees it. May be used by several threads.

    Every call raises BackendError where the API does not answer, refuses, or does not know the resource.

    Args:
        namespace: where namespaced objects are, unless a call says otherwise.
        context: of the kubeconfig; None inside a cluster.
        seconds: how long a request may take.
    """

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        *,
        context: str | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.context = context
        self._seconds = seconds
        self.requests = 0  # made so far
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """URL of the API server."""
        return str(self.client.configuration.host)

    def close(self) -> None:
        """Ends the connections."""
        self.client.close()

    # Reading

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object | None:
        """An object, or None if there is none."""
        try:
            return self._json(Request("GET", resource, self._place(resource, namespace), name))
        except ObjectNotFoundError:
            return None

    def find(
        self,
        resource: Resource,
        *,
        labels: str | None = None,
        fields: str | None = None,
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> Listing:
        """All objects that match the selectors of labels and fields, page by page."""
        place = None if everywhere else self._place(resource, namespace)
        query: dict[str, Any] = {"limit": _PAGE, "labelSelector": labels, "fieldSelector": fields}
        items: list[Object] = []
        while True:
            page = self._json(Request("GET", resource, place, query=query))
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(items, str(metadata.get("resourceVersion") or ""))
            query = query | {"continue": metadata["continue"]}

    def watch(self, resource: Resource, version: str, *, seconds: float) -> Iterator[Change]:
        """Changes of the collection since ``version``, until ``seconds`` are over or the server ends it.

        A type ERROR says that the version is too old: list again.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": max(1, int(seconds)),
        }
        request = Request("GET", resource, self._place(resource), query=query)
        answer = self._call(request, seconds=seconds + REQUEST_SECONDS)
        rest = b""
        try:
            for chunk in answer.stream(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        event = json.loads(line)
                        yield Change(str(event["type"]), event["object"])
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unreachable(error, self.address) from error
        finally:
            answer.close()

    def serves(self, resource: Resource) -> bool:
        """Whether the cluster knows the kind of objects. Needs no permission."""
        # What a version serves is listed at the path of its collections' parent.
        discovery = Resource(resource.group, resource.version, "", namespaced=False)
        try:
            listed = self._json(Request("GET", discovery))
        except BackendError as error:
            if error.code is codes.OBJECT_REFUSED:
                return False
            raise
        return any(entry.get("name") == resource.plural for entry in listed.get("resources") or [])

    def clock_skew(self) -> float | None:
        """Seconds that this machine's clock is ahead of the API server's; None where it does not tell."""
        before = time.time()
        answer = self._call(Request("GET", Resource("", "v1", "", namespaced=False)))
        middle = (before + time.time()) / 2
        try:
            # A date has whole seconds (RFC 9110, section 5.6.7).
            return middle - parsedate_to_datetime(answer.headers.get("Date") or "").timestamp() - 0.5
        except ValueError:
            return None
        finally:
            answer.close()

    def allows(self, verb: str, resource: Resource, *, subresource: str = "") -> bool:
        """Whether this user may do ``verb`` in the namespace."""
        attributes = {"verb": verb, "group": resource.group, "resource": resource.plural}
        attributes |= {"subresource": subresource} | (
            {"namespace": self.namespace} if resource.namespaced else {}
        )
        review = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        return bool(self.create(ACCESS_REVIEWS, review).get("status", {}).get("allowed"))

    # Writing

    def create(self, resource: Resource, body: Object, *, dry_run: bool = False) -> Object:
        """Makes an object.

        Raises:
            ObjectConflictError: one of that name exists.
        """
        namespace = (body.get("metadata") or {}).get("namespace")
        place = self._place(resource, namespace)
        return self._json(Request("POST", resource, place, query=_writing(dry_run), body=body))

    def replace(
        self, resource: Resource, body: Object, *, subresource: str | None = None, dry_run: bool = False
    ) -> Object:
        """Writes an object over the version that it names (``metadata.resourceVersion``).

        Of a status (``subresource="status"``) the fields that the cluster's definition does not know are left
        out (``fieldValidation=Warn``), and the rest is written: what comes back says what was kept. Source:
        Kubernetes documentation, "Field validation" of the API concepts.

        Raises:
            ObjectConflictError: the object has changed in between.
            ObjectNotFoundError: there is none of that name.
        """
        metadata = body["metadata"]
        place = self._place(resource, metadata.get("namespace"))
        query = _writing(dry_run, validation="Warn" if subresource == "status" else "Strict")
        return self._json(Request("PUT", resource, place, metadata["name"], subresource, query, body))

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Object | list[Object],
        *,
        kind: PatchKind = "merge",
        subresource: str | None = None,
        field_manager: str = "zhongjing",
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Changes an object by a merge patch, a JSON patch (a list), or an object to apply.

        A ``resourceVersion`` in it must be the current one. ``subresource`` is ``status`` or ``scale``, say;
        with ``force`` an object that is applied takes fields over from other managers.

        Raises:
            ObjectConflictError: the object has changed in between, or another manager owns a field.
            ObjectNotFoundError: there is none of that name.
        """
        query = _writing(dry_run) | {"fieldManager": field_manager}
        if kind == "apply":
            query["force"] = "true" if force else "false"
        place = self._place(resource)
        content = _PATCH_TYPES[kind]
        return self._json(Request("PATCH", resource, place, name, subresource, query, patch, content))

    def delete(
        self, resource: Resource, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> bool:
        """Deletes an object, and later what it owns; False if there is none (any more).

        A pod has ``grace_seconds`` to end; none: what its spec says.

        Raises:
            ObjectConflictError: the object of that name has another uid.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            self._json(Request("DELETE", resource, self._place(resource), name, body=body))
        except ObjectNotFoundError:
            return False
        return True

    # Requests

    def _place(self, resource: Resource, namespace: str | None = None) -> str | None:
        return (namespace or self.namespace) if resource.namespaced else None

    def _json(self, request: Request) -> Object:
        text = _read(self._call(request), self.address)
        try:
            value = json.loads(text)
        except ValueError as error:  # a proxy's page, or an answer that was cut off
            raise unreachable(f"its answer is no JSON ({error})", self.address) from error
        if not isinstance(value, dict):
            raise unreachable("its answer is no object", self.address)
        return value

    def _call(self, request: Request, seconds: float | None = None) -> urllib3.BaseHTTPResponse:
        """The answer to a request that succeeded, its body still to be read."""
        with self._lock:
            self.requests += 1
        headers: dict[str, str] = {"Accept": "application/json", "User-Agent": self.client.user_agent}
        if request.body is not None:
            headers["Content-Type"] = request.content
        try:
            self.client.update_params_for_auth(
                headers, [], ["BearerToken"], request.path, request.method, request.body
            )
        except ConfigException as error:
            raise BackendError(str(error), code=codes.NOT_LOGGED_IN) from error
        try:
            answer = self.client.rest_client.request(
                request.method,
                f"{self.address}{request.path}",
                headers=headers,
                body=request.body,
                _request_timeout=(CONNECT_SECONDS, seconds or self._seconds),
            )
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            reason = getattr(error, "reason", None) or error
            raise unreachable(reason, self.address) from error
        response: urllib3.BaseHTTPResponse = answer.response
        if 200 <= response.status < 300:
            return response
        text = _read(response, self.address).decode(errors="replace")
        raise refused(response.status, text, request)


def connect(
    context: str | None = None, namespace: str | None = None, *, seconds: float = REQUEST_SECONDS
) -> KubeApi:
    """The API server of the kubeconfig, or of the pod that this process runs in.

    A kubeconfig that is named (``KUBECONFIG``, or a context) comes before the pod's own service account.

    Args:
        context: of the kubeconfig; None: its current one.
        namespace: None: the context's, or the pod's, else ``default``.
        seconds: how long a request may take.

    Raises:
        BackendError: there is no cluster to speak to (``NoCluster``), or the kubeconfig is wrong.
    """
    configuration = Configuration()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the caller says what failed
    # A connection that was refused is tried once more; everything else is for the caller to repeat.
    configuration.retries = urllib3.Retry(1, read=0, backoff_factor=0.2, respect_retry_after_header=False)
    inside = SERVICE_HOST_ENV_NAME in os.environ and context is None and "KUBECONFIG" not in os.environ
    chosen: str | None = None
    found: str | None = None
    try:
        if inside:
            load_incluster_config(client_configuration=configuration)
            found = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.exists() else None
        else:
            chosen, found = _context(context)
            load_kube_config(
                config_file=_kubeconfig(),
                context=chosen,
                client_configuration=configuration,
                persist_config=False,
            )
    except (ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError) as error:
        raise BackendError(
            f"the kubeconfig cannot be used: {error}", code=codes.INVALID_KUBECONFIG, where=_kubeconfig()
        ) from error
    if not configuration.verify_ssl:
        # The kubeconfig asks for it; kubectl does not warn at every request either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    client = ApiClient(configuration)
    client.user_agent = f"zhongjing/{__version__}"
    return KubeApi(client, namespace or found or "default", context=chosen, seconds=seconds)


def _context(wanted: str | None) -> tuple[str, str | None]:
    """Name and namespace of the context to use."""
    files = [Path(part).expanduser() for part in _kubeconfig().split(os.pathsep) if part]
    if not any(file.exists() for file in files):
        raise BackendError("there is no kubeconfig", code=NO_CLUSTER, where=_kubeconfig())
    merged = KubeConfigMerger(_kubeconfig()).config
    value: Object = merged.value if merged is not None else {}
    # Each entry remembers the file that it came from.
    found = {entry.value["name"]: entry.value for entry in value.get("contexts") or []}
    name = wanted if wanted is not None else value.get("current-context")
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise BackendError(
            f"the kubeconfig has no context {name!r} (there is: {known})"
            if name
            else "the kubeconfig has no current context",
            code=codes.INVALID_KUBECONFIG,
            where=_kubeconfig(),
        )
    return str(name), (found[name].get("context") or {}).get("namespace")


def _kubeconfig() -> str:
    # Read at the time of the call: the client library reads it once, at import.
    return os.environ.get("KUBECONFIG") or str(KUBE_CONFIG_DEFAULT_LOCATION)


def _writing(dry_run: bool, validation: str = "Strict") -> dict[str, Any]:
    query = {"fieldValidation": validation}
    return query | {"dryRun": "All"} if dry_run else query


def _read(answer: urllib3.BaseHTTPResponse, address: str) -> bytes:
    try:
        return answer.data
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise unreachable(error, address) from error
