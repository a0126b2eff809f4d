"""The chart against a real API server: it takes all that is rendered, and installs, upgrades and goes."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from tests.chart.cases import CASES, Case
from tests.chart.support import (
    CHART,
    FULLNAME,
    PROVISIONERS,
    RELEASE,
    TINY,
    ChartError,
    Object,
    helm,
    of_kind,
    pod_templates,
    render,
)
from tests.cluster.own_namespace import own_namespace, wait_for
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import (
    CONFIG_MAPS,
    PIPELINES,
    PODS,
    RAY_CLUSTERS,
    STATEFUL_SETS,
    Resource,
)
from zhongjing.config.release import parse_release
from zhongjing.errors import BackendError

pytestmark = pytest.mark.cluster

BOTH = pytest.mark.parametrize("provisioner", PROVISIONERS)
ACCOUNTS = Resource("", "v1", "serviceaccounts")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False)
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
RAY_CRD = "rayclusters.ray.io"
NO_IMAGE = {"image": {"repository": "localhost/none"}}  # what runs in the pods does not matter here


CLUSTER_WIDE = {
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "PriorityClass",
    "ResourceFlavor",
    "ClusterQueue",
}


def resource_of(each: Object) -> Resource:
    group, _, version = each["apiVersion"].rpartition("/")
    kind = each["kind"].lower()
    plural = {
        "networkpolicy": "networkpolicies",
        "ingress": "ingresses",
        "priorityclass": "priorityclasses",
    }.get(kind, f"{kind}s")
    cluster_wide = each["kind"] in CLUSTER_WIDE
    return Resource(group, version, plural, namespaced=not cluster_wide)


@contextmanager
def namespace(level: str = "restricted") -> Iterator[KubeApi]:
    """A namespace of its own that enforces a Pod Security level."""
    with own_namespace("chart", **{"pod-security.kubernetes.io/enforce": level}) as api:
        yield api


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApi]:
    with namespace() as api:
        yield api


@pytest.fixture(scope="module")
def privileged() -> Iterator[KubeApi]:
    with namespace("privileged") as api:
        yield api


@pytest.fixture(scope="module")
def pipelines_served(api: KubeApi) -> None:
    """The TrainingPipelines' definition, which all releases of the cluster share."""
    definition = yaml.safe_load((CHART / "files/trainingpipeline-crd.yaml").read_text(encoding="utf-8"))
    api.patch(DEFINITIONS, definition["metadata"]["name"], definition, kind="apply", force=True)
    wait_for(lambda: api.serves(PIPELINES), "the TrainingPipelines' API")


@pytest.fixture(scope="module")
def kuberay_served(api: KubeApi, kuberay_crd_file: Path) -> Iterator[None]:
    """KubeRay's RayCluster. Taken away afterwards, unless it was there: `auto` would see it."""
    if api.get(DEFINITIONS, RAY_CRD) is not None:
        yield
        return
    definition = yaml.load(
        kuberay_crd_file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    api.patch(DEFINITIONS, RAY_CRD, definition, kind="apply", force=True)
    wait_for(lambda: api.serves(RAY_CLUSTERS), "KubeRay's API")
    yield
    api.delete(DEFINITIONS, RAY_CRD)
    wait_for(lambda: not api.serves(RAY_CLUSTERS), "end of KubeRay's API")


def accept(api: KubeApi, objects: list[Object]) -> None:
    """Has the API server check every object; what belongs to an operator, only where that is installed."""
    served = {group: api.serves(resource) for group, resource in OPERATORS.items()}
    for each in objects:
        resource = resource_of(each)
        if each["kind"] == "Pod" or not served.get(resource.group, True):
            continue
        api.patch(resource, each["metadata"]["name"], each, kind="apply", force=True, dry_run=True)


OPERATORS = {"monitoring.coreos.com": Resource("monitoring.coreos.com", "v1", "podmonitors")}


def accept_pods(api: KubeApi, objects: list[Object]) -> None:
    """Makes a pod of every template, without persisting it: so admission looks at it."""
    for account in of_kind(objects, "ServiceAccount"):
        api.patch(ACCOUNTS, account["metadata"]["name"], account, kind="apply", force=True)
    for name, template in pod_templates(objects):
        spec = deepcopy(template["spec"])
        # Classes need to exist for a pod, for a template they do not.
        spec.pop("priorityClassName", None)
        spec.pop("runtimeClassName", None)
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name.rpartition("/")[2].lower(),
                "namespace": api.namespace,
                "labels": template["metadata"]["labels"],
            },
            "spec": spec,
        }
        api.create(PODS, pod, dry_run=True)


