"""Network policies, roles and monitoring of the chart."""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.chart.cases import CASES, Case, case
from tests.chart.support import (
    CHART,
    FULLNAME,
    PROVISIONERS,
    ChartError,
    Object,
    containers,
    named,
    of_kind,
    pod_templates,
    render,
    rendered,
    selects,
)
from zhongjing.controller.metrics import Metrics

BOTH = pytest.mark.parametrize("provisioner", PROVISIONERS)


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


def _reaches_address(policy: Object, address: str, port: int) -> bool:
    """Whether a policy lets its pods reach an address outside of the cluster."""
    ip = ipaddress.ip_address(address)

    def within(block: Object) -> bool:
        ranges = [ipaddress.ip_network(each) for each in (block["cidr"], *block.get("except", []))]
        return ip in ranges[0] and not any(ip in each for each in ranges[1:])

    return any(
        (not rule.get("ports") or port in [each["port"] for each in rule["ports"]])
        and ("to" not in rule or any("ipBlock" in peer and within(peer["ipBlock"]) for peer in rule["to"]))
        for rule in policy["spec"]["egress"]
    )


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_every_rule_says_where_to(each: Case) -> None:
    """A port without an address is open towards everything, and publicEgress.except void there."""
    for policy in of_kind(render(each.values, provisioner=each.provisioners[0]), "NetworkPolicy"):
        for rule in policy["spec"]["egress"]:
            assert rule.get("to"), policy["metadata"]["name"]
        for rule in policy["spec"]["ingress"]:
            assert rule.get("from"), policy["metadata"]["name"]


OUTSIDE = "https://store.example.com"
INSIDE = ("10.1.2.3", "172.16.9.9", "192.168.1.1", "169.254.169.254", "100.64.0.1", "fd00::1", "fe80::1")


@pytest.mark.parametrize("emptied", [None, []], ids=["null", "empty"])
@pytest.mark.parametrize(
    "place", ["dnsPorts", "dnsTo", "apiServer.cidrs", "apiServer.ports", "publicEgress.ports"]
)
def test_a_list_that_is_emptied_closes_nothing_open(place: str, emptied: list[str] | None) -> None:
    """Kubernetes takes a rule without ports, or without a to, for one of all ports, or of all addresses."""
    section, _, name = place.rpartition(".")
    values = {section: {name: emptied}} if section else {name: emptied}
    with pytest.raises(ChartError, match=name):
        render({"networkPolicy": values}, provisioner="static")


@pytest.mark.parametrize(
    "values",
    [
        {},
        case("AWS by role").values,
        {"s3": {"endpoint": OUTSIDE}},
        {"hub": {"endpoint": OUTSIDE}, "proxy": {"https": OUTSIDE, "http": OUTSIDE}},
        {"ray": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "rediss://store.example.com:443"}}},
    ],
    ids=["bundled", "AWS", "store", "hub and proxies", "redis"],
)
def test_nothing_opens_the_inside_of_the_network_to_what_trains(values: Object) -> None:
    policy = named(render(values, provisioner="static"), "NetworkPolicy", f"{FULLNAME}-ray")

    assert _reaches_address(policy, "52.1.2.3", 443)
    assert _reaches_address(policy, "2a00::1", 443)
    assert [
        each for each in INSIDE for port in (80, 443, 6443, 9000) if _reaches_address(policy, each, port)
    ] == []


@pytest.mark.parametrize(
    ("url", "port", "reached"),
    [
        ("https://s.example.com", 443, "52.1.2.3"),
        ("http://s.example.com", 80, "52.1.2.3"),
        ("https://s.example.com:9000", 9000, "52.1.2.3"),
        ("https://store.inside:9000", 9000, "10.1.2.3"),
        ("http://10.9.9.9:9000", 9000, "10.9.9.9"),
        ("https://[fd00::9]:9000", 9000, "fd00::9"),
    ],
)
def test_store_of_their_own_is_reached_at_its_port_and_place(url: str, port: int, reached: str) -> None:
    hosts = {"store.inside": ["10.1.2.0/24"]}
    values = {
        "s3": {"endpoint": url},
        "networkPolicy": {"publicEgress": {"enabled": False}, "hosts": hosts},
    }
    for name in ("ray", "controller"):
        policy = named(render(values, provisioner="static"), "NetworkPolicy", f"{FULLNAME}-{name}")
        assert _reaches_address(policy, reached, port)
        if name == "ray":
            assert not _reaches_address(policy, reached, port + 1)
            assert not _reaches_address(policy, "10.1.9.9", port)


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("minio.store.svc", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}}),
        (
            "minio.store.svc.cluster.local",
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}},
        ),
        ("minio", {"podSelector": {}}),
    ],
)
def test_a_service_of_the_cluster_is_reached_in_its_namespace(host: str, peer: Object) -> None:
    objects = render({"s3": {"endpoint": f"http://{host}:9000"}}, provisioner="static")

    rules = named(objects, "NetworkPolicy", f"{FULLNAME}-ray")["spec"]["egress"]
    assert [rule["to"] for rule in rules if rule.get("ports") == [{"port": 9000, "protocol": "TCP"}]] == [
        [peer]
    ]


