"""Upgrades of an installed chart: what runs goes on, commands work as documented, the CRD changes hands.

The pods of these releases never start. The controller's part is done in this process, by the classes that it
uses, so that a test sees every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.chart.support import CHART, FULLNAME, RELEASE, TINY, ChartError, Object, helm
from tests.cluster.crd_support import CRDS
from tests.cluster.own_namespace import own_namespace, wait_for
from tools import crd
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.capacity import Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, DEPLOYMENTS, RAY_CLUSTERS, Resource
from zhongjing.backends.kubernetes.workloads import read_workloads
from zhongjing.config.release import ReleaseConfig, parse_release
from zhongjing.config.stages import Resources

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

EIGHT = Demand("ppo", 8, Resources(cpus=1.0, gpus=1))  # two pods of four GPUs
NO_IMAGE: Object = {
    "image": {"repository": "localhost/none"},
    "crds": {"install": False},
    "s3": {"bundled": {"persistence": {"enabled": False}}},
}


def values(provisioner: str, most: int) -> Object:
    group = {"maxReplicas": most}
    return NO_IMAGE | {"ray": {"provisioner": provisioner}, "workers": {"groups": {"gpu": group}}}


@contextmanager
def installed(*arguments: str, values: Object, release: str = RELEASE) -> Iterator[KubeApi]:
    """A release in a namespace of its own; uninstalled in the end unless the test did so."""
    with own_namespace("upgrade") as api:
        helm("install", release, str(CHART), "--namespace", api.namespace, *arguments, values=values)
        try:
            yield api
        finally:
            helm("uninstall", release, "--namespace", api.namespace, "--ignore-not-found", "--wait=false")


def upgrade(api: KubeApi, *arguments: str, values: Object | None = None) -> str:
    return helm("upgrade", RELEASE, str(CHART), "--namespace", api.namespace, *arguments, values=values)


def config_of(api: KubeApi) -> ReleaseConfig:
    found = api.get(CONFIG_MAPS, f"{FULLNAME}-config")
    assert found is not None
    return parse_release(found["data"]["release.yaml"], "release.yaml")


def asked(provisioner: str, thing: Object) -> int:
    """Pods of the group gpu that an object asks for."""
    spec = thing["spec"]
    return int((spec["workerGroupSpecs"][0] if provisioner == "kuberay" else spec)["replicas"])


@pytest.fixture(params=["static", "kuberay"])
def provisioner(request: pytest.FixtureRequest) -> str:
    if request.param == "kuberay":
        request.getfixturevalue("kuberay_crd")
    return str(request.param)


def test_an_upgrade_with_another_max_replicas_in_the_middle_of_a_stage_leaves_its_workers(
    provisioner: str,
) -> None:
    """At no moment the number is another; what the upgrade changed is applied, and a rollback too."""
    resource, name = (
        (RAY_CLUSTERS, FULLNAME) if provisioner == "kuberay" else (DEPLOYMENTS, f"{FULLNAME}-ray-gpu")
    )
    with installed(values=values(provisioner, 2)) as api:
        assert api.get(resource, name) is None
        capacity = Capacity(api, config_of(api))
        capacity.scale_down()
        assert asked(provisioner, api.get(resource, name) or {}) == 0
        capacity.ensure_workers(EIGHT)
        assert asked(provisioner, api.get(resource, name) or {}) == 2

        version = api.find(resource).resource_version
        upgrade(api, values=values(provisioner, 3))
        Capacity(api, config_of(api)).restore()
        helm("rollback", RELEASE, "1", "--namespace", api.namespace)
        capacity.restore()
        upgrade(api, values=values(provisioner, 3) | {"commonLabels": {"team": "lab"}})
        Capacity(api, config_of(api)).restore()

        seen = [
            change.object
            for change in api.watch(resource, version, seconds=2)
            if change.type != "BOOKMARK" and change.object["metadata"]["name"] == name
        ]
        assert {asked(provisioner, each) for each in seen} == {2}
        last = seen[-1]
        assert last["metadata"]["labels"]["team"] == "lab"
        if provisioner == "kuberay":
            assert last["spec"]["workerGroupSpecs"][0]["maxReplicas"] == 3

        helm("uninstall", RELEASE, "--namespace", api.namespace, "--wait=false")
        wait_for(lambda: api.get(resource, name) is None, "end of what the controller made", 60)


def test_a_server_side_apply_of_the_unchanged_chart_meets_no_other_writer(provisioner: str) -> None:
    """As Helm 4 and Argo CD do it; in the middle of a stage, without taking anything over by force."""
    given = values(provisioner, 2)
    with own_namespace("apply") as api:
        rendered = helm(
            *("template", RELEASE, str(CHART), "--namespace", api.namespace, "--kube-version", "1.29.0"),
            values=given,
        )
        objects = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "ConfigMap"]
        assert any("workload" in each["data"] for each in objects)

        def apply() -> None:
            for each in objects:
                api.patch(CONFIG_MAPS, each["metadata"]["name"], each, kind="apply", field_manager="argocd")

        apply()
        capacity = Capacity(api, config_of(api))
        capacity.ensure_workers(EIGHT)

        def made() -> list[tuple[int, int]]:
            found = read_workloads(api, config_of(api))
            return [(each.object["metadata"]["generation"], each.replicas["gpu"]) for each in found]

        before = made()
        assert [pods for _, pods in before] == [2]
        apply()
        capacity.restore()
        assert made() == before


@pytest.mark.parametrize("option", ["--reset-then-reuse-values", "--reuse-values"])
def test_an_upgrade_of_values_tiny_works_with_each_way_to_keep_values(option: str) -> None:
    """`gpu: null` of the file comes back from the release, where it was an object before."""
    with installed("--values", str(TINY), values=NO_IMAGE) as api:
        upgrade(api, option)
        assert [group.name for group in config_of(api).ray.groups] == ["cpu"]


def test_the_definition_is_taken_over_where_the_release_that_owned_it_is_uninstalled() -> None:
    name = crd.crd()["metadata"]["name"]
    api_crds = Resource(CRDS.group, CRDS.version, CRDS.plural, namespaced=False)
    owner: Object = NO_IMAGE | {"crds": {"install": True, "keep": True}, "ray": {"provisioner": "static"}}
    other: Object = owner | {"rbac": {"clusterRoles": False}}
    with own_namespace("crd") as probe:
        if probe.get(api_crds, name) is not None:
            probe.delete(api_crds, name)
            wait_for(lambda: probe.get(api_crds, name) is None, "end of the definition")
    with installed(values=owner, release="first") as first, installed(values=other) as second:
        helm("uninstall", "first", "--namespace", first.namespace, "--wait=false")
        behind = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/release"
        second.patch(api_crds, name, [{"op": "remove", "path": behind}], kind="json")

        def knows_release() -> bool:
            found = second.get(api_crds, name) or {}
            schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            return "release" in schema["properties"]["status"]["properties"]

        notes = upgrade(second, values=other)
        assert "--set crds.adopt=true --take-ownership" in notes
        assert not knows_release()
        adopt = other | {"crds": {"install": True, "keep": True, "adopt": True}}
        with pytest.raises(ChartError, match="invalid ownership metadata"):
            upgrade(second, values=adopt)  # Helm asks for it to be said twice
        upgrade(second, "--take-ownership", values=adopt)
        assert knows_release()
        found = second.get(api_crds, name) or {}
        assert found["metadata"]["annotations"]["meta.helm.sh/release-name"] == RELEASE
        upgrade(second, values=other)  # its own by now
        second.delete(api_crds, name)