def options(provisioner: str, api: KubeApi) -> dict[str, Any]:
    return {"provisioner": provisioner, "namespace": api.namespace}


def run_case(each: Case, provisioner: str, api: KubeApi) -> None:
    objects = render(each.values, **options(provisioner, api))
    accept(api, objects)
    accept_pods(api, objects)


STATIC = [each for each in CASES if "static" in each.provisioners]
KUBERAY = [each for each in CASES if "kuberay" in each.provisioners]


@pytest.mark.usefixtures("pipelines_served")
@pytest.mark.parametrize("each", STATIC, ids=lambda each: each.name)
def test_api_server_takes_every_value_static(each: Case, api: KubeApi, privileged: KubeApi) -> None:
    run_case(each, "static", api if each.restricted else privileged)


@pytest.mark.usefixtures("pipelines_served", "kuberay_served")
@pytest.mark.parametrize("each", KUBERAY, ids=lambda each: each.name)
def test_api_server_takes_every_value_kuberay(each: Case, api: KubeApi, privileged: KubeApi) -> None:
    run_case(each, "kuberay", api if each.restricted else privileged)


@pytest.mark.usefixtures("pipelines_served", "kuberay_served")
@pytest.mark.parametrize("files", [(), (TINY,)], ids=["defaults", "tiny"])
@BOTH
def test_api_server_takes_the_defaults(provisioner: str, files: tuple[Path, ...], api: KubeApi) -> None:
    objects = render(files=files, **options(provisioner, api))

    accept(api, objects)
    accept_pods(api, objects)


@pytest.mark.parametrize("each", [each for each in CASES if not each.restricted], ids=lambda each: each.name)
def test_what_is_said_to_be_outside_restricted_is_refused_there(each: Case, api: KubeApi) -> None:
    objects = render(each.values, **options("static", api))

    with pytest.raises(BackendError, match='violates PodSecurity "restricted'):
        accept_pods(api, objects)


def test_misspelt_fields_are_refused_by_the_api_server(api: KubeApi) -> None:
    """The check itself can fail: a field that does not exist is not dropped in silence."""
    values = {"workers": {"groups": {"gpu": {"podTemplate": {"spec": {"nodeSelektor": {"a": "b"}}}}}}}

    with pytest.raises(BackendError, match="nodeSelektor"):
        accept(api, render(values, **options("static", api)))


# Real installs. Their pods never start, and need not: only what lies in the API counts.


@contextmanager
def installed(api: KubeApi, values: Object, *arguments: str, release: str = RELEASE) -> Iterator[None]:
    place = ("--namespace", api.namespace)
    helm("install", release, str(CHART), *place, *arguments, values=values)
    try:
        yield
    finally:
        helm("uninstall", release, *place, "--wait=false")


def provisioner_of(api: KubeApi) -> str:
    found = api.get(CONFIG_MAPS, f"{FULLNAME}-provisioner")
    assert found is not None
    return str(found["data"]["provisioner"])


VALUES: Object = NO_IMAGE | {
    "crds": {"install": False},
    "s3": {"bundled": {"persistence": {"enabled": False}}},
}


def images(api: KubeApi, name: str) -> set[str]:
    """Of all containers of a pod, unless it is on its way out."""
    return {
        container["image"]
        for pod in api.find(PODS).items
        if not pod["metadata"].get("deletionTimestamp") and name == pod["metadata"]["name"]
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", []))
    }


