"""``zhongjing doctor -n``: a release that is in order, and each fault, against an API server in memory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.doctor_support import told
from tools.crd import crd
from zhongjing import __version__
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.failures import refused, unreachable
from zhongjing.backends.kubernetes.resources import Object, Request
from zhongjing.cli.diagnosis import cluster as cluster_module
from zhongjing.cli.diagnosis.capacity import judge_group
from zhongjing.cli.diagnosis.cluster import look
from zhongjing.cli.diagnosis.finding import Finding
from zhongjing.cli.evidence import Evidence, collect_doctor
from zhongjing.cli.target import ClusterTarget
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.release import RELEASE_KEY
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.errors import BackendUnavailableError

INSTANCE, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"
SECRET = "never-to-be-shown"


def labelled(name: str, component: str, **more: Any) -> Object:
    labels = {INSTANCE: "zj", COMPONENT: component, "app.kubernetes.io/part-of": "zhongjing"}
    created = "2026-11-23T04:00:00Z"
    return {"metadata": {"name": name, "uid": name, "labels": labels, "creationTimestamp": created}, **more}


def pod(name: str, component: str, **status: Any) -> Object:
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return labelled(name, component, spec={"containers": []}, status=status or ready)


def node(name: str, gpus: int = 4, disk: str = "500Gi", **spec: Any) -> Object:
    allocatable = {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": str(gpus), "ephemeral-storage": disk}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"allocatable": {**allocatable, "pods": "110"}, "conditions": conditions}
    return {"metadata": {"name": name, "labels": {"gpu": "a100"}}, "spec": spec, "status": status}


def encoded(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


DEFINITION = crd()
RESOURCES = {
    "requests": {"cpu": "32", "memory": "320Gi", "ephemeral-storage": "400Gi"},
    "limits": {"memory": "320Gi", "nvidia.com/gpu": "4"},
}
TEMPLATE = {
    "spec": {"nodeSelector": {"gpu": "a100"}, "containers": [{"name": "ray", "resources": RESOURCES}]}
}
DEPLOYMENT = {"kind": "Deployment", "metadata": {"name": "zj-ray-gpu"}, "spec": {"template": TEMPLATE}}
CLUSTER = {
    "kind": "RayCluster",
    "metadata": {"name": "zj"},
    "spec": {"workerGroupSpecs": [{"groupName": "zj-ray-gpu", "template": TEMPLATE}]},
}


def configuration(provisioner: str = "static") -> Object:
    group = {"name": "gpu", "workload": "zj-ray-gpu", "cpus": 32, "gpus": 4, "memory": "320Gi"}
    config = {
        "release": "zj",
        "fullname": "zj",
        "namespace": "lab",
        "chartVersion": __version__,
        "image": "registry.example/zhongjing:1",
        "provisioner": provisioner,
        "ray": {
            "cluster": "zj",
            "service": "zj-ray-head",
            "tokenSecret": "zj-ray-token",
            "tokenManaged": True,
            "scaling": "controller",
            "groups": [{**group, "minReplicas": 0, "maxReplicas": 2}],
        },
        "storage": {"bundled": False, "uri": "s3://b/p", "secret": "keys"},
    }
    return labelled("zj-config", "config", data={RELEASE_KEY: yaml.safe_dump(config)})


def healthy() -> dict[str, list[Object]]:
    """The objects of a release that is in order, by kind."""
    token, keys = encoded(SECRET), encoded(f"[default]\naws_secret_access_key = {SECRET}\n")
    return {
        "customresourcedefinitions": [deepcopy(DEFINITION)],
        "trainingpipelines": [],
        "configmaps": [
            configuration(),
            labelled("zj-gpu", "ray-workload", data={"workload": json.dumps(DEPLOYMENT)}),
        ],
        "deployments": [
            labelled(
                "zj-controller",
                "controller",
                spec={"replicas": 2, "strategy": {}},
                status={"replicas": 2, "readyReplicas": 2},
            ),
            labelled("zj-ray-gpu", "ray-worker", spec={"replicas": 0, "strategy": {}}),
        ],
        "statefulsets": [labelled("zj-ray-head", "ray-head", spec={"replicas": 1}, status={"replicas": 1})],
        "pods": [pod("zj-controller-1", "controller"), pod("zj-ray-head-0", "ray-head")],
        "events": [],
        "nodes": [node("n1"), node("n2")],
        "resourcequotas": [],
        "secrets": [
            {"metadata": {"name": "zj-ray-token"}, "data": {"auth_token": token}},
            {"metadata": {"name": "keys"}, "data": {"credentials": keys}},
        ],
        "persistentvolumeclaims": [],
    }


class Memory(KubeApi):
    """An API server in memory. Whatever is not a read fails the test."""

    def __init__(self) -> None:
        client = SimpleNamespace(configuration=SimpleNamespace(host="https://api"), close=lambda: None)
        super().__init__(cast(Any, client), "lab", context="here")
        self.objects = healthy()
        self.forbidden: set[str] = set()
        self.ahead = 0.0  # seconds of the server's clock
        self.away = False

    def _call(self, request: Request, seconds: float | None = None) -> Any:
        assert request.method == "GET", "doctor only reads"
        plural, group = request.resource.plural, request.resource.group
        if self.away:
            raise unreachable("refused", self.address)
        if plural in self.forbidden:
            verb = "get" if request.name else "list"
            place = f' in the namespace "{request.namespace}"' if request.namespace else ""
            said = f'User "x" cannot {verb} resource "{plural}" in API group "{group}"{place}'
            raise refused(403, json.dumps({"message": said}), request)
        if not plural:
            body: Object = {"resources": [{"name": each} for each in self.objects]}
        elif request.name is not None:
            named = [
                each for each in self.objects.get(plural, []) if each["metadata"]["name"] == request.name
            ]
            if not named:
                details = {"name": request.name}
                raise refused(404, json.dumps({"message": "not found", "details": details}), request)
            body = named[0]
        else:
            query = parse_qs(urlsplit(request.path).query)
            chosen = "".join(query.get("labelSelector", []))
            body = {"items": [each for each in self.objects.get(plural, []) if matches(each, chosen)]}
        date = formatdate(time.time() + self.ahead, usegmt=True)
        return SimpleNamespace(data=json.dumps(body).encode(), headers={"Date": date}, close=lambda: None)


def matches(thing: Object, selector: str) -> bool:
    labels = thing["metadata"].get("labels") or {}
    for key, values in re.findall(r"([\w./-]+) in \(([^)]*)\)", selector):
        if labels.get(key) not in values.split(","):
            return False
    return all(labels.get(key) == value for key, value in re.findall(r"([\w./-]+)=([\w.-]+)", selector))


@pytest.fixture
def api() -> Memory:
    return Memory()


def looked(api: Memory, document: TrainingPipeline | None = None) -> dict[str, Finding]:
    found = list(look(api, document=document))
    for finding in found:
        told(finding)
        assert SECRET not in f"{finding.finding} {finding.remedy}"
    return {finding.name: finding for finding in sorted(found, key=lambda each: each.status == "fails")}


def test_a_release_in_order(api: Memory) -> None:
    found = looked(api)
    assert {finding.status.value for finding in found.values()} == {"fine"}
    assert list(found) == [
        "api",
        "cluster clock",
        "crd",
        "release",
        "controller",
        "pods",
        "group gpu",
        "quotas",
        "secrets",
        "images",
        "volumes",
        "store",
        "network",
    ]
    assert found["group gpu"].finding == (
        "a pod asks for 32 cpu, 400 GiB ephemeral-storage, 320 GiB memory, 4 nvidia.com/gpu; "
        "2 of 2 nodes can hold 2 pods"
    )
    assert "`helm test zj -n lab --kube-context here`" in found["network"].finding


def change(kind: str, index: int, *path: str | int, to: object) -> Callable[[Memory], None]:
    """Sets a field of an object."""

    def make(api: Memory) -> None:
        place: Any = api.objects[kind][index]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return make


def replace(kind: str, *objects: Object) -> Callable[[Memory], None]:
    """Sets the objects of a kind."""
    return lambda api: api.objects.update({kind: deepcopy(list(objects))})


def remove(kind: str) -> Callable[[Memory], None]:
    return lambda api: cast(None, api.objects.pop(kind))


def skewed(seconds: float) -> Callable[[Memory], None]:
    return lambda api: setattr(api, "ahead", seconds)


def newer(api: Memory) -> None:
    schema = api.objects["customresourcedefinitions"][0]["spec"]["versions"][0]["schema"]
    schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["later"] = {"type": "string"}


def older(api: Memory) -> None:
    schema = api.objects["customresourcedefinitions"][0]["spec"]["versions"][0]["schema"]
    del schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["stages"]["properties"]["ppo"]


def kuberay(api: Memory) -> None:
    api.objects["configmaps"] = [
        configuration("kuberay"),
        labelled("zj-cluster", "ray-workload", data={"workload": json.dumps(CLUSTER)}),
    ]
    api.objects["statefulsets"] = []
    del api.objects["deployments"][1]


def with_autoscaler(api: Memory) -> None:
    api.objects["nodes"] = [node("n1", gpus=0)]
    api.objects["nodepools"] = []


def with_status_of_autoscaler(api: Memory) -> None:
    api.objects["nodes"] = [node("n1", gpus=0)]
    api.objects["configmaps"].append({"metadata": {"name": "cluster-autoscaler-status"}})


def quota(hard: dict[str, str], used: dict[str, str], **spec: Any) -> Object:
    return {"metadata": {"name": "team"}, "spec": spec, "status": {"hard": hard, "used": used}}


WAITING = {
    "name": "ray",
    "image": "x:1",
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "denied"}},
}
UNPULLED = pod("zj-ray-head-0", "ray-head", phase="Pending", containerStatuses=[WAITING])
TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
CLAIM = labelled("data-zj-s3-0", "s3", status={"phase": "Pending"})


def pull_secret(name: str) -> Callable[[Memory], None]:
    """Has pods name a pull secret; the one called login is there."""

    def make(api: Memory) -> None:
        api.objects["secrets"].append({"metadata": {"name": "login"}, "data": {".dockerconfigjson": "e30="}})
        api.objects["pods"][0]["spec"]["imagePullSecrets"] = [{"name": name}]

    return make


def outage(reason: str, kind: str = "Progressing") -> Object:
    """A pipeline whose condition has this reason."""
    said = "s3://b/p: the keys are refused"
    condition = {"type": kind, "status": "True", "reason": reason, "message": said, "remedy": "r"}
    condition["lastTransitionTime"] = "2026-11-23T05:00:00Z"
    return {"metadata": {"name": "demo"}, "status": {"conditions": [condition]}}


REFUSED = "failed     s3 access: refused [AccessDenied]"


def verified(phase: str, **terminated: str) -> Callable[[Memory], None]:
    """The pod of ``helm test``."""
    state = {"terminated": {"finishedAt": "2026-11-23T05:00:00Z", **terminated}}
    tested = pod("zj-verify", "test", phase=phase, containerStatuses=[{"state": state}])
    return lambda api: api.objects["pods"].append(tested)


@pytest.mark.parametrize(
    ("make", "name", "expected", "words"),
    [
        (skewed(-45), "cluster clock", ("warn", "WrongClock"), "ahead of the API server"),
        (skewed(400), "cluster clock", ("fails", "WrongClock"), "behind the API server"),
        (remove("trainingpipelines"), "crd", ("fails", "CrdMissing"), "does not know"),
        (older, "crd", ("fails", "CrdVersion"), "lacks what version"),
        (older, "crd", ("fails", "CrdVersion"), ": spec.stages.ppo"),
        (newer, "crd", ("warn", "CrdVersion"), "newer than this command line: spec.later"),
        (replace("configmaps"), "release", ("fails", "NoRelease"), "not installed"),
        (
            change("deployments", 0, "status", "readyReplicas", to=0),
            "controller",
            ("fails", "PodNotReady"),
            "0 of 2",
        ),
        (
            change("deployments", 0, "status", "readyReplicas", to=1),
            "controller",
            ("warn", "PodNotReady"),
            "1 of 2",
        ),
        (
            change("deployments", 0, "spec", "replicas", to=0),
            "controller",
            ("fails", "PodNotReady"),
            "nothing",
        ),
        (replace("deployments"), "controller", ("fails", "WorkloadMissing"), "its Deployment does not exist"),
        (replace("pods", UNPULLED), "pods", ("fails", "ImagePullFailed"), "the image x:1 cannot be pulled"),
        (kuberay, "kuberay", ("fails", "KubeRayMissing"), "the cluster knows no RayClusters"),
        (
            replace("nodes", node("n1", gpus=0)),
            "group gpu",
            ("fails", "NoFittingNode"),
            "no node has enough nvidia.com/gpu (at most 0 nvidia.com/gpu)",
        ),
        (
            replace("nodes", node("n1", disk="100Gi")),
            "group gpu",
            ("fails", "NoFittingNode"),
            "ephemeral-storage (at most 100 GiB ephemeral-storage)",
        ),
        (
            replace("nodes", node("n1", taints=[TAINT])),
            "group gpu",
            ("fails", "NoFittingNode"),
            "none of 1 nodes",
        ),
        (
            replace("nodes", node("n1", unschedulable=True)),
            "group gpu",
            ("fails", "NoFittingNode"),
            "has the labels (gpu=a100)",
        ),
        (with_status_of_autoscaler, "group gpu", ("warn", "NoFittingNode"), "An autoscaler may make such"),
        (with_autoscaler, "group gpu", ("warn", "NoFittingNode"), "An autoscaler may make such nodes"),
        (
            replace("resourcequotas", quota({"requests.nvidia.com/gpu": "2"}, {})),
            "quotas",
            ("fails", "QuotaExceeded"),
            "one pod of gpu takes more than the quota team: 4 requests.nvidia.com/gpu (it allows 2",
        ),
        (
            replace("resourcequotas", quota({"limits.memory": "400Gi"}, {"limits.memory": "200Gi"})),
            "quotas",
            ("warn", "QuotaExceeded"),
            "320 GiB limits.memory (it has left 200 GiB",
        ),
        (
            replace("resourcequotas", quota({"pods": "5", "cpu": "64"}, {"pods": "2"})),
            "quotas",
            ("fine", None),
            "fits into the quota team",
        ),
        (
            replace("resourcequotas", quota({"pods": "0"}, {}, scopes=["BestEffort"])),
            "quotas",
            ("fine", None),
            "has none",
        ),
        (
            replace("configmaps", configuration()),
            "worker groups",
            ("fails", "WorkloadMissing"),
            "nothing describes the pods of gpu",
        ),
        (replace("secrets"), "secrets", ("fails", "SecretIncomplete"), "does not exist"),
        (
            change("secrets", 1, "data", to={"credentials": encoded("no profile")}),
            "secrets",
            ("fails", "SecretIncomplete"),
            "secret/keys: its credentials has no profile",
        ),
        (
            replace("persistentvolumeclaims", CLAIM),
            "volumes",
            ("fails", "VolumePending"),
            "pvc/data-zj-s3-0 is Pending",
        ),
        (pull_secret("login"), "images", ("fine", None), "pull secrets: login"),
        (pull_secret("keys"), "images", ("warn", "ImagePullFailed"), "secret/keys is missing or no login"),
        (pull_secret("other"), "images", ("warn", "ImagePullFailed"), "secret/other is missing or no login"),
        (
            replace("trainingpipelines", outage("AccessDenied")),
            "store",
            ("fails", "AccessDenied"),
            "the controller, for demo since 2026-11-23T05:00:00Z: s3://b/p: the keys are refused",
        ),
        (
            replace("trainingpipelines", outage("AccessDenied", "Failed")),
            "store",
            ("warn", "AccessDenied"),
            "the controller, for demo",
        ),
        (replace("trainingpipelines", outage("Running")), "store", ("fine", None), "s3://b/p at AWS"),
        (
            verified("Succeeded"),
            "network",
            ("fine", None),
            "a pod reached Ray and the store",
        ),
        (
            verified("Failed", message=f"fine       ray token: well\n{REFUSED}\n           remedy: r"),
            "network",
            ("fails", "PodCrashes"),
            "failed (2026-11-23T05:00:00Z): s3 access: refused [AccessDenied]",
        ),
        (verified("Failed"), "network", ("fails", "PodCrashes"), "its log says why"),
        (verified("Running"), "network", ("fine", None), "not checked from here"),
    ],
)
def test_faults(
    api: Memory,
    make: Callable[[Memory], None],
    name: str,
    expected: tuple[str, str | None],
    words: str,
) -> None:
    make(api)
    finding = looked(api)[name]
    assert told(finding) == expected
    assert words in finding.finding


@pytest.mark.parametrize(
    ("kind", "name", "may"),
    [
        ("customresourcedefinitions", "crd", "get customresourcedefinitions.apiextensions.k8s.io"),
        ("configmaps", "release", "list configmaps"),
        ("deployments", "controller", "list deployments.apps"),
        ("pods", "pods", "list pods"),
        ("nodes", "nodes", "list nodes"),
        ("resourcequotas", "quotas", "list resourcequotas"),
        ("secrets", "secrets", "get secrets"),
        ("persistentvolumeclaims", "volumes", "list persistentvolumeclaims"),
    ],
)
def test_a_right_that_is_missing_is_one_line(api: Memory, kind: str, name: str, may: str) -> None:
    api.forbidden.add(kind)
    finding = looked(api)[name]
    assert told(finding) == ("warn", "Forbidden")
    assert finding.finding.startswith(f"not checked: may not {may} in the ")
    assert "kubectl auth can-i" in str(finding.remedy)


GPU = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("tolerations", "status"),
    [
        ([{"operator": "Exists"}], "fine"),
        ([{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}], "fine"),
        ([{"key": GPU}], "fine"),
        ([{"key": GPU, "value": "yes"}], "fails"),
        ([{"operator": "Exists", "effect": "NoExecute"}], "fails"),
    ],
)
def test_taints_are_tolerated_as_the_scheduler_does(tolerations: list[Object], status: str) -> None:
    spec = {**TEMPLATE["spec"], "tolerations": tolerations}
    finding = judge_group("gpu", spec, [node("n1", taints=[TAINT])], 1, scales=False)
    assert told(finding)[0] == status


@pytest.mark.parametrize(
    ("nodes", "first", "remedy"),
    [
        ([node("n1", gpus=0)], {}, "see that the device plugin (GPU operator) runs on the GPU nodes"),
        ([node("n1", gpus=2)], {}, "lower gpus of the group"),
        ([node("n1", disk="1Gi")], {}, "lower workers.scratch.size"),
        ([node("n1")], {"cpu": "65"}, "lower cpus and memory of the group"),
        ([node("n1", gpus=0), node("n2", disk="1Gi")], {}, ""),
    ],
)
def test_the_remedy_names_what_is_short(nodes: list[Object], first: dict[str, str], remedy: str) -> None:
    spec = {**TEMPLATE["spec"], "initContainers": [{"resources": {"requests": first}}]}
    finding = judge_group("gpu", spec, nodes, 1, scales=False)
    assert told(finding) == ("fails", "NoFittingNode")
    assert remedy in str(finding.remedy)


def test_workers_that_run_count_once_in_a_quota(api: Memory) -> None:
    worker = pod("zj-ray-gpu-1", "ray-worker")
    worker["spec"] = TEMPLATE["spec"]
    api.objects["pods"].append(worker)
    hard = {"requests.cpu": "32", "pods": "3"}
    replace("resourcequotas", quota(hard, hard))(api)
    assert told(looked(api)["quotas"]) == ("fine", None)


def test_kuberay_that_works(api: Memory) -> None:
    kuberay(api)
    status = {"observedGeneration": 1}
    api.objects["rayclusters"] = [labelled("zj", "ray-cluster", spec={}, status=status)]
    api.objects["rayclusters"][0]["metadata"]["generation"] = 1
    found = looked(api)
    assert told(found["kuberay"]) == ("fine", None)
    assert told(found["group gpu"]) == ("fine", None)
    assert "may run it" in found["operator"].finding
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    spec = {"template": {"spec": {"containers": [{"image": "quay.io/kuberay/operator:v1.7.0"}]}}}
    metadata = {"name": "kuberay-operator", "namespace": "ray", "labels": labels}
    deployment: Object = {"metadata": metadata, "spec": spec, "status": {"readyReplicas": 1}}
    api.objects["deployments"].append(deployment)
    finding = looked(api)["operator"]
    assert told(finding) == ("fine", None)
    assert "in ray, quay.io/kuberay/operator:v1.7.0: 1 replicas ready" in finding.finding
    del deployment["status"]
    assert told(looked(api)["operator"]) == ("fails", "KubeRayNotRunning")


DOCUMENT = """\
kind: TrainingPipeline
metadata: {name: demo}
spec:
  base: {tiny: {}}
  sources: [{name: talks, uri: "s3://b/talks.jsonl", kind: dialogue}]
  stages:
    sft: {data: [{source: talks}], maxLength: 512, workers: WORKERS, resources: {cpus: 1, gpus: 1}}
