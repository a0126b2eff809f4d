"""What the other tests take for granted of the cluster: volumes, names, rights, parts that go away."""

from __future__ import annotations

import time

import pytest

from tests.cluster.kube import HOME, Cluster, CommandFailed, hardened_pod
from tests.cluster.node.node import Node
from tests.cluster.node.services import api_ready

pytestmark = pytest.mark.cluster


def test_a_claim_without_a_class_binds_and_a_pod_without_rights_writes_to_it(
    cluster: Cluster, namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}},
    }
    writer = hardened_pod("writer", f"{cluster.image}:{cluster.tag}-controller")
    writer["spec"]["volumes"][0] = {"name": "home", "persistentVolumeClaim": {"claimName": "claim"}}
    cluster.apply(claim, writer, namespace=namespace)
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/writer", namespace=namespace)
    cluster.kubectl("exec", "writer", "--", "touch", f"{HOME}/written", namespace=namespace)
    assert cluster.kubectl("exec", "writer", "--", "ls", HOME, namespace=namespace).strip() == "written"


def test_pods_find_services_by_name(cluster: Cluster, namespace: str) -> None:
    cluster.apply(hardened_pod("asks", f"{cluster.image}:{cluster.tag}-controller"), namespace=namespace)
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/asks", namespace=namespace)
    ask = (
        "import socket; print(socket.create_connection(('kubernetes.default.svc', 443), 10).getpeername()[0])"
    )
    found = cluster.kubectl("exec", "asks", "--", "python", "-c", ask, namespace=namespace).strip()
    assert found == cluster.get("service", "kubernetes", namespace="default")["spec"]["clusterIP"]


def test_a_pod_with_rights_is_refused(cluster: Cluster, namespace: str) -> None:
    careless = hardened_pod("careless", f"{cluster.image}:{cluster.tag}")
    careless["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(CommandFailed, match=r'violates PodSecurity "restricted'):
        cluster.apply(careless, namespace=namespace)


def test_the_api_goes_away_and_comes_back_with_everything(
    cluster: Cluster, node: Node, namespace: str
) -> None:
    def left() -> str:
        return str(cluster.get("namespace", namespace)["metadata"]["uid"])

    before = left()
    with node.without("kube-apiserver"):
        assert not api_ready(node.place)
        start = time.monotonic()
        with pytest.raises(CommandFailed, match="refused"):
            left()
        assert time.monotonic() - start < 10
    assert left() == before
