"""What the chart renders, without a cluster: its values, its Ray clusters, its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES, Case, case
from tests.chart.support import (
    CHART,
    FULLNAME,
    MISSING,
    NAMESPACE,
    PROVISIONERS,
    REAL,
    TINY,
    ChartError,
    Object,
    chart_values,
    containers,
    described,
    environment,
    helm,
    leaves,
    named,
    notes,
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
from zhongjing.storage.credentials import SECRET_VARIABLE

BOTH = pytest.mark.parametrize("provisioner", PROVISIONERS)
VALUES = chart_values()


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
    if "crds" not in values:
        values = {**values, "crds": {"install": False}}  # half of all the text, and of the time
    try:
        return render_text(values, provisioner=provisioner)
    except ChartError as error:
        return str(error)  # a key that the others need


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_no_key_is_without_effect(each: Case) -> None:
    # What is adopted is looked up in a cluster.
    keys = [key for key in leaves(each.values) if key not in {("ray", "provisioner"), ("crds", "adopt")}]
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


# What is said at the end of an installation


@pytest.mark.parametrize(
    ("image", "warned"),
    [
        ({}, True),
        ({"repository": "registry.example.com/zhongjing"}, False),
        ({"repository": "team/zj"}, False),
    ],
    ids=["none given", "registry", "hub"],
)
def test_notes_warn_of_an_image_that_nobody_publishes(image: Object, warned: bool, tmp_path: Path) -> None:
    said = notes({"image": {**image, "tag": "7"}}, chart=tmp_path, provisioner="static")

    repository = image.get("repository", "zhongjing")
    assert f"{repository}:7, {repository}:7-controller" in said
    assert ("NO IMAGE IS PUBLISHED" in said) == warned
    assert ("make image push IMAGE=REGISTRY/zhongjing:7" in said) == warned


def test_notes_name_commands_that_a_fresh_release_takes(tmp_path: Path) -> None:
    """Nothing has been trained there: a stage that goes on from another's result is refused."""
    said = notes(chart=tmp_path, provisioner="static", release="other")

    commands = re.findall(r"python -m zhongjing.submit .*", said)
    stages = [re.search(r"--stage (\w+)", each) for each in commands]
    assert [found and found[1] for found in stages] == ["all", "pretrain"]
    for command in [*commands, *re.findall(r"zhongjing dashboard .*", said)]:
        assert command.endswith(f"-n {NAMESPACE} --release other")


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
        render(values, served=[REAL])


def test_helm_template_needs_no_api_versions_of_what_is_asked_for() -> None:
    """A GitOps tool renders without the cluster: what the values ask for is taken at its word."""
    values = {"ray": {"provisioner": "kuberay"}} | case("pipelines").values

    assert of_kind(render(values, served=[]), "TrainingPipeline")
    assert render(values, served=[]) == render(values)


def test_a_worker_group_that_is_null_is_none() -> None:
    """`gpu: null` of values-tiny.yaml, as the option --reuse-values hands it to the templates."""
    values: Object = {"workers": {"groups": {"left": None, "cpu": {}, "gpu": None}}}

    assert [group.name for group in release_config(render(values)).ray.groups] == ["cpu"]


def test_rays_autoscaler_opens_the_api_server_alone() -> None:
    """It runs in the head's pod, beside what trains: any address would be open at the API server's ports."""
    with pytest.raises(ChartError, match=r"Set networkPolicy\.apiServer\.cidrs"):
        render({"ray": {"scaling": "ray"}}, provisioner="kuberay")
    assert render({"ray": {"scaling": "ray"}, "networkPolicy": {"enabled": False}}, provisioner="kuberay")


