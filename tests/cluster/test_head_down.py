"""Ray's head is down: why stands in the condition, workers are asked for, and pipelines still obey."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cluster.capacity_support import FULLNAME, install_head, install_workers
from tests.cluster.controller_support import Place, place
from tests.cluster.crd_support import with_crd
from zhongjing.backends.kubernetes.resources import DEPLOYMENTS, PODS, SECRETS, Resource
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.backends.local.processes import free_ports, wait_until
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.embedded import EmbeddedS3

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

NOWHERE = {"zhongjing.test/nowhere": "yes"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    with with_crd("default"), EmbeddedS3(tmp_path_factory.mktemp("s3")) as served:
        yield served


@pytest.fixture
def here(s3: EmbeddedS3, tmp_path: Path) -> Iterator[Place]:
    """A release whose Ray answers nowhere: its pods are all that there is to see."""
    (port,) = free_ports(1)
    no_jobs = SimpleNamespace(jobs=list)
    head = SimpleNamespace(
        record=SimpleNamespace(dashboard_url=f"http://127.0.0.1:{port}"), backend=lambda package: no_jobs
    )
    with place(cast(Any, head), s3, tmp_path) as made:
        token = {"metadata": {"name": f"{FULLNAME}-ray-token"}, "stringData": {"auth_token": "t"}}
        made.api.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", **token})
        yield made


def message(pipeline: Pipeline) -> str:
    return str((pipeline.condition() or {}).get("message"))


def workers(here: Place) -> int:
    found = here.api.get(DEPLOYMENTS, f"{FULLNAME}-ray-cpu")
    assert found is not None
    return int(found["spec"]["replicas"])


def test_a_head_that_no_node_can_hold_says_so_and_pipelines_obey(here: Place) -> None:
    install_head(here.api, nodeSelector=NOWHERE)
    install_workers(here.api, "cpu", replicas=0)
    controller = here.start(pods=True)
    here.apply(here.document("held", [Stage.RM], deletionPolicy="Delete"))
    # Asked for at the same time: where nodes have to be made, both are made together. Idle, they go again.
    assert wait_until(lambda: workers(here) == 1, 20), here.logs()
    held = here.wait("held", lambda each: "no node of the cluster can ever hold it" in message(each))
    assert (held.condition() or {})["reason"] == "ClusterNotReady"
    assert f"pod/{FULLNAME}-ray-head-0" in message(held)
    assert "nodeSelector" in str((held.condition() or {}).get("remedy"))
    time.sleep(4)
    assert "can ever hold it" in message(here.get("held"))
    assert "Errno" not in message(here.get("held"))

    here.change("held", stages={"rm": {"data": [{"source": "rankings"}], "learningRate": 3e-5}})
    edited = here.wait("held", lambda each: each.status["observedGeneration"] == 2)
    assert edited.status["stages"]["rm"]["state"] == "Queued"
    here.wait("held", lambda each: "can ever hold it" in message(each))
    here.change("held", suspend=True)
    began = time.monotonic()
    here.wait("held", lambda each: each.holds(ConditionType.SUSPENDED) and each.is_settled, 10)
    assert time.monotonic() - began < 5
    here.change("held", suspend=False)
    here.wait("held", lambda each: "can ever hold it" in message(each))
    here.pipelines.delete(here.get("held"))
    assert wait_until(lambda: here.pipelines.get("held") is None, 15), here.logs()
    assert here.store.exists(f"{here.layout('held').home}/pipeline.json") is False
    # Nothing needs the workers any more, and without a head nothing can use them.
    assert wait_until(lambda: workers(here) == 0, 20), here.logs()
    log = controller.log.read_text()
    told = [
        line.partition(" WARNING ")[2] for line in log.splitlines() if "held: the Ray head is not" in line
    ]
    assert told
    assert max(Counter(told).values()) <= 5, "what was said is not said again in every pass"
    assert "submitting" not in log
    warnings = [each for each in here.events("held") if each["type"] == "Warning"]
    assert all("no node" in each["note"] for each in warnings), warnings


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ({"containers": [{"name": "ray", "image": "localhost/none:1"}]}, "localhost/none:1 cannot be pulled"),
        (
            {
                "containers": [
                    {
                        "name": "ray",
                        "image": "localhost/pause:1",
                        "resources": {"requests": {"ephemeral-storage": "900Ti"}},
                    }
                ]
            },
            "ephemeral-storage",
        ),
    ],
    ids=["image", "ephemeral-storage"],
)
def test_a_head_that_is_missing_is_explained(here: Place, pod: dict[str, Any], said: str) -> None:
    install_head(here.api, **pod)
    install_workers(here.api, "cpu", replicas=0)
    here.start(pods=True)
    here.apply(here.document("told", [Stage.RM]))
    here.wait("told", lambda each: said in message(each), what=said)


def test_a_quota_that_refuses_the_head_is_told(here: Place) -> None:
    quota = Resource("", "v1", "resourcequotas")
    body = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    here.api.create(quota, {"apiVersion": "v1", "kind": "ResourceQuota", **body})
    install_head(here.api)
    install_workers(here.api, "cpu", replicas=0)
    here.start(pods=True)
    here.apply(here.document("told", [Stage.RM]))
    here.wait("told", lambda each: "do not fit into the quota few" in message(each))


def test_a_head_that_runs_and_does_not_answer_is_explained_and_pipelines_obey(here: Place) -> None:
    never = {"tcpSocket": {"port": 1}, "periodSeconds": 1}
    container = {"name": "ray", "image": "localhost/pause:1", "imagePullPolicy": "IfNotPresent"}
    install_head(here.api, containers=[{**container, "readinessProbe": never}])
    install_workers(here.api, "cpu", replicas=0)
    here.start(pods=True)
    assert wait_until(lambda: "running" in str(here.api.get(PODS, f"{FULLNAME}-ray-head-0")), 30)
    here.apply(here.document("deaf", [Stage.RM], deletionPolicy="Delete"))
    here.wait("deaf", lambda each: "runs and is not ready yet" in message(each))
    here.change("deaf", suspend=True)
    here.wait("deaf", lambda each: each.holds(ConditionType.SUSPENDED) and each.is_settled, 40)
    here.pipelines.delete(here.get("deaf"))
    assert wait_until(lambda: here.pipelines.get("deaf") is None, 15), here.logs()
