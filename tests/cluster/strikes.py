"""What befalls a cluster while a pipeline runs on it; each says whether the running attempt survives."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from tests.chart.support import CHART
from tests.cluster.kube import Cluster, CommandFailed, Release
from tests.cluster.runs import end_pods, pods, still
from zhongjing.config.stages import Stage

OUTAGE_SECONDS = 60.0

# Runs in a worker pod: finds the training processes by the names that Ray gives them.
_FIND = """
import os
def workers():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            name = open(f'/proc/{pid}/cmdline', 'rb').read()
        except OSError:
            continue
        if name.startswith(b'ray::') and b'TrainWorker' in name:
            yield int(pid)
found = list(workers())
assert found, 'no training process here'
"""
_STOP = f"{_FIND}import signal\nos.kill(found[0], signal.SIGSTOP)\nprint('stopped', found[0])\n"
# The kernel ends the process with the highest score when the pod's memory is used up.
_EXHAUST = f"""{_FIND}
for pid in found:
    open(f'/proc/{{pid}}/oom_score_adj', 'w').write('1000')
held = []
while set(found) <= set(workers()):
    held.append(bytearray(b'x' * (64 << 20)))
print('gone:', found)
"""


def end_controller(cluster: Cluster, release: Release) -> None:
    """The controller's pods, at once; the Deployment makes new ones."""
    end_pods(cluster, release.namespace, "controller")


def end_api_server(cluster: Cluster, release: Release) -> None:
    """Nobody can read or write anything for a minute."""
    assert cluster.node is not None, "only the cluster that the tests bring up has an API server to end"
    with cluster.node.without("kube-apiserver"):
        still(OUTAGE_SECONDS)


def end_worker(cluster: Cluster, release: Release) -> None:
    """Every process of a worker pod dies at once."""
    with contextlib.suppress(CommandFailed):  # the command dies with them
        _in_worker(cluster, release, "import os, signal; os.kill(-1, signal.SIGKILL)")


def delete_worker(cluster: Cluster, release: Release) -> None:
    """Its node is drained: the pod gets the signal to end, and its grace period."""
    names = [pod["metadata"]["name"] for pod in pods(cluster, release.namespace, "ray-worker")]
    cluster.kubectl("delete", "pod", *names, "--wait=false", namespace=release.namespace)


def freeze_worker(cluster: Cluster, release: Release) -> None:
    """A training process hangs, as in a dead collective."""
    _in_worker(cluster, release, _STOP)


def exhaust_memory(cluster: Cluster, release: Release) -> None:
    """The kernel ends the training processes for memory."""
    assert "gone" in _in_worker(cluster, release, _EXHAUST)


def end_head(cluster: Cluster, release: Release) -> None:
    """The head's pod, and with it Ray's memory of all jobs."""
    end_pods(cluster, release.namespace, "ray-head")


def end_store(cluster: Cluster, release: Release) -> None:
    """The S3 server's pod; its volume stays."""
    end_pods(cluster, release.namespace, "s3")


def rotate_token(cluster: Cluster, release: Release) -> None:
    """Another Ray token, as docs/operations.md says."""
    name = release.config().ray.token_secret
    token = base64.b64encode(secrets.token_hex(32).encode()).decode()
    patch = f'{{"data": {{"auth_token": "{token}"}}}}'
    cluster.kubectl("patch", "secret", name, "--type", "merge", "--patch", patch, namespace=release.namespace)


def upgrade(cluster: Cluster, release: Release) -> None:
    """An upgrade that changes every pod of Ray."""
    release.upgrade({"ray": {"env": [{"name": "CHANGED_BY_UPGRADE", "value": "1"}]}})


def reinstall(cluster: Cluster, release: Release) -> None:
    """``helm uninstall``, and the same installed again: pipelines, secrets and volumes stay."""
    cluster.helm("uninstall", release.name, "--wait", "--timeout", "5m", namespace=release.namespace)
    cluster.until(
        lambda: not pods(cluster, release.namespace, "ray-head"), "Ray's pods are gone", seconds=120
    )
    cluster.helm(
        "install", release.name, str(CHART), *release.options, namespace=release.namespace, values={}
    )


@dataclass(frozen=True)
class Strike:
    """One fault, when a stage has made a part of its steps."""

    stage: Stage
    fraction: float
    befall: Callable[[Cluster, Release], None]
    spares: bool = False
    """Whether the attempt goes on; else the next one starts from the last checkpoint."""

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.befall.__name__}-{self.stage}"


STRIKES = (
    Strike(Stage.PRETRAIN, 0.05, end_controller, spares=True),
    Strike(Stage.PRETRAIN, 0.15, end_worker),
    Strike(Stage.PRETRAIN, 0.5, end_api_server, spares=True),
    Strike(Stage.SFT, 0.05, freeze_worker),
    Strike(Stage.SFT, 0.15, delete_worker),
    Strike(Stage.SFT, 0.3, end_head),
    Strike(Stage.SFT, 0.6, exhaust_memory),
    Strike(Stage.RM, 0.1, end_store, spares=True),
    Strike(Stage.RM, 0.4, rotate_token),
    Strike(Stage.PPO, 0.1, upgrade),
    Strike(Stage.PPO, 0.4, reinstall),
)


def _in_worker(cluster: Cluster, release: Release, program: str) -> str:
    pod = pods(cluster, release.namespace, "ray-worker")[0]["metadata"]["name"]
    return cluster.kubectl("exec", pod, "--", "python", "-c", program, namespace=release.namespace)
