"""What the chart renders, without a cluster: helm alone."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.chart_cases import CASES, DIGEST, Case
from tests.cluster.chart_support import (
    CHART,
    FULLNAME,
    MISSING,
    NAMESPACE,
    PROVISIONERS,
    RELEASE,
    TINY,
    ChartError,
    Object,
    chart_values,
    containers,
    environment,
    helm,
    leaves,
    named,
    of_kind,
    pod_templates,
    release_config,
    render,
    render_text,
    rendered,
    selects,
    value_at,
    without,
)
from zhongjing.controller.metrics import Metrics

pytestmark = pytest.mark.cluster

BOTH = pytest.mark.parametrize("provisioner", PROVISIONERS)
VALUES = chart_values()


def case(name: str) -> Case:
    (found,) = [each for each in CASES if each.name == name]
    return found


# The chart and its values


@pytest.mark.parametrize("file", [None, TINY], ids=["defaults", "tiny"])
def test_lint_finds_nothing(file: Any) -> None:
    told = helm("lint", "--strict", str(CHART), *(["--values", str(file)] if file else []))

    assert "0 chart(s) failed" in told
    assert "[WARNING]" not in told


@BOTH
def test_two_renders_are_equal_to_the_byte(provisioner: str) -> None:
    first = render_text(case("pipelines").values, provisioner=provisioner)
    second = render_text(case("pipelines").values, provisioner=provisioner)

    assert first == second
    assert len(first) > 50_000


def test_every_key_of_the_values_has_a_case() -> None:
    keys = list(leaves(VALUES))

    def touched(key: tuple[str, ...]) -> bool:
        given = [value_at(each.values, key) for each in CASES]
        return any(value is not MISSING and value != value_at(VALUES, key) for value in given)

    assert len(keys) > 200
    assert [".".join(key) for key in keys if not touched(key)] == []


def test_every_key_of_the_values_has_a_comment_near() -> None:
    """The file is the reference: a key without a word stands only beneath or beside one that has some."""
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    top = [number for number, line in enumerate(lines) if re.match(r"^[a-z]", line, re.IGNORECASE)]
    for number in top:
        block = "\n".join(lines[max(0, number - 3) : number + 3])
        assert "#" in block, lines[number]


def _text(values: Object, provisioner: str) -> str:
    try:
        return render_text(values, provisioner=provisioner)
    except ChartError as error:
        return str(error)  # a key that the others need


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_no_key_is_without_effect(each: Case) -> None:
    keys = [key for key in leaves(each.values) if key != ("ray", "provisioner")]
    # Keys of free maps, as podSecurityContext.supplementalGroups, are the users'.
    own = [key for key in keys if value_at(VALUES, key) is not MISSING]

    whole = {provisioner: _text(each.values, provisioner) for provisioner in each.provisioners}

    def changes(key: tuple[str, ...]) -> bool:
        fewer = without(each.values, key)
        return any(_text(fewer, provisioner) != text for provisioner, text in whole.items())

    with ThreadPoolExecutor(2) as pool:
        effects = list(pool.map(changes, own))

    assert [".".join(key) for key, has in zip(own, effects, strict=True) if not has] == []


def _objects_of(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for name, inner in schema.items():
            yield from _objects_of(inner, f"{path}/{name}")
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _objects_of(inner, f"{path}/{index}")


def test_schema_is_closed_everywhere() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    ours = {name: part for name, part in schema["$defs"].items() if name != "pipelineSpec"}

    open_ones = [
        path
        for path, part in _objects_of({"properties": schema["properties"], "$defs": ours}, "")
        if "additionalProperties" not in part and path != "" and "/allOf/" not in path
    ]

    assert open_ones == []


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"gpus": 4}, "gpus"),
        ({"ray": {"head": {"cpu": 1}}}, "cpu"),
        ({"workers": {"groups": {"gpu": {"gpu": 8}}}}, "gpu"),
        ({"workers": {"groups": {"a-very-long-name-of-a-group": {}}}}, "a-very-long-name-of-a-group"),
        ({"s3": {"bundled": {"persistence": {"sise": "1Gi"}}}}, "sise"),
        ({"s3": {"uri": "http://bucket"}}, "uri"),
        ({"ray": {"provisioner": "operator"}}, "provisioner"),
        ({"controller": {"replicas": "two"}}, "replicas"),
        ({"workers": {"scratch": {"size": "400 GB"}}}, "size"),
        ({"networkPolicy": {"egress": []}}, "egress"),
        ({"pipelines": {"x": {"base": {"tiny": {}}, "stage": {}}}}, "stage"),
        ({"pipelines": {"x": {"base": {"tiny": {}}, "seed": "none"}}}, "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema_refuses(values: Object, place: str) -> None:
    with pytest.raises(ChartError, match=f"(?s)don't meet the specifications.*{place}"):
        render(values)


# Whoever makes the Ray pods


def test_auto_takes_kuberay_where_it_is_served() -> None:
    with_it = render(served=["ray.io/v1/RayCluster"])
    without_it = render(served=[])

    assert of_kind(with_it, "RayCluster")
    assert named(with_it, "ConfigMap", f"{FULLNAME}-provisioner")["data"] == {"provisioner": "kuberay"}
    assert not of_kind(without_it, "RayCluster")
    assert named(without_it, "ConfigMap", f"{FULLNAME}-provisioner")["data"] == {"provisioner": "static"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"ray": {"provisioner": "kuberay"}},
            "does not serve ray.io/v1 RayCluster: install the KubeRay operator",
        ),
        ({"ray": {"scaling": "ray"}}, "ray.scaling=ray is Ray's autoscaler, which needs KubeRay"),
        ({"workers": {"groups": {"gpu": None}}}, "workers.groups is empty"),
        ({"workers": {"groups": {"gpu": {"minReplicas": 2}}}}, "minReplicas is greater than maxReplicas"),
        ({"workers": {"defaults": {"hostNetwork": True}}}, "Set networkPolicy.nodeCIDRs"),
        ({"workers": {"scratch": {"type": "hostPath"}}}, "scratch.type hostPath needs scratch.path"),
        ({"ray": {"gcsFaultTolerance": {"enabled": True}}}, "gcsFaultTolerance needs redisAddress"),
        ({"s3": {"ca": {"secret": "a", "configMap": "b"}}}, "not both"),
        (case("pipelines").values, "the cluster does not know TrainingPipelines yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_said_before_anything_is_installed(values: Object, message: str) -> None:
    with pytest.raises(ChartError, match=re.escape(message)):
        render(values, served=[])


def test_both_provisioners_make_the_same_pods() -> None:
    static, kuberay = (dict(pod_templates(rendered(each))) for each in PROVISIONERS)
    pairs = [
        (f"StatefulSet/{FULLNAME}-ray-head", f"RayCluster/{FULLNAME}/head"),
        (f"StatefulSet/{FULLNAME}-ray-gpu", f"RayCluster/{FULLNAME}/gpu"),
    ]
    for ours, theirs in pairs:
        own, other = static[ours], kuberay[theirs]
        assert own["metadata"] == other["metadata"]
        ray, beside = own["spec"]["containers"][0], other["spec"]["containers"][0]
        # What KubeRay puts in by itself.
        added = {"command", "startupProbe", "readinessProbe", "livenessProbe"}
        assert set(ray) - set(beside) == added
        assert set(environment(ray)) - set(environment(beside)) == {
            "RAY_AUTH_MODE",
            "RAY_AUTH_TOKEN_PATH",
            "RAY_MEMORY_BYTES",
        }
        for key in ("image", "ports", "resources", "securityContext"):
            assert ray[key] == beside[key]
        volumes = {each["name"] for each in own["spec"]["volumes"]}
        assert volumes - {each["name"] for each in other["spec"]["volumes"]} == {"shm", "ray-token"}
        same = set(own["spec"]) - {"containers", "initContainers", "volumes"}
        assert {key: own["spec"][key] for key in same} == {key: other["spec"][key] for key in same}


def test_start_flags_are_the_same_for_both() -> None:
    static, kuberay = (list(rendered(each)) for each in PROVISIONERS)
    cluster = named(kuberay, "RayCluster", FULLNAME)["spec"]
    groups = {
        "head": cluster["headGroupSpec"]["rayStartParams"],
        "gpu": cluster["workerGroupSpecs"][0]["rayStartParams"],
    }
    for name, params in groups.items():
        template = named(static, "StatefulSet", f"{FULLNAME}-ray-{name}")["spec"]["template"]
        command = template["spec"]["containers"][0]["command"][-1]
        for key, value in params.items():
            assert (f"--{key} " if value == "true" else f"--{key}={value}") in f"{command} "
        assert "exec ray start" in command  # Ray must hear the signal to end


def test_head_takes_no_work_and_workers_count_as_they_are() -> None:
    cluster = named(rendered("kuberay"), "RayCluster", FULLNAME)["spec"]

    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert group["rayStartParams"]["num-cpus"] == "32"
    assert group["rayStartParams"]["num-gpus"] == "4"
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_kuberay_gets_what_it_does_not_do_by_itself() -> None:
    cluster = named(rendered("kuberay"), "RayCluster", FULLNAME)["spec"]

    assert cluster["authOptions"] == {"mode": "token", "secretName": f"{FULLNAME}-ray-token"}
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["upgradeStrategy"] == {"type": "Recreate"}
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 1)
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] == 330
    worker = environment(group["template"]["spec"]["containers"][0])
    assert worker["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "300"


@BOTH
def test_nobody_but_the_controller_sets_the_number_of_workers(provisioner: str) -> None:
    objects = rendered(provisioner)
    if provisioner == "kuberay":
        groups = named(objects, "RayCluster", FULLNAME)["spec"]["workerGroupSpecs"]
    else:
        groups = [named(objects, "StatefulSet", f"{FULLNAME}-ray-gpu")["spec"]]

    assert groups
    assert all("replicas" not in group for group in groups)


def test_budget_of_the_head_needs_no_scale() -> None:
    """maxUnavailable is refused at run time for pods of a RayCluster, which has no scale subresource."""
    budget = named(rendered("kuberay"), "PodDisruptionBudget", f"{FULLNAME}-ray-head")["spec"]
    (head,) = [
        template
        for _, template in pod_templates(rendered("kuberay"))
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == "ray-head"
    ]

    assert budget["minAvailable"] == 1
    assert "maxUnavailable" not in budget
    assert selects(budget["selector"], head["metadata"]["labels"])


def test_autoscaler_of_ray_keeps_to_the_rules_of_the_other_containers() -> None:
    spec = named(render(case("Ray's autoscaler").values, provisioner="kuberay"), "RayCluster", FULLNAME)[
        "spec"
    ]
    head = spec["headGroupSpec"]["template"]["spec"]
    options = spec["autoscalerOptions"]

    assert spec["enableInTreeAutoscaling"]
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    assert {mount["name"] for mount in options["volumeMounts"]} <= {each["name"] for each in head["volumes"]}
    assert head["automountServiceAccountToken"]
    assert all(group["idleTimeoutSeconds"] == 600 for group in spec["workerGroupSpecs"])


def test_without_scaling_all_workers_stay() -> None:
    values = {"ray": {"scaling": "none"}, "workers": {"groups": {"gpu": {"maxReplicas": 3}}}}

    static = named(render(values, provisioner="static"), "StatefulSet", f"{FULLNAME}-ray-gpu")
    kuberay = named(render(values, provisioner="kuberay"), "RayCluster", FULLNAME)

    assert static["spec"]["replicas"] == 3
    assert kuberay["spec"]["workerGroupSpecs"][0]["replicas"] == 3


def test_any_field_of_a_raycluster_can_be_set() -> None:
    values = {
        "ray": {
            "rayCluster": {
                "spec": {"managedBy": "kueue.x-k8s.io/multikueue", "upgradeStrategy": {"type": "None"}}
            },
            "head": {"rayGroupSpec": {"labels": {"a": "b"}}},
        },
        "workers": {"groups": {"gpu": {"rayGroupSpec": {"numOfHosts": 2}}}},
    }

    spec = named(render(values, provisioner="kuberay"), "RayCluster", FULLNAME)["spec"]

    assert spec["managedBy"] == "kueue.x-k8s.io/multikueue"
    assert spec["upgradeStrategy"] == {"type": "None"}
    assert spec["headGroupSpec"]["labels"] == {"a": "b"}
    assert spec["workerGroupSpecs"][0]["numOfHosts"] == 2
    assert spec["workerGroupSpecs"][0]["maxReplicas"] == 1


# What everybody reads


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_configuration_of_the_release_is_valid(each: Case) -> None:
    for provisioner in each.provisioners:
        objects = render(each.values, provisioner=provisioner)
        config = release_config(objects)
        found = named(objects, "ConfigMap", f"{config.fullname}-config")

        assert found["metadata"]["labels"]["app.kubernetes.io/component"] == "config"
        assert config.provisioner == provisioner
        assert config.namespace == NAMESPACE
        workloads = {workload["metadata"]["name"] for workload in of_kind(objects, "StatefulSet")} | {
            group["groupName"]
            for cluster in of_kind(objects, "RayCluster")
            for group in cluster["spec"]["workerGroupSpecs"]
        }
        assert {group.workload for group in config.ray.groups} <= workloads
        services = {service["metadata"]["name"] for service in of_kind(objects, "Service")}
        if provisioner == "static":
            assert config.ray.service in services
        if config.storage.bundled:
            assert config.storage.service in services


def test_configuration_of_the_defaults() -> None:
    config = release_config(rendered("static"))

    assert config.ray_address == f"http://{FULLNAME}-ray-head.{NAMESPACE}.svc:8265"
    assert config.ray.token_secret == f"{FULLNAME}-ray-token"
    assert config.ray.token_managed
    (group,) = config.ray.groups
    assert (group.name, group.workload, group.gpus, group.cpus) == ("gpu", f"{FULLNAME}-ray-gpu", 4, 32)
    assert (group.min_replicas, group.max_replicas, group.memory) == (0, 1, "320Gi")
    assert config.storage.bundled
    assert config.storage.secret_managed
    assert config.storage.endpoint == f"http://{FULLNAME}-s3.{NAMESPACE}.svc:8333"


def test_configuration_with_a_store_of_their_own() -> None:
    config = release_config(render(case("own store").values)).storage

    assert not config.bundled
    assert config.endpoint == "https://store.example.com:9000"
    assert (config.secret, config.secret_managed) == ("store", False)
    assert config.ca_bundle == "/etc/zhongjing/ca/root.pem"
    assert config.addressing_style == "virtual"


def test_configuration_with_the_pods_role_on_aws() -> None:
    objects = render(case("AWS by role").values, provisioner="static")
    config = release_config(objects).storage

    assert (config.secret, config.endpoint, config.bundled) == (None, None, False)
    for _, template in pod_templates(objects):
        variables = environment(template["spec"]["containers"][0])
        assert "AWS_SHARED_CREDENTIALS_FILE" not in variables
        assert "AWS_ENDPOINT_URL" not in variables
        assert "AWS_REGION" in variables


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

    assert with_token == {f"{FULLNAME}-controller"}


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
    cluster_wide = {"CustomResourceDefinition", "ClusterRole"}
    for each in rendered(provisioner):
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/instance"] == RELEASE
        if each["kind"] not in cluster_wide:
            assert each["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_no_name_is_given_twice(each: Case) -> None:
    """Server-side apply, as Argo CD does it, refuses a variable or a volume that stands twice."""
    for provisioner in each.provisioners:
        objects = render(each.values, provisioner=provisioner)
        claims = {
            f"StatefulSet/{found['metadata']['name']}": [
                claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])
            ]
            for found in of_kind(objects, "StatefulSet")
        }
        for name, template in pod_templates(objects):
            volumes = [volume["name"] for volume in template["spec"].get("volumes", [])]
            volumes += claims.get(name, [])
            assert len(volumes) == len(set(volumes)), name
            for container in containers(template):
                variables = [variable["name"] for variable in container.get("env", [])]
                assert len(variables) == len(set(variables)), name
                mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
                assert len(mounts) == len(set(mounts)), name
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes), name


def test_environment_of_users_wins() -> None:
    values = {"workers": {"groups": {"gpu": {"env": [{"name": "TMPDIR", "value": "/scratch/tmp"}]}}}}

    template = named(render(values, provisioner="static"), "StatefulSet", f"{FULLNAME}-ray-gpu")

    variables = environment(template["spec"]["template"]["spec"]["containers"][0])
    assert variables["TMPDIR"] == "/scratch/tmp"
    assert variables["HOME"] == "/home/zhongjing"


def test_scratch_is_requested_where_the_node_has_it() -> None:
    def worker(scratch: Object) -> tuple[Object, Object]:
        values = {"workers": {"groups": {"gpu": {"scratch": scratch}}}}
        template = named(render(values, provisioner="static"), "StatefulSet", f"{FULLNAME}-ray-gpu")
        spec = template["spec"]["template"]["spec"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == "scratch"]
        return volume, spec["containers"][0]["resources"]["requests"]

    volume, requests = worker({"size": "100Gi"})
    assert volume["emptyDir"] == {"sizeLimit": "100Gi"}
    assert requests["ephemeral-storage"] == f"{120 * 1024}Mi"  # /tmp too
    volume, requests = worker({"type": "hostPath", "path": "/mnt/nvme"})
    assert volume["hostPath"] == {"path": "/mnt/nvme", "type": "Directory"}
    assert requests["ephemeral-storage"] == f"{20 * 1024}Mi"
    volume, requests = worker({"type": "ephemeral", "size": "2T", "storageClass": "fast"})
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "2T"
    assert claim["storageClassName"] == "fast"
    _, requests = worker({"reserve": False})
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
    worker = named(objects, "StatefulSet", f"{FULLNAME}-ray-gpu")["spec"]["template"]

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
            elif each["kind"] not in ("CustomResourceDefinition", "ClusterRole"):
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


# Network


@pytest.mark.parametrize("values", [{}, case("AWS by role").values], ids=["bundled", "AWS"])
@BOTH
def test_every_pod_has_one_policy(provisioner: str, values: Object) -> None:
    objects = render(values, provisioner=provisioner)
    policies = of_kind(objects, "NetworkPolicy")

    for name, template in pod_templates(objects):
        labels = template["metadata"]["labels"]
        chosen = [each for each in policies if selects(each["spec"]["podSelector"], labels)]
        assert len(chosen) == 1, name
        assert set(chosen[0]["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def _reaches(objects: list[Object], source: Object, target: Object, port: int) -> bool:
    """Whether policies let a pod of one template reach a port of another's, in the same namespace."""

    def lets(rule: Object, peers: str, labels: Object) -> bool:
        ports = [each["port"] for each in rule.get("ports", [])]
        if ports and port not in ports:
            return False
        listed = rule.get(peers)
        if not listed:
            return True
        return any(
            (
                "podSelector" in peer
                and "namespaceSelector" not in peer
                and selects(peer["podSelector"], labels)
            )
            or ("namespaceSelector" in peer and peer["namespaceSelector"] == {})
            for peer in listed
        )

    ways = []
    for direction, peers, here, there in (
        ("egress", "to", source, target),
        ("ingress", "from", target, source),
    ):
        labels = here["metadata"]["labels"]
        chosen = [
            each["spec"]
            for each in of_kind(objects, "NetworkPolicy")
            if selects(each["spec"]["podSelector"], labels)
        ]
        rules = [rule for spec in chosen for rule in spec.get(direction) or []]
        ways.append(any(lets(rule, peers, there["metadata"]["labels"]) for rule in rules))
    return all(ways)


