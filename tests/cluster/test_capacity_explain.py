"""Why pods are not there: real pods, stuck in every way that one node can show, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster.capacity_support import (
    FULLNAME,
    PAUSE,
    container,
    group,
    install_head,
    install_workers,
    release,
    stateful_set,
)
from tests.cluster.own_namespace import own_namespace, wait_for
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.diagnosis import Explainer, sentence
from zhongjing.backends.kubernetes.pod_diagnosis import Finding
from zhongjing.backends.kubernetes.resources import PODS, SECRETS, Object, Resource
from zhongjing.codes import Code
from zhongjing.codes import pods as codes

pytestmark = pytest.mark.cluster

CLAIMS = Resource("", "v1", "persistentvolumeclaims")
QUOTAS = Resource("", "v1", "resourcequotas")

# The node's own programs: the pause image has none.
FOLDERS = ("bin", "lib", "lib64", "usr")
PROGRAMS = [{"name": name, "hostPath": {"path": f"/{name}"}} for name in FOLDERS]
MOUNTS = [{"name": name, "mountPath": f"/{name}", "readOnly": True} for name in FOLDERS]
MISSING = {"name": "s", "secret": {"secretName": "no-such-secret"}}
NO_KEY = {"name": "s", "secret": {"secretName": "half", "items": [{"key": "auth_token", "path": "t"}]}}


def volumes(*added: Object) -> dict[str, Any]:
    mounts = [{"name": each["name"], "mountPath": f"/mnt/{each['name']}"} for each in added]
    return {"volumes": list(added), "containers": [container(volumeMounts=mounts)]}


def shell(script: str, **fields: Any) -> dict[str, Any]:
    command = ["/bin/sh", "-c", script]
    words = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    return {
        "volumes": PROGRAMS,
        "containers": [container(command=command, volumeMounts=MOUNTS, **words, **fields)],
    }


def alone(**fields: Any) -> dict[str, Any]:
    return {"containers": [container(**fields)]}


def variable(secret: str, key: str) -> dict[str, Any]:
    return alone(env=[{"name": "T", "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}])


@dataclass(frozen=True)
class Stuck:
    """A pod that is stuck, and what must be said of it."""

    pod: dict[str, Any]
    code: Code
    says: tuple[str, ...]
    remedy: str = ""
    fatal: bool = False
    when: Callable[[Finding], bool] = field(default=lambda finding: True)


CASES = {
    "unreachable-registry": Stuck(
        alone(image="registry.invalid/zhongjing:0.1.0"),
        codes.IMAGE_PULL_FAILED,
        ("the image registry.invalid/zhongjing:0.1.0 cannot be pulled", "registry.invalid"),
        "make image push",
    ),
    "image-never-pulled": Stuck(
        alone(image="localhost/none:1", imagePullPolicy="Never"),
        codes.IMAGE_PULL_FAILED,
        ("localhost/none:1", "is not present"),
        "image.repository",
        fatal=True,
    ),
    "image-name": Stuck(
        alone(image="Registry//Name:1"),
        codes.IMAGE_PULL_FAILED,
        ("Registry//Name:1", "invalid reference format"),
        fatal=True,
    ),
    "more-than-a-node": Stuck(
        alone(resources={"requests": {"cpu": "4001"}}),
        codes.NO_FITTING_NODE,
        ("no node of the cluster can ever hold it", "cpu 4001", "Insufficient cpu"),
        "lower what its pods ask for (cpu)",
    ),
    "gpus": Stuck(
        alone(resources={"limits": {"example.com/gpu": "4"}}),
        codes.NO_FITTING_NODE,
        ("example.com/gpu 4", "Insufficient example.com/gpu"),
        "see whether nodes offer example.com/gpu (device plugin, GPU operator), or lower gpus",
    ),
    "selector": Stuck(
        {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
        codes.NO_FITTING_NODE,
        ("nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB", "didn't match"),
        "set nodeSelector of the group, now nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB, to labels",
    ),
    "gated": Stuck(
        {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        codes.POD_UNSCHEDULABLE,
        ("is held back by kueue.x-k8s.io/admission",),
        "workloads.kueue.x-k8s.io",
    ),
    "no-class": Stuck(
        volumes({"name": "data", "persistentVolumeClaim": {"claimName": "classless"}}),
        codes.VOLUME_PENDING,
        ("claim classless is not bound", "no storage class is set"),
        "storageclass",
        fatal=True,
    ),
    "unknown-class": Stuck(
        volumes({"name": "data", "persistentVolumeClaim": {"claimName": "fast"}}),
        codes.VOLUME_PENDING,
        ("claim fast is not bound", 'storageclass.storage.k8s.io "fast" not found'),
        fatal=True,
    ),
    "no-claim": Stuck(
        volumes({"name": "data", "persistentVolumeClaim": {"claimName": "nowhere"}}),
        codes.VOLUME_PENDING,
        ('persistentvolumeclaim "nowhere" not found',),
    ),
    "no-program": Stuck(
        alone(command=["/opt/zhongjing/bin/ray"]),
        codes.POD_CRASHES,
        ("/opt/zhongjing/bin/ray", "no such file or directory"),
        fatal=True,
    ),
    "exit-code": Stuck(
        shell("echo cannot reach the head >&2; exit 3"),
        codes.POD_CRASHES,
        ("last with exit code 3: cannot reach the head", "was started"),
        "`kubectl logs zj-exit-code -c ray --previous`",
        when=lambda finding: "was started" in finding.message,
    ),
    "out-of-memory": Stuck(
        shell("exec perl -e '$x = \"a\" x 200000000; sleep 100'", resources={"limits": {"memory": "20Mi"}}),
        codes.POD_OUT_OF_MEMORY,
        ("was killed for its memory: its limit is 20Mi",),
        "raise the memory",
    ),
    "secret-variable": Stuck(
        variable("no-such-secret", "auth_token"),
        codes.POD_MISCONFIGURED,
        ('secret "no-such-secret" not found',),
        fatal=True,
    ),
    "key-variable": Stuck(
        variable("half", "auth_token"),
        codes.POD_MISCONFIGURED,
        ("couldn't find key auth_token in Secret",),
        fatal=True,
    ),
    "managed-secret": Stuck(
        variable(f"{FULLNAME}-ray-token", "auth_token"),
        codes.POD_MISCONFIGURED,
        ("cannot start yet", f'secret "{FULLNAME}-ray-token" not found'),
        "wait: the controller makes it",
    ),
    "root": Stuck(
        alone(securityContext={"runAsNonRoot": True}),
        codes.POD_MISCONFIGURED,
        ("image will run as root",),
        "use the chart's own image",
        fatal=True,
    ),
    "secret-file": Stuck(
        volumes(MISSING), codes.POD_MISCONFIGURED, ('secret "no-such-secret" not found',), fatal=True
    ),
    "key-file": Stuck(
        volumes(NO_KEY), codes.POD_MISCONFIGURED, ("references non-existent secret key",), fatal=True
    ),
    "config-file": Stuck(
        volumes({"name": "s", "configMap": {"name": "no-such-map"}}),
        codes.POD_MISCONFIGURED,
        ('configmap "no-such-map" not found',),
        fatal=True,
    ),
    "unready": Stuck(
        alone(readinessProbe={"tcpSocket": {"port": 8265}, "periodSeconds": 1}),
        codes.POD_STARTING,
        ("runs and is not ready yet", "Readiness probe failed"),
        when=lambda finding: "probe" in finding.message,
    ),
    "init": Stuck(
        {"initContainers": [{"name": "wait-for-head", "image": PAUSE, "imagePullPolicy": "IfNotPresent"}]},
        codes.POD_STARTING,
        ("waits in its init container wait-for-head",),
        when=lambda finding: "init" in finding.message,
    ),
}


def claim(name: str, **spec: Any) -> Object:
    # So large that no volume that happens to be there is taken.
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Pi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": size | spec,
    }


@pytest.fixture(scope="module")
def stuck() -> Iterator[KubeApi]:
    """All the pods at once: most of the time is Kubernetes' own waiting."""
    with own_namespace("explain") as api:
        half = {"metadata": {"name": "half"}, "apiVersion": "v1", "kind": "Secret", "stringData": {"x": "y"}}
        api.create(SECRETS, half)
        api.create(CLAIMS, claim("classless", storageClassName=""))
        api.create(CLAIMS, claim("fast", storageClassName="fast"))
        for name, case in CASES.items():
            made = stateful_set("unused", "ray-worker", group="gpu", **case.pod)["spec"]["template"]
            metadata = made["metadata"] | {"name": f"zj-{name}"}
            api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made["spec"]})
        yield api


