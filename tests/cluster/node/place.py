"""Where the test cluster keeps its things, which versions it is made of, and what its network looks like."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]

HELM_VERSION = "v3.20.2"
COREDNS_VERSION = "v1.15.0"
DEBIAN = "bookworm"

NODE_NAME = "n1"
BRIDGE = "cni0"
BRIDGE_ADDRESS = "10.244.0.1"
POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
HOST_RANGE = "10.231.17"
"""First three parts of the addresses of machine and node."""
NUMBERS = range(63)
PAUSE_IMAGE = "localhost/pause:1"
VOLUMES = 30


class UnavailableError(Exception):
    """This machine cannot run the cluster; the text says why."""


class HarnessError(Exception):
    """The cluster should have worked and did not."""


@dataclass(frozen=True)
class Place:
    """Folders of the test cluster; the caches stay from run to run, ``node`` goes with the cluster."""

    root: Path
    number: int = 0
    """Clusters of different numbers and folders can be up at the same time."""

    @property
    def link(self) -> str:
        """Network link of this machine to the node."""
        return f"zjtest{self.number}"

    @property
    def host_address(self) -> str:
        """This machine as pods see it: a service that a test starts here is reached there."""
        return f"{HOST_RANGE}.{4 * self.number + 1}"

    @property
    def node_address(self) -> str:
        """The node as this machine sees it."""
        return f"{HOST_RANGE}.{4 * self.number + 2}"

    @property
    def control_group(self) -> str:
        """Name of the group that all pods are in."""
        return "zhongjing-testcluster" + (f"-{self.number}" if self.number else "")

    @property
    def bin(self) -> Path:
        """Kubernetes, etcd, CoreDNS, kubectl and Helm, built."""
        return self.root / "bin"

    @property
    def storage(self) -> Path:
        """buildah's layers."""
        return self.root / "containers"

    @property
    def layout(self) -> Path:
        """Images as an OCI layout, on their way from buildah to the node."""
        return self.root / "layout"

    @property
    def containerd(self) -> Path:
        """containerd's images and their unpacked layers."""
        return self.root / "containerd"

    @property
    def node(self) -> Path:
        """Everything of the running cluster."""
        return self.root / "node"

    @property
    def logs(self) -> Path:
        """A file for each process of the cluster, of the last run; kept for whoever looks for a cause."""
        return self.root / "log"

    @property
    def pki(self) -> Path:
        """Keys, certificates, tokens, kubeconfigs."""
        return self.node / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.pki / "admin.kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        """Reached from inside and outside of the node alike."""
        return self.node / "containerd.sock"

    @property
    def volumes(self) -> Path:
        """Folders behind the PersistentVolumes."""
        return self.node / "volumes"

    @property
    def state_file(self) -> Path:
        """What a later call has to know of the running cluster."""
        return self.root / "state.json"


def default_place() -> Place:
    """``ZHONGJING_TESTCLUSTER_HOME`` and ``_NUMBER``, else a folder of the user's caches and 0."""
    number = int(os.environ.get("ZHONGJING_TESTCLUSTER_NUMBER") or 0)
    if number not in NUMBERS:
        raise HarnessError(f"ZHONGJING_TESTCLUSTER_NUMBER={number}: from 0 to {NUMBERS[-1]}")
    given = os.environ.get("ZHONGJING_TESTCLUSTER_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Place(Path(given) if given else cache / "zhongjing-testcluster", number)


@dataclass
class State:
    """The running cluster: processes, and what was changed on the machine for it."""

    outer: int = 0
    """Process id of the program that holds the namespaces; with it everything in the node ends."""
    init: int = 0
    """Process id, seen from outside, of the node's first process."""
    owner: int = 0
    """Process id of the test run; 0: started by hand, stays until it is ended by hand."""
    kernel_settings: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replaces the file."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=2) + "\n")
        new.replace(path)


def read_state(path: Path) -> State | None:
    """What the file says; none if there is no cluster, and none was left behind."""
    try:
        return State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