@BOTH
def test_policies_open_what_is_needed_and_no_more(provisioner: str) -> None:
    objects = list(rendered(provisioner))
    pods = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]: template
        for _, template in pod_templates(objects)
    }
    needed = {
        ("controller", "ray-head", 8265),
        ("test", "ray-head", 8265),
        ("controller", "s3", 8333),
        ("test", "s3", 8333),
        ("ray-head", "s3", 8333),
        ("ray-worker", "s3", 8333),
        ("ray-worker", "ray-head", 6379),
        ("ray-head", "ray-worker", 40000),
        ("ray-worker", "ray-worker", 40000),
    }
    closed = {
        ("controller", "ray-head", 6379),
        ("controller", "ray-head", 10001),
        ("controller", "ray-worker", 40000),
        ("s3", "ray-head", 6379),
        ("s3", "controller", 8080),
        ("ray-worker", "controller", 8080),
        ("ray-worker", "s3", 9333),
        ("controller", "s3", 18333),
    }

    for source, target, port in needed:
        assert _reaches(objects, pods[source], pods[target], port), (source, target, port)
    for source, target, port in closed:
        assert not _reaches(objects, pods[source], pods[target], port), (source, target, port)


def test_store_of_their_own_is_reached_at_its_port() -> None:
    for endpoint, port in {
        "https://s.example.com": 443,
        "http://s.example.com": 80,
        "https://s.example.com:9000": 9000,
    }.items():
        objects = render(
            {"s3": {"endpoint": endpoint}, "networkPolicy": {"publicEgress": {"enabled": False}}}
        )
        for name in ("ray", "controller"):
            rules = named(objects, "NetworkPolicy", f"{FULLNAME}-{name}")["spec"]["egress"]
            assert [rule for rule in rules if "to" not in rule and rule["ports"][0]["port"] == port], (
                name,
                port,
            )