def wait_for_finding(api: KubeApi, place: str, code: Code) -> Finding:
    def look() -> Finding | None:
        finding = find(api, place)
        return finding if finding is not None and finding.code is code else None

    found = wait_for(look, f"{code} of {place}")
    assert found is not None
    return found


def find(api: KubeApi, place: str, **about: Any) -> Finding | None:
    config = about.pop("config", None) or release(api, group())
    for each in Explainer(api, config, **about).findings():
        if each.place == place:
            return each
    return None


@pytest.mark.parametrize("name", CASES)
def test_what_keeps_a_pod(stuck: KubeApi, name: str) -> None:
    case = CASES[name]

    def look() -> Finding | None:
        finding = find(stuck, f"pod/zj-{name}")
        return finding if finding and finding.code is case.code and case.when(finding) else None

    finding = wait_for(look, f"{case.code} of {name}")
    for words in case.says:
        assert words in finding.message
    assert case.remedy in finding.remedy
    assert finding.fatal is case.fatal


def test_a_pod_that_no_node_can_hold_is_hopeless_after_a_while(stuck: KubeApi) -> None:
    config = release(stuck, group())
    later = find(stuck, "pod/zj-gpus", config=config, clock=lambda: time.time() + 120)
    assert later is not None
    assert later.fatal


