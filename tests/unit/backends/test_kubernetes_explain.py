"""What one healthy node cannot show: evictions, lost nodes, autoscalers, webhooks, a missing KubeRay.

The pods and events are shortened from what Kubernetes writes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.diagnosis import Scene, explain, sentence
from zhongjing.backends.kubernetes.pod_diagnosis import Finding, about_pod, found
from zhongjing.backends.kubernetes.resources import Object
from zhongjing.codes import pods as codes
from zhongjing.config.release import ReleaseConfig, WorkerGroup
from zhongjing.pipeline.state import seconds, stamp

NOW = seconds("2026-11-23T04:00:00Z")
FULLNAME = "zhongjing"


def ago(passed: float) -> str:
    return stamp(NOW - passed)


def release(provisioner: str = "static") -> ReleaseConfig:
    workload = "gpu" if provisioner == "kuberay" else "zhongjing-ray-gpu"
    sizes: dict[str, Any] = {"cpus": 32, "gpus": 4, "memory": "320Gi", "min_replicas": 0, "max_replicas": 2}
    group = WorkerGroup(name="gpu", workload=workload, **sizes)
    return release_config(group, fullname=FULLNAME, provisioner=provisioner, ray={"cluster": FULLNAME})


def pod(name: str = "zhongjing-ray-gpu-0", *, made: float = 300, **status: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": ago(made),
            "labels": {"app.kubernetes.io/component": "ray-worker"},
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "ray"}]},
        "status": {"phase": "Pending"} | status,
    }


def unschedulable(text: str, *, made: float = 300) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
    return pod(made=made, conditions=[condition])


def event(reason: str, message: str, about: Object, kind: str = "Pod", *, passed: float = 10) -> Object:
    metadata = about["metadata"]
    return {
        "metadata": {"creationTimestamp": ago(passed)},
        "reason": reason,
        "message": message,
        "lastTimestamp": ago(passed),
        "involvedObject": {"kind": kind, "name": metadata["name"], "uid": metadata.get("uid")},
    }


def stateful_set(name: str, wanted: int, there: int) -> Object:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": ago(300)},
        "spec": {"replicas": wanted},
        "status": {"replicas": there},
    }


PARTS = [stateful_set("zhongjing-ray-head", 1, 1), stateful_set("zhongjing-ray-gpu", 1, 1)]


def look(*pods: Object, events: tuple[Object, ...] = (), **scene: Any) -> list[Finding]:
    given = {"workloads": PARTS} | scene
    return explain(Scene(NOW, pods, events=events, **given), release())


def only(*pods: Object, events: tuple[Object, ...] = (), **scene: Any) -> Finding:
    [finding] = look(*pods, events=events, **scene)
    return finding


NEVER = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {{nvidia.com/gpu: }}, 2 Insufficient "
    "nvidia.com/gpu. preemption: 0/3 nodes are available: {0} Preemption is not helpful for scheduling{1}."
)


def test_evicted() -> None:
    evicted = pod(phase="Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds 400Gi")
    finding = only(evicted)
    assert finding.code is codes.POD_EVICTED
    assert "usage exceeds 400Gi" in finding.message


def test_a_pod_that_does_not_go() -> None:
    stuck = pod(phase="Running")
    stuck["metadata"]["deletionTimestamp"] = ago(30)
    assert only(stuck).code is codes.POD_STARTING
    stuck["metadata"]["deletionTimestamp"] = ago(300)
    finding = only(stuck)
    assert finding.code is codes.POD_LOST
    assert "its node n1 does not end it" in finding.message
    assert "--force" in finding.remedy


def test_a_node_that_does_not_answer() -> None:
    unready = pod(
        phase="Running", conditions=[{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    )
    finding = only(unready, events=(event("NodeNotReady", "Node is not ready", unready),))
    assert finding.code is codes.POD_LOST


def test_an_autoscaler_at_work_is_waited_for() -> None:
    waiting = unschedulable(NEVER.format(3, ""))
    assert only(waiting).code is codes.NO_FITTING_NODE
    finding = only(waiting, events=(event("TriggeredScaleUp", "pod triggered scale-up", waiting),))
    assert finding.code is codes.POD_STARTING
    assert not finding.fatal
    assert "autoscaler is making a node" in finding.remedy
    refused = event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size", waiting)
    finding = only(waiting, events=(refused,))
    assert finding.code is codes.NO_FITTING_NODE
    assert "max node group size" in finding.message


def test_what_no_node_can_hold_names_each_remedy() -> None:
    finding = only(unschedulable(NEVER.format(3, "")))
    assert finding.fatal
    assert "device plugin" in finding.remedy
    assert "tolerations" in finding.remedy
    # Until an autoscaler has had time to speak up, nobody should give up.
    assert not only(unschedulable(NEVER.format(3, ""), made=20)).fatal


@pytest.mark.parametrize(
    "text",
    [
        NEVER.format(2, ", 1 No preemption victims found for incoming pod"),
        "0/3 nodes are available: 3 Insufficient cpu.",  # of a scheduler that says no more
        "",
    ],
)
def test_one_node_that_may_become_free_is_enough_to_wait(text: str) -> None:
    assert only(unschedulable(text)).code is codes.POD_UNSCHEDULABLE


@pytest.mark.parametrize(
    ("words", "fatal"),
    [
        ("failed to resolve reference: docker.io/library/zhongjing:0.1.0: not found", True),
        ("pull access denied, repository does not exist or may require authorization", True),
        ("unexpected status from HEAD request: 401 Unauthorized", True),
        ("dial tcp: lookup registry.example on 10.0.0.10:53: i/o timeout", False),
        ("received unexpected HTTP status: 503 Service Unavailable", False),
    ],
)
def test_a_registry_that_refuses_and_one_that_does_not_answer(words: str, fatal: bool) -> None:
    waiting = {
        "reason": "ImagePullBackOff",
        "message": f'Back-off pulling image "registry.example/denied:401": ErrImagePull: {words}',
    }
    container = {"name": "ray", "image": "registry.example/denied:401", "state": {"waiting": waiting}}
    finding = only(pod(containerStatuses=[container]))
    assert finding.code is codes.IMAGE_PULL_FAILED
    assert finding.fatal is fatal
    assert words in finding.message


@pytest.mark.parametrize(
    ("reason", "text", "code", "fatal"),
    [
        ("ErrImageNeverPull", "not present with pull policy of Never", codes.IMAGE_PULL_FAILED, True),
        ("CreateContainerConfigError", 'secret "own" not found', codes.POD_MISCONFIGURED, True),
        ("CreateContainerConfigError", 'secret "t" not found', codes.POD_MISCONFIGURED, False),
        (
            "CreateContainerConfigError",
            "has runAsNonRoot and image will run as root",
            codes.POD_MISCONFIGURED,
            True,
        ),
        ("RunContainerError", "exec: no such file or directory", codes.POD_CRASHES, True),
        ("CreateContainerError", "context deadline exceeded", codes.POD_CRASHES, False),
    ],
)
def test_a_container_that_does_not_start(reason: str, text: str, code: object, fatal: bool) -> None:
    """The Secret ``t`` is one that the controller makes: it is only late."""
    waiting = {"waiting": {"reason": reason, "message": text}}
    finding = only(pod(containerStatuses=[{"name": "ray", "image": "zhongjing:0", "state": waiting}]))
    assert (finding.code, finding.fatal) == (code, fatal)
    assert text in finding.message


@pytest.mark.parametrize(
    ("reason", "text", "code", "fatal"),
    [
        ("FailedMount", 'MountVolume.SetUp failed: secret "own" not found', codes.POD_MISCONFIGURED, True),
        ("FailedMount", 'MountVolume.SetUp failed: secret "t" not found', codes.POD_MISCONFIGURED, False),
        ("FailedAttachVolume", "Multi-Attach error for volume", codes.VOLUME_PENDING, False),
        ("FailedCreatePodSandBox", "no IP addresses available", codes.POD_STARTING, False),
    ],
)
def test_a_pod_that_is_held_before_its_containers(reason: str, text: str, code: object, fatal: bool) -> None:
    held = pod(containerStatuses=[{"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}])
    finding = only(held, events=(event(reason, text, held),))
    assert (finding.code, finding.fatal) == (code, fatal)
    assert text in finding.message


@pytest.mark.parametrize(
    ("reason", "text", "fatal"),
    [
        ("FailedBinding", "no persistent volumes available and no storage class is set", True),
        ("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found', True),
        ("ProvisioningFailed", "rpc error: no quota", False),
    ],
)
def test_a_volume_claim_that_is_not_bound(reason: str, text: str, fatal: bool) -> None:
    waiting = unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
    waiting["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data-0"}}]
    claim = {"metadata": {"name": "data-0"}}
    finding = only(waiting, events=(event(reason, text, claim, "PersistentVolumeClaim"),))
    assert (finding.code, finding.fatal) == (codes.VOLUME_PENDING, fatal)
    assert f"its volume claim data-0 is not bound: {text}" in finding.message
    assert "its volume is not there" in only(waiting).message


def test_a_container_that_runs_again_for_long_has_no_past() -> None:
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": ago(30)}
    container = {
        "name": "ray",
        "restartCount": 1,
        "state": {"running": {"startedAt": ago(29)}},
        "lastState": {"terminated": ended},
    }
    assert only(pod(phase="Running", containerStatuses=[container])).code is codes.POD_CRASHES
    ended["finishedAt"] = ago(3600)
    assert only(pod(phase="Running", containerStatuses=[container])).code is codes.POD_STARTING


def test_events_of_an_earlier_pod_of_that_name_do_not_count() -> None:
    starting = pod(containerStatuses=[{"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}])
    old = event("FailedMount", 'MountVolume.SetUp failed: secret "x" not found', starting)
    old["involvedObject"]["uid"] = "another"
    assert only(starting, events=(old,)).code is codes.POD_STARTING


@pytest.mark.parametrize("reason", ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"])
def test_what_kept_a_pod_from_starting_is_past_when_a_container_runs(reason: str) -> None:
    """The kubelet tries these again, and its warning stays for an hour after they came about."""
    words = 'MountVolume.SetUp failed for volume "kube-api-access": failed to sync configmap cache'
    held = pod(containerStatuses=[{"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}])
    assert words in only(held, events=(event(reason, words, held),)).message
    runs = pod(
        phase="Running", containerStatuses=[{"name": "ray", "state": {"running": {"startedAt": ago(9)}}}]
    )
    found = only(runs, events=(event(reason, words, runs),))
    assert (found.code, "runs and is not ready yet" in found.message) == (codes.POD_STARTING, True)


def test_a_pull_that_takes_its_time_is_told() -> None:
    starting = pod(containerStatuses=[{"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}])
    pulling = event("Pulling", 'Pulling image "zhongjing:0.1.0"', starting)
    assert only(starting, events=(pulling,)).message == (
        f'pulls the image "zhongjing:0.1.0", since {ago(300)}'
    )
    pulled = event("Pulled", "Successfully pulled image", starting, passed=1)
    assert "is being started" in only(starting, events=(pulling, pulled)).message


@pytest.mark.parametrize(
    ("why", "code", "fatal"),
    [
        ('admission webhook "policy.example" denied the request: no', codes.POD_REFUSED, True),
        ('Internal error: failed calling webhook "policy.example": timeout', codes.POD_REFUSED, False),
        (
            "exceeded quota: team, requested: limits.memory=320Gi, used: limits.memory=0, "
            "limited: limits.memory=100Gi",
            codes.QUOTA_EXCEEDED,
            True,
        ),
        (
            "exceeded quota: team, requested: cpu=500m,memory=1Gi, used: cpu=1800m,memory=1Gi, "
            "limited: cpu=2,memory=4Gi",
            codes.QUOTA_EXCEEDED,
            False,
        ),
    ],
)
def test_pods_that_are_not_let_in(why: str, code: object, fatal: bool) -> None:
    short = stateful_set("zhongjing-ray-gpu", 2, 1)
    text = f'Create Pod x-1 in StatefulSet x failed error: pods "x-1" is forbidden: {why}'
    refused = event("FailedCreate", text, short, "StatefulSet")
    finding = only(events=(refused,), workloads=[PARTS[0], short])
    assert (finding.code, finding.fatal) == (code, fatal)
    assert finding.place == "statefulset/zhongjing-ray-gpu"
    # Old news, or another object's of that name.
    stale = event("FailedCreate", text, short, "StatefulSet", passed=7200)
    assert look(events=(stale,), workloads=[PARTS[0], short]) == []
    foreign = event("FailedCreate", text, short | {"metadata": {"name": "x"}}, "StatefulSet")
    assert look(events=(foreign,), workloads=[PARTS[0], short]) == []


def test_pods_of_a_group_whose_name_begins_another_groups_are_not_mixed_up() -> None:
    short, other = stateful_set("zhongjing-ray-gpu", 1, 0), stateful_set("zhongjing-ray-gpu-big", 1, 1)
    short["spec"]["strategy"] = other["spec"]["strategy"] = {}
    maker = {"metadata": {"name": "zhongjing-ray-gpu-big-7d9f", "uid": "x"}}
    refused = event("FailedCreate", "pods are forbidden: no", maker, "ReplicaSet")
    assert look(events=(refused,), workloads=[PARTS[0], short, other]) == []


def test_pods_of_a_deployment_are_made_by_its_replica_sets() -> None:
    controller = stateful_set("zhongjing-controller", 2, 0) | {"spec": {"replicas": 2, "strategy": {}}}
    maker = {"metadata": {"name": "zhongjing-controller-7d9f", "uid": "x"}}
    text = (
        'Error creating: pods "zhongjing-controller-7d9f-" is forbidden: violates PodSecurity "restricted:v1"'
    )
    refused = event("FailedCreate", text, maker, "ReplicaSet")
    finding = only(events=(refused,), workloads=[*PARTS, controller])
    assert (finding.code, finding.place) == (codes.POD_REFUSED, "deployment/zhongjing-controller")


# KubeRay


def cluster(*, made: float = 300, generation: int = 1, **status: Any) -> Object:
    metadata = {"name": FULLNAME, "creationTimestamp": ago(made), "generation": generation}
    return {"metadata": metadata, "spec": {}, "status": status}


HEAD_POD = pod("zhongjing-head", phase="Running", conditions=[{"type": "Ready", "status": "True"}])
HEAD_POD["metadata"]["labels"]["app.kubernetes.io/component"] = "ray-head"


def of_kuberay(**scene: Any) -> list[Finding]:
    return explain(Scene(NOW, **{"pods": [HEAD_POD], **scene}), release("kuberay"))


def test_kuberay_that_is_not_installed() -> None:
    [finding] = of_kuberay(serves_clusters=False)
    assert (finding.code, finding.fatal) == (codes.KUBERAY_MISSING, True)


def test_an_operator_that_does_not_run() -> None:
    assert of_kuberay(cluster=cluster(made=30)) == []  # it may just be coming
    [finding] = of_kuberay(cluster=cluster(made=90))
    assert (finding.code, finding.fatal) == (codes.KUBERAY_NOT_RUNNING, True)
    assert "has not taken it up" in finding.message
    assert of_kuberay(cluster=cluster(state="ready", observedGeneration=1)) == []


def test_an_operator_that_has_gone() -> None:
    behind = cluster(made=9000, generation=3, state="ready", observedGeneration=2)
    behind["metadata"]["managedFields"] = [
        {"time": ago(9000)},
        {"time": ago(20)},
        {"time": ago(5), "subresource": "status"},
    ]
    assert of_kuberay(cluster=behind) == []
    behind["metadata"]["managedFields"][1]["time"] = ago(120)
    [finding] = of_kuberay(cluster=behind)
    assert finding.code is codes.KUBERAY_NOT_RUNNING
    assert "has not seen its last change" in finding.message
    assert ago(120) in finding.message


def test_a_head_that_nobody_makes() -> None:
    """The operator ends, and then the head: nothing of the RayCluster tells of it."""
    seen = cluster(made=9000, state="ready", observedGeneration=1, lastUpdateTime=ago(500))
    [finding] = of_kuberay(cluster=seen, pods=[])
    assert (finding.code, finding.place) == (codes.KUBERAY_NOT_RUNNING, f"raycluster/{FULLNAME}")
    assert f"makes no head pod, and was last seen at {ago(500)}" in finding.message
    seen["status"]["conditions"] = [{"type": "HeadPodReady", "lastTransitionTime": ago(5)}]
    [finding] = of_kuberay(cluster=seen, pods=[])
    assert finding.code is codes.POD_STARTING
    seen["spec"] = {"suspend": True}
    [finding] = of_kuberay(cluster=seen, pods=[])
    assert "is suspended" in finding.message
    assert "kueue" in finding.remedy


def test_what_the_operator_could_not_make() -> None:
    text = 'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod", "message": text}
    [finding] = of_kuberay(cluster=cluster(observedGeneration=1, conditions=[failure]))
    assert (finding.code, finding.fatal) == (codes.QUOTA_EXCEEDED, True)


def test_workloads_that_another_provisioner_left() -> None:
    """Each is named by its kind: the head is a StatefulSet, workers are Deployments."""
    workers = stateful_set("zhongjing-ray-gpu", 1, 1)
    workers["spec"]["strategy"] = {"type": "Recreate"}
    [finding] = of_kuberay(cluster=cluster(state="ready"), workloads=[PARTS[0], workers])
    assert finding.code is codes.PROVISIONER_MISMATCH
    assert finding.remedy == "`kubectl delete deployment/zhongjing-ray-gpu statefulset/zhongjing-ray-head`"


# Telling


def test_a_serving_pod_and_one_that_has_done_its_work_say_nothing() -> None:
    serving = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert about_pod(serving, (), NOW) is None
    assert about_pod(pod(phase="Succeeded"), (), NOW) is None
    assert look(serving) == []


def test_a_sentence_is_not_a_report() -> None:
    findings = [found(codes.POD_CRASHES, f"pod/{name}", "ends") for name in "abcde"]
    assert sentence(findings) == "pod/a: ends; pod/b: ends; pod/c: ends; and 2 more"
    assert sentence(findings[:1]) == "pod/a: ends"
    assert len(found(codes.POD_CRASHES, "pod/a", "x" * 5000).message) < 700