def test_both_provisioners_make_the_same_pods() -> None:
    static, kuberay = (dict(pod_templates(rendered(each))) for each in PROVISIONERS)
    pairs = [
        (f"StatefulSet/{FULLNAME}-ray-head", f"RayCluster/{FULLNAME}/head"),
        (f"Deployment/{FULLNAME}-ray-gpu", f"RayCluster/{FULLNAME}/gpu"),
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
        kind = "StatefulSet" if name == "head" else "Deployment"
        template = named(static, kind, f"{FULLNAME}-ray-{name}")["spec"]["template"]
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
    """Nor writes the object that it stands in: the chart only describes it."""
    objects = rendered(provisioner)
    made = described(objects)
    assert [each["kind"] for each in made] == ["RayCluster" if provisioner == "kuberay" else "Deployment"]
    sent = list(yaml.safe_load_all(render_text(provisioner=provisioner)))
    assert not [each for each in sent if each["metadata"]["name"] == made[0]["metadata"]["name"]]
    groups = made[0]["spec"].get("workerGroupSpecs") or [made[0]["spec"]]
    assert all("replicas" not in group for group in groups)


@BOTH
def test_no_budget_stands_by_default_before_a_single_pod(provisioner: str) -> None:
    """A drain of its node would wait for ever: there is no second pod that could serve meanwhile."""
    budgets = of_kind(rendered(provisioner), "PodDisruptionBudget")
    kept = {
        name
        for name, template in pod_templates(rendered(provisioner))
        for each in budgets
        if selects(each["spec"]["selector"], template["metadata"]["labels"])
    }
    assert kept == {f"Deployment/{FULLNAME}-controller"}
    assert named(rendered(provisioner), "Deployment", f"{FULLNAME}-controller")["spec"]["replicas"] == 2


def test_no_fresh_install_asks_for_a_gpu_before_a_stage_does() -> None:
    """What Kubernetes makes of all that is installed, before the controller has done anything."""
    for provisioner in PROVISIONERS:
        sent = [each for each in yaml.safe_load_all(render_text(provisioner=provisioner)) if each]
        asked = {
            limit
            for _, template in pod_templates(sent)
            for container in containers(template)
            for limit in container.get("resources", {}).get("limits", {})
        }
        assert asked == {"memory"}


def test_workers_leave_a_node_that_does_not_answer_within_a_minute_of_it() -> None:
    """Kubernetes' own is 300 s (admission plugin DefaultTolerationSeconds); one that is given counts."""

    def seconds(values: Object) -> dict[str, object]:
        worker = named(render(values, provisioner="static"), "Deployment", f"{FULLNAME}-ray-gpu")
        found = worker["spec"]["template"]["spec"]["tolerations"]
        return {each["key"]: each.get("tolerationSeconds") for each in found}

    unreachable, broken = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
    assert seconds({}) == {"nvidia.com/gpu": None, broken: 60, unreachable: 60}
    own = {"key": unreachable, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    assert seconds({"workers": {"groups": {"gpu": {"tolerations": [own]}}}}) == {unreachable: 5, broken: 60}


def test_budget_of_the_head_needs_no_scale() -> None:
    """maxUnavailable is refused at run time for pods of a RayCluster, which has no scale subresource."""
    asked = {"ray": {"head": {"disruptionBudget": {"enabled": True}}}}
    budget = named(render(asked, provisioner="kuberay"), "PodDisruptionBudget", f"{FULLNAME}-ray-head")[
        "spec"
    ]
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

    static = named(render(values, provisioner="static"), "Deployment", f"{FULLNAME}-ray-gpu")
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
        workloads = {workload["metadata"]["name"] for workload in of_kind(objects, "Deployment")} | {
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
    assert (group.min_replicas, group.max_replicas, group.memory) == (0, 1, "480Gi")
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


def test_messages_can_name_the_secret_of_the_store() -> None:
    """Where the store refuses the keys, the remedy of a message names the Secret, not the environment."""
    for objects in (rendered("static"), render(case("own store").values)):
        secret = release_config(objects).storage.secret
        pods = [environment(each["spec"]["containers"][0]) for _, each in pod_templates(objects)]
        named = [pod.get(SECRET_VARIABLE) for pod in pods if "AWS_SHARED_CREDENTIALS_FILE" in pod]
        assert len(named) >= 3, "controller, head and workers"
        assert set(named) == {secret}


def test_configuration_with_the_pods_role_on_aws() -> None:
    objects = render(case("AWS by role").values, provisioner="static")
    config = release_config(objects).storage

    assert (config.secret, config.endpoint, config.bundled) == (None, None, False)
    for _, template in pod_templates(objects):
        variables = environment(template["spec"]["containers"][0])
        assert not {"AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL", SECRET_VARIABLE} & set(variables)
        assert "AWS_REGION" in variables