def test_the_gravest_comes_first_and_what_starts_comes_last(stuck: KubeApi) -> None:
    findings = Explainer(stuck, release(stuck, group())).findings()
    fatal = [finding.fatal for finding in findings]
    assert fatal == sorted(fatal, reverse=True)
    starting = [finding.code is codes.POD_STARTING for finding in findings]
    assert starting == sorted(starting)
    assert sentence(findings).endswith(f"and {len(findings) - 3} more")


def test_a_busy_node_is_no_reason_to_give_up() -> None:
    with own_namespace("explain-busy") as api:
        install_head(api)
        install_workers(api, replicas=2, **alone(resources={"requests": {"cpu": "1100m"}}))

        def look() -> Finding | None:
            found = Explainer(api, release(api, group())).findings()
            waiting = [each for each in found if each.code is codes.POD_UNSCHEDULABLE]
            return waiting[0] if waiting else None

        finding = wait_for(look, "pod without room")
        assert "no node has room for it now" in finding.message
        assert not finding.fatal


def test_pods_that_are_kept_by_the_same_are_told_once() -> None:
    with own_namespace("explain-same") as api:
        install_head(api)
        install_workers(api, replicas=3, nodeSelector={"no": "where"})

        def told_once() -> bool:
            found = Explainer(api, release(api, group())).findings()
            kept = [each.place for each in found if each.code is codes.NO_FITTING_NODE]
            return len(kept) == 1 and kept[0].endswith(" and 2 more")

        wait_for(told_once, "one finding of three pods")


def test_all_well_says_nothing_and_costs_three_requests() -> None:
    with own_namespace("explain-well") as api:
        install_head(api)
        install_workers(api, replicas=1)
        explainer = Explainer(api, release(api, group()), components=("ray-head", "ray-worker"))
        wait_for(lambda: not explainer.findings(), "a release that serves")
        before = api.requests
        explainer.findings()
        assert api.requests - before == 3


# What makes the pods


def quota(**hard: str) -> Object:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": hard}}


@pytest.mark.parametrize(("most", "fatal"), [("15m", False), ("5m", True)])
def test_a_quota_without_room(most: str, fatal: bool) -> None:
    small = alone(resources={"requests": {"cpu": "10m"}})
    with own_namespace("explain-quota") as api:
        api.create(QUOTAS, quota(**{"requests.cpu": most}))
        install_head(api, **alone(resources={"requests": {"cpu": "1m"}}))
        wait_for(lambda: len(api.find(PODS).items) == 1, "head")
        install_workers(api, replicas=2, **small)
        place = f"deployment/{FULLNAME}-ray-gpu"
        finding = wait_for_finding(api, place, codes.QUOTA_EXCEEDED)
        assert "exceeded quota: team, requested: requests.cpu=10m" in finding.message
        assert f"limited: requests.cpu={most}" in finding.message
        assert finding.remedy.startswith("`kubectl describe quota team")
        assert finding.fatal is fatal


def test_pod_security_refuses() -> None:
    with own_namespace("explain-security", **{"pod-security.kubernetes.io/enforce": "restricted"}) as api:
        install_head(api)
        place = f"statefulset/{FULLNAME}-ray-head"
        finding = wait_for_finding(api, place, codes.POD_REFUSED)
        assert 'violates PodSecurity "restricted:latest"' in finding.message
        assert "another level" in finding.remedy
        assert finding.fatal


def test_a_service_account_that_is_missing() -> None:
    with own_namespace("explain-account") as api:
        install_head(api, serviceAccountName="nobody")
        place = f"statefulset/{FULLNAME}-ray-head"
        finding = wait_for_finding(api, place, codes.POD_REFUSED)
        assert 'serviceaccount "nobody" not found' in finding.message


def test_parts_that_are_missing() -> None:
    with own_namespace("explain-missing") as api:
        findings = Explainer(api, release(api, group())).findings()
        assert [(finding.code, finding.place, finding.fatal) for finding in findings] == [
            (codes.WORKLOAD_MISSING, f"statefulset/{FULLNAME}-ray-head", True),
            (codes.WORKLOAD_MISSING, f"deployment/{FULLNAME}-ray-gpu", False),  # the controller makes it
        ]