def test_every_component_recovers_from_a_bad_image_by_rollback_alone() -> None:
    """Neither image exists, so no pod is ever ready: what waits for one that is stays as it is for ever.

    The controller's Deployment keeps its old pods until new ones serve, and can always go back to them.
    """
    values = VALUES | {"ray": {"provisioner": "static", "scaling": "none"}}
    with namespace() as api, installed(api, values):
        place = ("--namespace", api.namespace)
        store, head = f"{FULLNAME}-s3-0", f"{FULLNAME}-ray-head-0"

        def runs(tag: str) -> bool:
            image = f"localhost/none:{tag}"
            return images(api, store) == {f"{image}-controller"} and images(api, head) == {image}

        wait_for(lambda: runs("0.1.0"), "pods of the first image")
        bad = values | {"image": {"repository": "localhost/none", "tag": "9.9"}}
        helm("upgrade", RELEASE, str(CHART), *place, values=bad)
        wait_for(lambda: runs("9.9"), "pods of the bad image")
        helm("rollback", RELEASE, *place)
        wait_for(lambda: runs("0.1.0"), "pods of the first image again")


def test_persistence_of_the_store_can_be_turned_on_and_resized() -> None:
    def stored(size: str, **more: object) -> Object:
        persistence = {"enabled": True, "size": size, "storageClass": "none-such", **more}
        return VALUES | {"ray": {"provisioner": "static"}, "s3": {"bundled": {"persistence": persistence}}}

    with namespace() as api, installed(api, VALUES | {"ray": {"provisioner": "static"}}):
        place = ("--namespace", api.namespace)
        upgrade = functools.partial(_upgrade, place)
        upgrade(stored("2Gi"))
        claim = api.get(CLAIMS, f"data-{FULLNAME}-s3-0")
        assert claim is not None
        assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
        upgrade(stored("2Gi", annotations={"a": "b"}))
        with pytest.raises(ChartError, match="a volume cannot be made smaller"):
            upgrade(stored("1Gi"))
        with pytest.raises(ChartError, match="is not bound yet: only a bound one can grow"):
            upgrade(stored("3Gi"))
        with pytest.raises(ChartError, match=r"storageClass is other, and .* it cannot be changed"):
            upgrade(stored("2Gi", storageClass="other"))
        with pytest.raises(ChartError, match=r"accessModes is ReadWriteMany, and .* it cannot be changed"):
            upgrade(stored("2Gi", accessModes=["ReadWriteMany"]))
        upgrade(VALUES | {"ray": {"provisioner": "static"}})
        assert api.get(CLAIMS, f"data-{FULLNAME}-s3-0") is not None, "turned off, the data stay"
        upgrade(stored("2Gi"))
        helm("uninstall", RELEASE, *place, "--wait=false")
        assert api.get(CLAIMS, f"data-{FULLNAME}-s3-0") is not None
        helm("install", RELEASE, str(CHART), *place, values=stored("2Gi"))


def _upgrade(place: tuple[str, ...], values: Object) -> None:
    helm("upgrade", RELEASE, str(CHART), *place, values=values)


def test_a_store_of_an_earlier_chart_is_taken_over_by_what_the_error_says() -> None:
    """Its StatefulSet made the claim and was OrderedReady, and nothing of that may be changed."""
    values = VALUES | {"ray": {"provisioner": "static"}, "s3": {"bundled": {"persistence": {"size": "1Gi"}}}}
    with namespace() as api:
        name, labels = f"{FULLNAME}-s3", {"app": "store"}
        claim: Object = {
            "metadata": {"name": f"data-{name}-0", "namespace": api.namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        api.create(CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **deepcopy(claim)})
        claim["metadata"]["name"] = "data"
        api.create(
            STATEFUL_SETS,
            {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "metadata": {"name": name, "namespace": api.namespace},
                "spec": {
                    "replicas": 0,
                    "serviceName": name,
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {"containers": [{"name": "s3", "image": "localhost/none"}]},
                    },
                    "volumeClaimTemplates": [claim],
                },
            },
        )
        install = ("install", RELEASE, str(CHART), "--namespace", api.namespace)
        for what in ("volume claim", "StatefulSet"):
            with pytest.raises(ChartError, match=what) as refused:
                helm(*install, values=values)
            told = re.findall(r"kubectl -n (?:(?!&&).)*", str(refused.value))
            assert told, refused.value
            for command in told:
                subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=60)
        with installed(api, values):
            assert api.get(CLAIMS, f"data-{name}-0") is not None