# Roles


@BOTH
def test_controller_may_read_only_the_secrets_of_its_release(provisioner: str) -> None:
    role = named(rendered(provisioner), "Role", f"{FULLNAME}-controller")

    rules = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    reading = [rule for rule in rules if set(rule["verbs"]) - {"create"}]
    assert [rule["resourceNames"] for rule in reading] == [[f"{FULLNAME}-ray-token", f"{FULLNAME}-s3"]]
    assert [rule["verbs"] for rule in reading] == [["get"]]


@BOTH
def test_no_role_takes_everything(provisioner: str) -> None:
    objects = rendered(provisioner)
    for each in itertools.chain(of_kind(objects, "Role"), of_kind(objects, "ClusterRole")):
        assert "*" not in json.dumps(each["rules"])


# Watching


@BOTH
def test_monitors_find_their_ports(provisioner: str) -> None:
    objects = render(case("monitoring").values, provisioner=provisioner)
    monitors = of_kind(objects, "PodMonitor")
    assert len(monitors) == 2
    scraped = set()
    for monitor in monitors:
        for _, template in pod_templates(objects):
            labels = template["metadata"]["labels"]
            if selects(monitor["spec"]["selector"], labels):
                ports = {
                    port["name"] for container in containers(template) for port in container.get("ports", [])
                }
                assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
                scraped.add(labels["app.kubernetes.io/component"])

    assert scraped == {"ray-head", "ray-worker", "controller"}


