"""The cluster as tests use it: kubectl, Helm, namespaces, releases of the chart."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chart.support import CHART, TINY
from tests.cluster.node.node import Node
from zhongjing.config.release import RELEASE_KEY, ReleaseConfig, parse_release

HOME = "/home/zhongjing"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

Object = dict[str, Any]


class CommandFailed(AssertionError):  # noqa: N818 - it is what a test fails with
    """kubectl or Helm refused; has what it printed."""


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes to test on."""

    kubeconfig: Path
    image: str
    """Repository of the project's image on it."""
    tag: str
    node: Node | None
    """The cluster's own node; none where somebody else's cluster is used."""

    def kubectl(self, *arguments: str, namespace: str | None = None, text: str | None = None) -> str:
        """What kubectl prints.

        Args:
            arguments: of kubectl.
            namespace: instead of the kubeconfig's.
            text: standard input.

        Raises:
            CommandFailed: it did not end with 0.
        """
        scope = ["--namespace", namespace] if namespace else []
        return self._run("kubectl", "--kubeconfig", str(self.kubeconfig), *scope, *arguments, text=text)

    def get(self, *arguments: str, namespace: str | None = None) -> Object:
        """What ``kubectl get`` finds."""
        return dict(json.loads(self.kubectl("get", *arguments, "--output", "json", namespace=namespace)))

    def apply(self, *objects: Object, namespace: str | None = None) -> None:
        """Server-side apply."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--filename", "-", namespace=namespace, text=text)

    def helm(self, *arguments: str, namespace: str, values: Mapping[str, Any] | None = None) -> str:
        """What Helm prints.

        Args:
            arguments: of Helm.
            namespace: of the release.
            values: over those of files.

        Raises:
            CommandFailed: it did not end with 0.
        """
        given = ["--values", "-"] if values is not None else []
        text = json.dumps(values) if values is not None else None
        return self._run(
            *("helm", "--kubeconfig", str(self.kubeconfig), "--namespace", namespace),
            *(*arguments, *given),
            text=text,
        )

    def _run(self, *command: str, text: str | None) -> str:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def namespace(self, part: str = "test", labels: Mapping[str, str] = RESTRICTED) -> Iterator[str]:
        """A namespace of its own, at the restricted Pod Security level; goes with all that is in it."""
        name = f"{part}-{uuid.uuid4().hex[:8]}"
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {**labels}}}
        )
        try:
            self.until(
                lambda: self.get("serviceaccounts", namespace=name)["items"], f"service account of {name}"
            )
            yield name
        finally:
            # Pods first and at once: a namespace waits for their grace periods.
            self.kubectl(
                *("delete", "pods", "--all", "--grace-period", "0", "--force", "--wait=false"), namespace=name
            )
            self.kubectl("delete", "namespace", name, "--wait", "--timeout", "120s")
            if self.node is not None:
                self.node.refill_volumes()

    def until(
        self, holds: Callable[[], Any], what: str, *, seconds: float = 60.0, every: float = 0.25
    ) -> Any:
        """Looks until something holds, and returns it.

        Raises:
            AssertionError: it did not in time.
        """
        end = time.monotonic() + seconds
        while True:
            found = holds()
            if found:
                return found
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
            time.sleep(every)


@dataclass(frozen=True)
class Release:
    """An installed chart."""

    cluster: Cluster
    name: str
    namespace: str
    options: tuple[str, ...] = field(default=(), repr=False)

    @property
    def fullname(self) -> str:
        """What the names of its objects begin with."""
        return self.name if "zhongjing" in self.name else f"{self.name}-zhongjing"

    def config(self) -> ReleaseConfig:
        """As the controller and commands read it."""
        name = f"{self.fullname}-config"
        data = self.cluster.get("configmap", name, namespace=self.namespace)["data"]
        return parse_release(data[RELEASE_KEY], name)

    def upgrade(self, values: Mapping[str, Any], *, chart: Path = CHART) -> None:
        """``helm upgrade`` with what it was installed with, and more."""
        self.cluster.helm(
            "upgrade", self.name, str(chart), *self.options, namespace=self.namespace, values=values
        )

    def test(self) -> str:
        """``helm test``; what it printed."""
        return self.cluster.helm("test", self.name, "--timeout", "5m", "--logs", namespace=self.namespace)

    def wait_ready(self, *, seconds: float = 180.0) -> None:
        """Until every container of its pods is ready; there has to be one."""

        def ready() -> bool:
            selector = f"app.kubernetes.io/instance={self.name}"
            pods = self.cluster.get("pods", "--selector", selector, namespace=self.namespace)["items"]
            statuses = [pod["status"].get("containerStatuses", []) for pod in pods]
            return bool(pods) and all(each and all(one["ready"] for one in each) for each in statuses)

        self.cluster.until(ready, f"pods of release {self.name}", seconds=seconds, every=1.0)


@contextmanager
def installed(
    cluster: Cluster,
    namespace: str,
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "zhongjing",
    files: Sequence[Path] = (TINY,),
    chart: Path = CHART,
) -> Iterator[Release]:
    """The chart, installed with sizes for a small node and the image that was built; uninstalled afterwards.

    Args:
        cluster: to install on.
        namespace: of the release.
        values: over those of the files.
        name: of the release.
        files: of values.
        chart: another one than the project's, for instance of an earlier commit.
    """
    options = [part for file in files for part in ("--values", str(file))]
    options += ["--set", f"image.repository={cluster.image}", "--set-string", f"image.tag={cluster.tag}"]
    release = Release(cluster, name, namespace, tuple(options))
    cluster.helm("install", name, str(chart), *options, namespace=namespace, values=values or {})
    try:
        yield release
    finally:
        found = json.loads(cluster.helm("list", "--all", "--output", "json", namespace=namespace))
        if name in [each["name"] for each in found]:
            cluster.helm("uninstall", name, "--wait", "--timeout", "2m", namespace=namespace)


def hardened_pod(name: str, image: str) -> Object:
    """A pod that waits to be asked, hardened as the chart's are."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "it",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["sleep", "infinity"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "home", "mountPath": HOME},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
        },
    }


def diagnosis(cluster: Cluster, namespace: str) -> str:
    """What somebody who looks for a cause asks first: pods, events, the end of every log."""
    parts = []
    for command in (
        ("get", "pods,statefulsets,deployments,jobs", "--output", "wide"),
        ("get", "trainingpipelines", "--output", "yaml"),
        ("get", "events", "--sort-by", ".lastTimestamp"),
    ):
        parts.append(_said(cluster, namespace, *command))
    for pod in _said(cluster, namespace, "get", "pods", "--output", "name").split():
        logs = ("logs", pod, "--all-containers", "--prefix", "--tail", "40")
        parts.append(f"{pod}\n{_said(cluster, namespace, *logs)}")
    return "\n\n".join(parts)


def _said(cluster: Cluster, namespace: str, *command: str) -> str:
    try:
        return cluster.kubectl(*command, namespace=namespace)
    except CommandFailed as error:
        return str(error)