@pytest.mark.usefixtures("kuberay_crd_file")
def test_auto_keeps_its_choice_when_kuberay_comes_later(request: pytest.FixtureRequest) -> None:
    with namespace() as api:
        with installed(api, VALUES | {"ray": {"provisioner": "static"}}):
            request.getfixturevalue("kuberay_served")
            notes = helm("upgrade", RELEASE, str(CHART), "--namespace", api.namespace, values=VALUES)

            assert provisioner_of(api) == "static"
            assert "kept from the first install" in notes
            config = api.get(CONFIG_MAPS, f"{FULLNAME}-config")
            assert config is not None
            assert parse_release(config["data"]["release.yaml"], "upgraded").provisioner == "static"
        # A new release decides anew.
        with installed(api, VALUES):
            assert provisioner_of(api) == "kuberay"


@pytest.mark.usefixtures("pipelines_served")
def test_two_releases_in_two_namespaces() -> None:
    values = VALUES | {"ray": {"provisioner": "static"}}
    with namespace() as first, namespace() as second, installed(first, values), installed(second, values):
        for api in (first, second):
            config = api.get(CONFIG_MAPS, f"{FULLNAME}-config")
            assert config is not None
            assert parse_release(config["data"]["release.yaml"], "x").namespace == api.namespace


@pytest.mark.usefixtures("pipelines_served")
def test_release_brings_pipelines_and_takes_them_along() -> None:
    pipelines = next(each for each in CASES if each.name == "pipelines").values
    with namespace() as api:
        with installed(api, VALUES | pipelines):
            found = api.get(PIPELINES, "rm-only")
            assert found is not None
            assert found["spec"]["targets"] == ["rm"]
        assert api.get(PIPELINES, "rm-only") is None


def test_administrator_of_a_namespace_installs_a_second_release() -> None:
    """The first release needs rights on the cluster; for others Kubernetes' own role `admin` is enough."""
    with (
        namespace() as first,
        namespace() as api,
        installed(first, VALUES | {"ray": {"provisioner": "static"}}),
    ):
        bind(api, "installer", "admin")
        wait_for(
            lambda: may(api, "installer", "patch", TRAINING, "trainingpipelines/status"), "aggregated roles"
        )
        helm_as = ("--kube-as-user", f"system:serviceaccount:{api.namespace}:installer")
        place = ("--namespace", api.namespace)
        values = VALUES | {"ray": {"provisioner": "static"}}

        with pytest.raises(ChartError, match=r"clusterroles.* is forbidden"):
            helm("install", "greedy", str(CHART), *place, *helm_as, values=values)
        with installed(api, values | {"rbac": {"clusterRoles": False}}, *helm_as):
            assert provisioner_of(api) == "static"


def bind(api: KubeApi, account: str, role: str) -> None:
    """Gives a service account a ClusterRole in the namespace."""
    api.create(
        Resource("rbac.authorization.k8s.io", "v1", "rolebindings"),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": account, "namespace": api.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": api.namespace}],
        },
    )


# Rights of the controller


def may(api: KubeApi, account: str, verb: str, group: str, resource: str, name: str = "") -> bool:
    """Whether a service account may do something in the namespace, as the API server sees it."""
    plural, _, subresource = resource.partition("/")
    attributes = {
        "namespace": api.namespace,
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{api.namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{api.namespace}"],
            "resourceAttributes": attributes,
        },
    }
    return bool(api.create(REVIEWS, review)["status"]["allowed"])


