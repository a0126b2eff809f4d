"""What an installed release is: the chart writes it (``release.yaml`` of a ConfigMap), everybody reads it.

The controller finds in it its Ray, its store and its worker groups; commands find the services to forward to.
It holds names of secrets, never their contents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from zhongjing.codes.cluster import INVALID_RELEASE
from zhongjing.config.fields import DocumentModel
from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError

RELEASE_KEY = "release.yaml"
"""Key of the ConfigMap, and name of the mounted file."""

Provisioner = Literal["static", "kuberay"]


class WorkerGroup(DocumentModel):
    """Pods of one kind that Ray workers run in."""

    name: str
    workload: str = Field(description="static: name of the Deployment; kuberay: name of the group")
    cpus: float = Field(gt=0, description="CPUs that Ray counts in one pod, in cores")
    gpus: int = Field(ge=0, description="GPUs of one pod")
    memory: str = Field(description="memory of one pod, as Kubernetes writes it")
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)
    gpu_memory_gib: float | None = Field(
        default=None, gt=0, description="memory of one GPU; none: what the labels of the nodes say"
    )
    gpu_resource: str = Field(default="nvidia.com/gpu", description="what its pods ask for as a GPU")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of nodes for its pods")


class RayRelease(DocumentModel):
    """The Ray cluster."""

    cluster: str = Field(description="kuberay: name of the RayCluster; static: prefix of the workloads")
    service: str = Field(description="service of the head")
    dashboard_port: int = Field(default=8265, description="of the service: Jobs API and dashboard")
    token_secret: str = Field(description="Secret with the key auth_token")
    token_managed: bool = Field(description="whether the controller makes the token where there is none")
    groups: list[WorkerGroup]
    scaling: Literal["controller", "ray", "none"] = Field(
        description="who sets the number of worker pods: our controller, Ray's autoscaler (kuberay), or none"
    )
    idle_seconds: float = Field(default=600.0, ge=0, description="workers without a stage go after so long")


class StorageRelease(DocumentModel):
    """The object store."""

    bundled: bool = Field(description="whether the chart runs it")
    uri: str = Field(description="bucket and optional prefix")
    endpoint: str | None = Field(default=None, description="URL inside the cluster; none: AWS")
    region: str = "us-east-1"
    addressing_style: Literal["path", "virtual"] = "path"
    ca_bundle: str | None = Field(default=None, description="file in the pods")
    service: str | None = Field(default=None, description="bundled: the service to forward to")
    port: int | None = Field(default=None, description="bundled: its port")
    secret: str | None = Field(
        default=None, description="Secret with the key credentials; none: the pods' own role"
    )
    secret_managed: bool = Field(
        default=False, description="whether the controller makes the credentials where there are none"
    )

    def storage(self) -> Storage:
        """The storage section of documents that run in this release."""
        return Storage(
            uri=self.uri,
            endpoint=self.endpoint,
            region=self.region,
            addressing_style=self.addressing_style,
            ca_bundle=self.ca_bundle,
        )


class ReleaseConfig(DocumentModel):
    """An installed release."""

    version: Literal[1] = 1
    release: str = Field(description="name of the Helm release")
    fullname: str = Field(description="what the names of its objects begin with")
    namespace: str
    chart_version: str
    image: str = Field(description="image of the Ray pods")
    provisioner: Provisioner
    ray: RayRelease
    storage: StorageRelease

    @property
    def ray_address(self) -> str:
        """Address of the Jobs API and the dashboard inside the cluster."""
        return f"http://{self.ray.service}.{self.namespace}.svc:{self.ray.dashboard_port}"


def parse_release(text: str, where: str) -> ReleaseConfig:
    """Reads ``release.yaml``.

    Args:
        text: its content.
        where: what errors call it.

    Raises:
        ConfigError: it was not written by a chart of this version.
    """
    try:
        return ReleaseConfig.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        first = str(error).splitlines()
        raise ConfigError(
            f"this is not the configuration of a release: {' '.join(first[:3])}",
            code=INVALID_RELEASE,
            where=where,
        ) from error


def load_release(path: Path) -> ReleaseConfig:
    """Reads the mounted ``release.yaml``.

    Raises:
        ConfigError: the file is not there, or not of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", code=INVALID_RELEASE, where=str(path)
        ) from error
    return parse_release(text, str(path))