def _expressions(provisioner: str = "static") -> list[str]:
    """Every query of alerts and dashboards."""
    objects = render(case("monitoring").values, provisioner=provisioner)
    (rules,) = of_kind(objects, "PrometheusRule")
    queries = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    for board in of_kind(objects, "ConfigMap"):
        for file, text in board["data"].items():
            if file.endswith(".json"):
                panels = json.loads(text)["panels"]
                queries += [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return queries


def test_alerts_and_dashboards_ask_for_metrics_that_there_are() -> None:
    ours = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    ours |= {family.name for family in Metrics().registry.collect()}
    source = "".join(
        path.read_text(encoding="utf-8") for path in (CHART.parent / "zhongjing" / "train").rglob("*.py")
    )
    used = set(re.findall(r"\b(?:ray_)?zhongjing_\w+", " ".join(_expressions())))
    assert len(used) > 25

    for metric in used:
        if gauge := re.fullmatch(r"ray_zhongjing_(train|validation|rollout|spike)_(\w+)", metric):
            assert f'"{gauge[2]}"' in source, metric
        else:
            assert metric in ours or metric.removesuffix("_bucket") in ours, metric


@pytest.fixture
def promtool(tmp_path: Path) -> str:
    """Prometheus' checker, from its Debian package: unpacked, since installed it would start a server."""
    found = shutil.which("promtool")
    if found is not None:
        return found
    for command in (["apt-get", "download", "prometheus"], ["sh", "-c", "dpkg -x prometheus_*.deb ."]):
        try:
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs promtool, or Debian's package prometheus: {error}")
    return str(tmp_path / "usr/bin/promtool")


def test_promtool_finds_the_queries_right(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(_queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), encoding="utf-8")

    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def _queries() -> list[str]:
    """The queries with Grafana's variables filled in."""
    return [re.sub(r"\$\w+", "x", each) for each in _expressions()]
