"""Worker pods come for a stage and go when nothing runs: real Deployments, real pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.capacity_support import group, install_head, install_workers, release
from tests.cluster.own_namespace import own_namespace, wait_for
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.capacity import IDLE_SINCE, Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, DEPLOYMENTS, PODS, Object
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.stages import Resources
from zhongjing.pipeline.backend import ImpossibleJobError

pytestmark = pytest.mark.cluster

TWO = Demand("rm", 4, Resources(cpus=1.0))  # two pods of two CPUs
ONE = Demand("rm", 1, Resources(cpus=1.0))


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApi]:
    with own_namespace("capacity") as api:
        install_head(api)
        yield api


@pytest.fixture
def workload(api: KubeApi) -> Iterator[str]:
    name = install_workers(api)
    yield name
    api.delete(CONFIG_MAPS, name)  # what was made of it goes with it, a moment later
    wait_for(lambda: api.get(DEPLOYMENTS, name) is None and not pods_of(api), "end of the worker pods")


def pods_of(api: KubeApi) -> list[Object]:
    return api.find(PODS, labels="app.kubernetes.io/component=ray-worker").items


def seen(api: KubeApi, name: str) -> tuple[int, dict[str, str]]:
    """Pods that are asked for, and what the controller remembers besides of them."""
    found = api.get(DEPLOYMENTS, name)
    assert found is not None
    kept = found["metadata"].get("annotations") or {}
    return found["spec"]["replicas"], {key: text for key, text in kept.items() if key == IDLE_SINCE}


def test_pods_come_for_a_stage_and_go_when_idle(api: KubeApi, workload: str) -> None:
    clock = Clock()
    config = release(api, group(most=3), idle_seconds=600)
    capacity = Capacity(api, config, clock=clock)

    capacity.scale_down()  # makes it, and asks for nothing
    assert seen(api, workload) == (0, {})

    room = capacity.ensure_workers(TWO)
    assert not room.ready
    assert room.needed == {"gpu": 2}
    assert "0 of 2 worker pods of group gpu are ready" in room.message
    assert seen(api, workload)[0] == 2
    wait_for(lambda: capacity.ensure_workers(TWO).ready, "room for two pods")
    assert capacity.ensure_workers(TWO).message == ""

    # A smaller stage takes nothing away: its workers may be in any pod.
    assert capacity.ensure_workers(ONE).ready
    assert seen(api, workload)[0] == 2

    capacity.scale_down()
    replicas, annotations = seen(api, workload)
    assert (replicas, IDLE_SINCE in annotations) == (2, True)
    # The clock goes on over a restart of the controller, and a stage stops it.
    clock.now += 599
    Capacity(api, config, clock=clock).scale_down()
    assert seen(api, workload) == (replicas, annotations)
    assert Capacity(api, config, clock=clock).ensure_workers(ONE).ready
    assert IDLE_SINCE not in seen(api, workload)[1]
    capacity.scale_down()
    clock.now += 601
    Capacity(api, config, clock=clock).scale_down()
    assert seen(api, workload) == (0, {})
    wait_for(lambda: not pods_of(api), "end of the idle pods")


def test_nothing_to_change_is_nothing_written(api: KubeApi, workload: str) -> None:
    clock = Clock()
    capacity = Capacity(api, release(api, group()), clock=clock)

    def version() -> str:
        found = api.get(DEPLOYMENTS, workload)
        assert found is not None
        kept = found["metadata"].get("annotations") or {}
        ours = {key: text for key, text in kept.items() if key.startswith(API_GROUP)}
        return str(found["metadata"]["generation"]) + str(ours)

    capacity.scale_down()
    before, asked = version(), api.requests
    for _ in range(3):
        capacity.scale_down()
    assert api.requests - asked == 6  # descriptions and workloads
    assert version() == before
    wait_for(lambda: capacity.ensure_workers(ONE).ready, "room")
    before, asked = version(), api.requests
    assert capacity.ensure_workers(ONE).ready
    assert api.requests - asked == 3  # descriptions, workloads and pods
    assert version() == before
    capacity.scale_down()
    before, asked = version(), api.requests
    clock.now += 60
    capacity.scale_down()
    assert (api.requests - asked, version()) == (2, before)


def test_a_clock_that_was_set_back_or_a_damaged_mark_begins_anew(api: KubeApi, workload: str) -> None:
    clock = Clock()
    capacity = Capacity(api, release(api, group(), idle_seconds=10), clock=clock)
    capacity.ensure_workers(ONE)
    capacity.scale_down()
    first = seen(api, workload)[1][IDLE_SINCE]
    clock.now -= 3600
    capacity.scale_down()
    second = seen(api, workload)[1][IDLE_SINCE]
    assert second < first
    api.patch(DEPLOYMENTS, workload, {"metadata": {"annotations": {IDLE_SINCE: "yesterday"}}})
    capacity.scale_down()
    assert seen(api, workload) == (1, seen(api, workload)[1] | {IDLE_SINCE: second})
    clock.now += 11
    capacity.scale_down()
    assert seen(api, workload)[0] == 0


def test_a_stage_that_prepares_asks_for_no_pods_and_keeps_none_for_long(api: KubeApi, workload: str) -> None:
    clock, told = Clock(), list[str | None]()

    def in_use(preparing: str | None) -> bool:
        told.append(preparing)
        return False

    capacity = Capacity(api, release(api, group(), idle_seconds=10), clock=clock, in_use=in_use)
    capacity.scale_down()
    room = capacity.ensure_head(TWO, "x-sft-a1")
    assert (room.ready, room.message, room.needed) == (True, "", {"gpu": 2})
    assert seen(api, workload)[0] == 0
    # What the stage before has left stays for its time, whatever is being prepared.
    capacity.ensure_workers(ONE)
    capacity.scale_down("x-sft-a1")
    assert capacity.ensure_head(TWO, "x-sft-a1").ready
    clock.now += 9
    capacity.scale_down("x-sft-a1")
    assert seen(api, workload)[0] == 1
    clock.now += 2
    capacity.scale_down("x-sft-a1")
    assert (seen(api, workload)[0], told) == (0, ["x-sft-a1"])
    assert capacity.ensure_head(TWO, "x-sft-a1").ready
    lost = Capacity(api, release(api, group("lost"))).ensure_head(ONE, "x-sft-a1")
    assert "there is no workload of the worker group lost" in lost.message


def test_pods_that_others_use_stay(api: KubeApi, workload: str) -> None:
    clock, used = Clock(), [True]
    capacity = Capacity(
        api, release(api, group(), idle_seconds=10), clock=clock, in_use=lambda preparing: used[0]
    )
    capacity.ensure_workers(ONE)
    capacity.scale_down()
    clock.now += 11
    capacity.scale_down()
    assert seen(api, workload)[0] == 1
    used[0] = False
    clock.now += 9
    capacity.scale_down()  # idle from the last look that saw them used
    assert seen(api, workload)[0] == 1
    clock.now += 2
    capacity.scale_down()
    assert seen(api, workload)[0] == 0


def test_a_fresh_workload_gets_what_a_waiting_stage_takes(api: KubeApi, workload: str) -> None:
    capacity = Capacity(api, release(api, group(), idle_seconds=10))
    room = capacity.ensure_workers(TWO)
    assert room.needed == {"gpu": 2}
    assert seen(api, workload) == (2, {})


def test_the_least_number_holds_and_may_be_raised_later(api: KubeApi, workload: str) -> None:
    Capacity(api, release(api, group(least=1))).scale_down()
    assert seen(api, workload)[0] == 1
    Capacity(api, release(api, group(least=2))).scale_down()
    assert seen(api, workload)[0] == 2


def test_no_fresh_install_asks_for_a_gpu_worker_before_a_stage_does(api: KubeApi, workload: str) -> None:
    """In each of its versions from the first on: an autoscaler acts on any that asks for a pod."""
    version = api.find(DEPLOYMENTS).resource_version
    Capacity(api, release(api, group())).scale_down()
    changes = list(api.watch(DEPLOYMENTS, version, seconds=2))
    replicas = [
        change.object["spec"]["replicas"]
        for change in changes
        if change.type != "BOOKMARK" and change.object["metadata"]["name"] == workload
    ]
    assert replicas
    assert set(replicas) == {0}
    assert not pods_of(api)


def test_workers_that_somebody_takes_from_a_running_stage_come_back(api: KubeApi, workload: str) -> None:
    config = release(api, group(most=3))
    Capacity(api, config).ensure_workers(TWO)
    assert seen(api, workload)[0] == 2
    api.patch(DEPLOYMENTS, workload, {"spec": {"replicas": 0}})
    Capacity(api, config).restore()  # of a controller that has started since
    assert seen(api, workload)[0] == 2
    # More than were asked for are left, and so is everything where no stage runs.
    api.patch(DEPLOYMENTS, workload, {"spec": {"replicas": 3}})
    Capacity(api, config).restore()
    assert seen(api, workload)[0] == 3
    capacity = Capacity(api, config)
    capacity.restore()
    api.delete(DEPLOYMENTS, workload)
    wait_for(lambda: api.get(DEPLOYMENTS, workload) is None, "end of the workload")
    capacity.restore()
    assert seen(api, workload)[0] == 3


def test_a_group_that_the_controller_does_not_know_yet_is_not_made(api: KubeApi, workload: str) -> None:
    """An upgrade brings a group and a new controller; until that leads the old one has no number for it."""
    other = install_workers(api, "new")
    Capacity(api, release(api, group())).scale_down()
    assert api.get(DEPLOYMENTS, other) is None
    Capacity(api, release(api, group(), group("new"))).scale_down()
    assert seen(api, other)[0] == 0
    api.delete(CONFIG_MAPS, other)


def test_what_the_chart_changes_is_applied_and_the_number_stays(api: KubeApi, workload: str) -> None:
    config = release(api, group(most=3))
    Capacity(api, config).ensure_workers(TWO)
    install_workers(api, terminationGracePeriodSeconds=0)
    Capacity(api, config).restore()
    found = api.get(DEPLOYMENTS, workload)
    assert found is not None
    assert found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 0
    assert found["spec"]["replicas"] == 2
    generation = found["metadata"]["generation"]
    Capacity(api, config).restore()
    assert (api.get(DEPLOYMENTS, workload) or {})["metadata"]["generation"] == generation


def test_a_stage_that_never_fits_changes_nothing(api: KubeApi, workload: str) -> None:
    capacity = Capacity(api, release(api, group(most=1)))
    capacity.scale_down()
    with pytest.raises(ImpossibleJobError, match="holds 2 at most"):
        capacity.ensure_workers(TWO)
    assert seen(api, workload)[0] == 0


def test_nobody_scales_but_readiness_counts(api: KubeApi, workload: str) -> None:
    capacity = Capacity(api, release(api, group(), scaling="none"))
    capacity.scale_down()
    wait_for(lambda: capacity.ensure_workers(ONE).ready, "the one pod")
    room = capacity.ensure_workers(TWO)
    assert not room.ready
    assert "1 of 2 worker pods of group gpu are ready" in room.message
    capacity.scale_down()
    assert seen(api, workload) == (1, {})


def test_rays_autoscaler_is_left_to_itself(api: KubeApi, workload: str) -> None:
    capacity = Capacity(api, release(api, group(), scaling="ray"))
    capacity.scale_down()
    api.patch(DEPLOYMENTS, workload, {"spec": {"replicas": 1}})
    wait_for(lambda: capacity.ensure_workers(TWO).ready, "the head")
    capacity.scale_down()
    assert seen(api, workload) == (1, {})


def test_a_group_without_a_workload_is_told(api: KubeApi) -> None:
    room = Capacity(api, release(api, group("lost"))).ensure_workers(ONE)
    assert not room.ready
    assert "there is no workload of the worker group lost" in room.message
