"""Configuration files of the node's programs."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.cluster.node.place import (
    BRIDGE,
    BRIDGE_ADDRESS,
    PAUSE_IMAGE,
    POD_RANGE,
    VOLUMES,
    Place,
)


def write_configuration(place: Place) -> None:
    """Writes what kubelet, containerd, the network plugins and CoreDNS read."""
    node = place.node
    (node / "kubelet.yaml").write_text(yaml.safe_dump(kubelet(place)))
    (node / "containerd.toml").write_text(containerd(place))
    (node / "cni").mkdir()
    (node / "cni" / "10-bridge.conflist").write_text(json.dumps(network(place), indent=2))
    (node / "Corefile").write_text(coredns(place))
    (node / "resolv.conf").write_text("")  # no name of the world outside


def kubelet(place: Place) -> dict[str, Any]:
    """It reserves nothing, evicts only where memory is about to end, and keeps to its control group."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(place.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.control_group}",
        "cgroupsPerQOS": True,
        "clusterDNS": [BRIDGE_ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{place.containerd_socket}",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": True,
        "podLogsDir": str(place.node / "pod-logs"),
        "resolvConf": str(place.node / "resolv.conf"),
        # Short: tests change what pods mount, and wait for it.
        "syncFrequency": "10s",
        "volumePluginDir": str(place.node / "volume-plugins"),
    }


def containerd(place: Place) -> str:
    """Images in the cache, everything else in the node; sockets and mounts under the node's own /run."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{place.containerd}"
state = "/run/containerd-state"
oom_score = 0

[grpc]
address = "{place.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{place.node}/opt"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
disable_tcp_service = true
restrict_oom_score_adj = true
disable_apparmor = true

[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false

[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{place.node}/cni"
"""


def network(place: Place) -> dict[str, Any]:
    """Pods on one bridge. It does not enforce network policies."""
    addresses = {
        "type": "host-local",
        "dataDir": str(place.node / "addresses"),
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "test", "plugins": [bridge, ports]}


def coredns(place: Place) -> str:
    """Names of services, as a process of the node."""
    return f"""\
.:53 {{
    bind {BRIDGE_ADDRESS}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {place.kubeconfig} test
        pods insecure
    }}
    cache 5
}}
"""


def persistent_volumes(place: Place) -> list[dict[str, Any]]:
    """Volumes that claims without a storage class bind to, each a folder that any user may write to."""
    volumes = []
    for number in range(1, VOLUMES + 1):
        folder = place.volumes / f"v{number:02d}"
        volumes.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": folder.name, "labels": {"zhongjing-testcluster": "volume"}},
                "spec": {
                    "capacity": {"storage": "1Ti"},
                    "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": str(folder), "type": "Directory"},
                },
            }
        )
    return volumes