def test_a_name_of_two_parts_may_be_a_service_or_outside() -> None:
    objects = render({"s3": {"endpoint": "http://minio.store:9000"}}, provisioner="static")
    policy = named(objects, "NetworkPolicy", f"{FULLNAME}-ray")
    [rule] = [each for each in policy["spec"]["egress"] if each.get("ports", [{}])[0].get("port") == 9000]
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}}
    assert peer in rule["to"]
    assert _reaches_address(policy, "52.1.2.3", 9000)
    assert not _reaches_address(policy, "10.1.2.3", 9000)


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


def test_promtool_finds_the_queries_right(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(_queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), encoding="utf-8")

    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


CONTROLLER = 'namespace="training",pod="zj-zhongjing-controller-x"'
LEADER = "zhongjing_controller_leader{" + CONTROLLER + "}"
QUEUE = "zhongjing_controller_queue_length{" + CONTROLLER + "}"
FAILED = "zhongjing_controller_pipelines{" + CONTROLLER + ',state="Failed"}'
HEAD = 'up{namespace="training",app_kubernetes_io_component="ray-head"}'
_OF_STAGE = 'seconds{{namespace="training",pipeline="p",stage="{}"}}'
STEP = "ray_zhongjing_train_step_" + _OF_STAGE
DATA = "ray_zhongjing_train_data_" + _OF_STAGE


@pytest.mark.parametrize(
    ("series", "firing"),
    [
        ({}, set()),
        ({LEADER: "1x120", HEAD: "1x120"}, set()),
        ({LEADER: "0x120", HEAD: "1x120"}, {"ZhongjingNoLeader"}),
        ({LEADER: "1x20 _x100", HEAD: "1x20 _x100"}, {"ZhongjingNoLeader", "ZhongjingRayHeadDown"}),
        ({LEADER: "1x120", HEAD: "0x120"}, {"ZhongjingRayHeadDown"}),
        ({LEADER: "1x120", QUEUE: "0x120", FAILED: "_x55 1x70"}, {"ZhongjingPipelineFailed"}),
        ({LEADER: "_x58 1x70", QUEUE: "_x58 0x70", FAILED: "_x58 1x70"}, set()),
        ({STEP.format("sft"): "10x120", DATA.format("sft"): "4x120"}, {"ZhongjingWaitsForData"}),
        ({STEP.format("sft"): "10x120", DATA.format("sft"): "2x120"}, set()),
        ({STEP.format("ppo"): "10x120", DATA.format("ppo"): "8x120"}, set()),
    ],
    ids=[
        "nothing scraped",
        "well",
        "nobody leads",
        "all gone",
        "head down",
        "failed",
        "failed long ago",
        "waits for data",
        "data in time",
        "rollouts",
    ],
)
def test_no_alert_fires_where_nothing_is_scraped(
    promtool: str, tmp_path: Path, series: dict[str, str], firing: set[str]
) -> None:
    """What fires an hour after the series began, of all alerts of the chart."""
    (found,) = of_kind(render(case("monitoring").values, provisioner="static"), "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(json.dumps(found["spec"]), encoding="utf-8")
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
    query = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "1h",
        "exp_samples": expected,
    }
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": [query]}
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))

    done = subprocess.run(
        [promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def _queries() -> list[str]:
    """The queries with Grafana's variables filled in."""
    return [re.sub(r"\$\w+", "x", each) for each in _expressions()]