TRAINING = "training.zhongjing.dev"
MAY = [
    *((verb, TRAINING, "trainingpipelines", "") for verb in ("get", "list", "watch", "patch", "delete")),
    *((verb, TRAINING, "trainingpipelines/status", "") for verb in ("patch", "update")),
    ("create", "coordination.k8s.io", "leases", ""),
    *((verb, "coordination.k8s.io", "leases", f"{FULLNAME}-controller") for verb in ("get", "update")),
    ("create", "events.k8s.io", "events", ""),
    *((verb, "", "pods", "") for verb in ("list", "watch", "delete")),
    ("list", "", "nodes", ""),
    ("create", "", "secrets", ""),
    ("get", "", "secrets", f"{FULLNAME}-s3"),
    ("get", "", "secrets", f"{FULLNAME}-ray-token"),
    ("get", "", "configmaps", f"{FULLNAME}-config"),
    ("list", "apps", "statefulsets", ""),
    ("list", "apps", "deployments", ""),
    ("create", "apps", "deployments", ""),
    ("patch", "apps", "deployments", f"{FULLNAME}-ray-gpu"),
    ("list", "", "configmaps", ""),
    ("patch", "apps", "statefulsets", f"{FULLNAME}-ray-head"),
]
MAY_NOT = [
    ("get", "", "secrets", "somebody-elses"),
    ("list", "", "secrets", ""),
    ("update", "", "secrets", f"{FULLNAME}-s3"),
    ("delete", "", "secrets", f"{FULLNAME}-s3"),
    ("patch", "", "nodes", ""),
    ("create", "", "pods", ""),
    ("create", "", "pods/exec", ""),
    ("update", "", "configmaps", f"{FULLNAME}-config"),
    ("patch", "apps", "statefulsets", f"{FULLNAME}-s3"),
    ("delete", "apps", "deployments", f"{FULLNAME}-ray-gpu"),
    ("patch", "apps", "deployments", ""),
    ("patch", "apps", "deployments", f"{FULLNAME}-controller"),
    ("update", "coordination.k8s.io", "leases", "somebody-elses"),
    ("create", TRAINING, "trainingpipelines", ""),
    ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
]


def test_rights_of_the_controller() -> None:
    with namespace() as api, installed(api, VALUES | {"ray": {"provisioner": "static"}}):
        account = f"{FULLNAME}-controller"
        assert [each for each in MAY if not may(api, account, *each)] == []
        assert [each for each in MAY_NOT if may(api, account, *each)] == []
        for account in (f"{FULLNAME}-ray", f"{FULLNAME}-s3"):
            assert not any(may(api, account, *each) for each in MAY)


# Files beside the chart

K8S = CHART.parent / "k8s"
CHARTS = {"kuberay-operator.yaml", "gpu-operator.yaml"}  # values of others' charts
MANIFESTS = [each for each in sorted(K8S.glob("*.yaml")) if each.name not in CHARTS]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_api_server_takes_the_files_beside_the_chart(file: Path, api: KubeApi) -> None:
    objects = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert objects
    ours = {each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"}
    for each in objects:
        resource = resource_of(each)
        if resource.group == "kueue.x-k8s.io" and not api.serves(resource):
            continue  # an operator that is not installed on the test cluster
        body = deepcopy(each)
        if body["metadata"].get("namespace") in {"training", *ours}:
            body["metadata"]["namespace"] = api.namespace  # a dry run makes no namespace for the next object
        api.patch(resource, body["metadata"]["name"], body, kind="apply", force=True, dry_run=True)


def test_every_file_beside_the_chart_is_in_its_list() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    for each in (*MANIFESTS, *(K8S / name for name in CHARTS), K8S / "examples"):
        assert each.exists()
        assert f"]({each.name}" in text, each.name


def test_queues_fit_what_the_chart_asks_for() -> None:
    """The quota of k8s/kueue.yaml covers the head and two pods of the default group."""
    documents = yaml.safe_load_all((K8S / "kueue.yaml").read_text(encoding="utf-8"))
    (queue,) = [each for each in documents if each["kind"] == "ClusterQueue"]
    (group,) = queue["spec"]["resourceGroups"]
    quota = {
        flavor["name"]: {each["name"]: parse_quantity(each["nominalQuota"]) for each in flavor["resources"]}
        for flavor in group["flavors"]
    }
    for name, template in pod_templates(render(provisioner="static")):
        ray = template["metadata"]["labels"]["app.kubernetes.io/component"]
        if not ray.startswith("ray-"):
            continue
        flavor, times = ("plain", 1) if ray == "ray-head" else ("a100-80g", 2)
        resources = template["spec"]["containers"][0]["resources"]
        for resource, amount in (resources["limits"] | resources["requests"]).items():
            assert parse_quantity(amount) * times <= quota[flavor][resource], (name, resource)