"""


@pytest.mark.parametrize(
    ("workers", "name", "code", "words"),
    [
        (4, "quotas", None, "stage sft fits into the quota team"),
        (8, "quotas", "QuotaExceeded", "stage sft takes more than the quota team: 8 requests.nvidia.com/gpu"),
        (8, "group gpu", "NoFittingNode", "can hold 1 pods, 2 are needed"),
        (9, "stage sft", "NoRoom", "the release holds 8 at most"),
    ],
)
def test_what_the_stages_of_a_document_take(
    api: Memory, workers: int, name: str, code: str | None, words: str
) -> None:
    api.objects["nodes"] = [node("n1")]
    replace("resourcequotas", quota({"requests.nvidia.com/gpu": "4"}, {}))(api)
    document = resolve(parse_document(DOCUMENT.replace("WORKERS", str(workers)), "my.yaml"))
    finding = looked(api, document)[name]
    assert finding.code == code
    assert words in finding.finding


def test_an_api_that_is_away_ends_it(api: Memory) -> None:
    api.away = True
    with pytest.raises(BackendUnavailableError, match="does not answer"):
        list(look(api))


def test_a_report_has_what_doctor_finds(api: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "connect", lambda *_: api)
    api.objects["nodes"] = [node("n1", gpus=0)]
    evidence = Evidence()
    collect_doctor(evidence, ClusterTarget("lab"))
    found = evidence.parts["doctor"]
    assert found["notFine"] == [{"check": "group", "status": "fails", "code": "NoFittingNode"}]
    assert found["statuses"]["fine"] > 10


def test_the_command(
    command: CommandLine, api: Memory, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    (tmp_path / "config").write_text(json.dumps({"current-context": "here", "contexts": [entry]}))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    asked: list[object] = []

    def connect(*given: object) -> Memory:
        asked.extend(given)
        return api

    monkeypatch.setattr(cluster_module, "connect", connect)
    done = command("doctor", "-n", "lab", "-o", "json")
    assert done.exit_code == 0, done.output
    assert asked == [None, "lab"]
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert names[:3] == ["python", "packages", "api"]
    assert "torch" not in names
    api.objects["secrets"] = []
    assert command("doctor", "-n", "lab").exit_code == 1
    assert command("doctor", "-n", "lab", "--local").exit_code == 2
    assert "network" not in command("doctor", "--storage", "s3://b/p", "--only", "cluster").stdout
    api.away = True
    done = command("doctor")
    assert done.exit_code == 1
    assert "the Kubernetes API does not answer" in done.output
