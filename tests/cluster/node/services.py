"""The programs of the control plane and the node: their flags, and the order to start them in."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.node.place import NODE_NAME, POD_RANGE, SERVICE_RANGE, Place

ETCD = "http://127.0.0.1:2379"


@dataclass(frozen=True)
class Program:
    """One program: what it is called here, and how it is started."""

    name: str
    command: list[str]


def containerd(place: Place) -> Program:
    """Runs containers; also alone, to take images in."""
    return Program("containerd", ["/usr/bin/containerd", "--config", str(place.node / "containerd.toml")])


def etcd(place: Place) -> Program:
    """On the node's memory: nothing of it outlives the cluster."""
    return Program(
        "etcd",
        [
            str(place.bin / "etcd"),
            "--data-dir=/run/etcd",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--logger=zap",
            "--log-level=warn",
        ],
    )


def apiserver(place: Place) -> Program:
    """On every address of the node: tests reach it from outside, pods through the service's address."""
    pki = place.pki
    return Program(
        "kube-apiserver",
        [
            str(place.bin / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={place.node_address}",
            "--secure-port=6443",
            f"--tls-cert-file={pki}/api.crt",
            f"--tls-private-key-file={pki}/api.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
        ],
    )


def controller_manager(place: Place) -> Program:
    """Alone, so without an election."""
    pki = place.pki
    return Program(
        "kube-controller-manager",
        [
            str(place.bin / "kube-controller-manager"),
            f"--kubeconfig={place.kubeconfig}",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
        ],
    )


def scheduler(place: Place) -> Program:
    """Alone, so without an election."""
    return Program(
        "kube-scheduler",
        [str(place.bin / "kube-scheduler"), f"--kubeconfig={place.kubeconfig}", "--leader-elect=false"],
    )


def coredns(place: Place) -> Program:
    """Beside the pods, not in one: it needs no image."""
    return Program("coredns", [str(place.bin / "coredns"), "-conf", str(place.node / "Corefile")])


def kubelet(place: Place) -> Program:
    """Logs in as the node, and may see only what a node may."""
    return Program(
        "kubelet",
        [
            str(place.bin / "kubelet"),
            f"--config={place.node}/kubelet.yaml",
            f"--kubeconfig={place.pki}/node.kubeconfig",
            f"--hostname-override={NODE_NAME}",
            f"--root-dir={place.node}/kubelet",
            f"--cert-dir={place.node}/kubelet/pki",
            f"--node-ip={place.node_address}",
        ],
    )


def proxy(place: Place) -> Program:
    """Service addresses; the machine's table of connections keeps its size."""
    return Program(
        "kube-proxy",
        [
            str(place.bin / "kube-proxy"),
            f"--kubeconfig={place.kubeconfig}",
            f"--hostname-override={NODE_NAME}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_RANGE}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
    )


BEFORE_THE_API: tuple[Callable[[Place], Program], ...] = (etcd, apiserver)
AFTER_THE_API: tuple[Callable[[Place], Program], ...] = (
    controller_manager,
    scheduler,
    coredns,
    kubelet,
    proxy,
)


def api_ready(place: Place) -> bool:
    """Whether the API server answers that all its parts are ready."""
    context = ssl.create_default_context(cafile=str(place.pki / "ca.crt"))
    token = (place.pki / "tokens.csv").read_text().split(",")[0]
    request = urllib.request.Request(
        f"https://{place.node_address}:6443/readyz", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
