"""Kinds of objects of the Kubernetes API, as paths of its REST interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from zhongjing.config.pipeline import API_GROUP

Object = dict[str, Any]
"""An object as the API sends it."""


@dataclass(frozen=True)
class Resource:
    """A kind of objects; ``group`` is empty for the core ones."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects have it: ``v1``, ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """As ``kubectl`` and Roles name it: ``pods``, ``trainingpipelines.training.zhongjing.dev``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of the collection, of an object or of its subresource; all namespaces where none is given."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)  # empty for the version itself
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


@dataclass(frozen=True)
class Request:
    """One request. ``namespace`` None: all namespaces; ``name`` None: the collection."""

    method: str
    resource: Resource
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    body: object = None
    content: str = "application/json"

    @property
    def path(self) -> str:
        """Path and query of the URL; what is None in the query is left out."""
        path = self.resource.path(self.namespace, self.name, self.subresource)
        query = {key: value for key, value in self.query.items() if value is not None}
        return f"{path}?{urlencode(query)}" if query else path

    @property
    def where(self) -> str:
        """The place, for messages: ``namespace/resource/name``."""
        parts = (self.namespace, self.resource.full_name, self.name, self.subresource)
        return "/".join(part for part in parts if part)


PIPELINES = Resource(API_GROUP, "v1alpha1", "trainingpipelines")
PODS = Resource("", "v1", "pods")
SECRETS = Resource("", "v1", "secrets")
CONFIG_MAPS = Resource("", "v1", "configmaps")
SERVICES = Resource("", "v1", "services")
CORE_EVENTS = Resource("", "v1", "events")
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
NODES = Resource("", "v1", "nodes", namespaced=False)
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
QUOTAS = Resource("", "v1", "resourcequotas")
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
NODE_POOLS = Resource("karpenter.sh", "v1", "nodepools", namespaced=False)
EVENTS = Resource("events.k8s.io", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
RAY_CLUSTERS = Resource("ray.io", "v1", "rayclusters")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)
