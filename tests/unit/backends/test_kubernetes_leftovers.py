"""Worker pods that the next attempt must not use, from what Ray's dashboard says of nodes and processes."""

from __future__ import annotations

from typing import Any

import pytest

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.worker_pods import (
    JOINING_SECONDS,
    PATIENCE_SECONDS,
    REJOIN_SECONDS,
    SILENT_SECONDS,
    Leftovers,
    ended_badly,
    holds_workers,
    started,
)
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.state import stamp

NOW = 1_800_000_000.0


def process(*words: str) -> Object:
    return {"pid": 1, "cmdline": list(words)}


AGENTS = [process("ray::DashboardAgent", "", ""), process("ray::RuntimeEnvAgent"), process("ray::IDLE")]
TRAINING = process("ray::RayTrainWorker.execute", "", "")


def job(status: str, end: int | None = None, **fields: Any) -> Object:
    return {"submission_id": f"x-{status}-{end}", "status": status, "end_time": end} | fields


def worker(
    name: str, address: str, *, runs: float = 300, ready: bool = True, since: float | None = None
) -> Object:
    """A pod whose container runs for so long, and that is (un)ready since so long."""
    running = {"state": {"running": {"startedAt": stamp(NOW - runs)}}}
    changed = stamp(NOW - (runs + 1 if since is None else since))
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": changed}]
    return {
        "metadata": {"name": name, "uid": name},
        "status": {"podIP": address, "conditions": conditions, "containerStatuses": [running]},
    }


class Ray:
    """A dashboard: jobs, and the processes of each node by address."""

    def __init__(self, *jobs: Object) -> None:
        self.jobs = list(jobs)
        self.nodes: dict[str, list[Object]] = {}
        self.dead: set[str] = set()
        self.asked: list[str] = []
        self.silent = False
        self.tasks: list[str] = []  # ids of the nodes that they run on

    def query(self, path: str) -> Any:
        self.asked.append(path)
        if path == "/api/jobs/":
            return self.jobs
        if path == "/api/v0/nodes?limit=10000":
            head = {"node_ip": "h", "node_id": "node-h", "is_head_node": True, "state": "ALIVE"}
            return {"data": {"result": {"result": [head, *map(self._node, self.nodes)]}}}
        if path.startswith("/api/v0/tasks?"):
            tasks = [{"node_id": node} for node in self.tasks]
            return {"data": {"result": {"result": tasks}}}
        if path == "/api/v0/objects?limit=1&timeout=3":
            warning = "1 of 2 raylets did not answer" if self.silent else ""
            return {"data": {"result": {"partial_failure_warning": warning, "result": []}}}
        return {"data": {"detail": {"workers": self.nodes[path.removeprefix("/nodes/node-")]}}}

    def _node(self, address: str) -> Object:
        state = "DEAD" if address in self.dead else "ALIVE"
        return {"node_ip": address, "node_id": f"node-{address}", "is_head_node": False, "state": state}


@pytest.mark.parametrize(
    ("jobs", "badly"),
    [
        ([], False),
        ([job("SUCCEEDED", 5)], False),
        ([job("STOPPED", 5)], True),
        ([job("FAILED", 5)], True),
        ([job("FAILED", 5), job("SUCCEEDED", 9)], False),
        ([job("FAILED", 9), job("SUCCEEDED", 5)], True),
        ([job("STOPPED", 9), job("RUNNING")], False),  # somebody else's processes are alive
        ([{"type": "DRIVER", "status": "FAILED", "end_time": 9}], False),  # not submitted as a job
    ],
)
def test_only_a_disorderly_end_leaves_something(jobs: list[Object], badly: bool) -> None:
    assert ended_badly(jobs) is badly


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        (("ray::RayTrainWorker.execute", "", ""), True),
        (("ray::TrainController",), True),
        (("ray::IDLE",), False),
        (("ray::IDLE_SpillWorker",), False),
        (("/opt/zhongjing/bin/python", "-m", "zhongjing.storage.checkpoint_upload"), False),
        ((), False),
    ],
)
def test_workers_that_are_not_idle(words: tuple[str, ...], holds: bool) -> None:
    assert holds_workers([*AGENTS, process(*words)]) is holds


HEAD = worker("head", "h", runs=3000)


def test_after_an_orderly_end_only_the_jobs_are_asked_for() -> None:
    ray = Ray(job("SUCCEEDED", 9))
    ray.nodes["a"] = [TRAINING]
    assert Leftovers(ray.query).look(HEAD, [worker("w", "a")], NOW) == ([], [])
    assert ray.asked == ["/api/jobs/"]


def test_processes_have_time_to_end_and_then_their_pods_go() -> None:
    clock = [0.0]
    ray = Ray(job("STOPPED", 9))
    ray.nodes = {"a": [*AGENTS, TRAINING], "b": AGENTS}
    leftovers = Leftovers(ray.query, lambda: clock[0])
    workers = [worker("w0", "a"), worker("w1", "b")]
    assert leftovers.look(HEAD, workers, NOW) == ([workers[0]], [])
    clock[0] += PATIENCE_SECONDS - 1
    assert leftovers.look(HEAD, workers, NOW) == ([workers[0]], [])
    clock[0] += 1
    assert leftovers.look(HEAD, workers, NOW) == ([], [workers[0]])
    # Its successor has nothing of it, and the next time begins anew.
    ray.nodes["a"] = AGENTS
    assert leftovers.look(HEAD, workers, NOW) == ([], [])
    ray.nodes["b"] = [TRAINING]
    assert leftovers.look(HEAD, workers, NOW) == ([workers[1]], [])


def test_a_pod_that_ray_has_lost_counts_once_it_should_have_joined() -> None:
    ray = Ray(job("FAILED", 9))
    ray.nodes["a"] = AGENTS
    ray.dead.add("a")
    leftovers = Leftovers(ray.query)
    young = worker("young", "b", runs=JOINING_SECONDS - 5)
    starting = worker("starting", "c", ready=False)
    dead = worker("dead", "a")
    silent = worker("silent", "d", runs=20, ready=False, since=3)
    pods = [young, starting, dead, silent]
    assert leftovers.look(HEAD, pods, NOW) == ([dead, silent], [])
    ending = silent["metadata"] | {"deletionTimestamp": stamp(NOW)}
    assert leftovers.look(HEAD, [silent | {"metadata": ending}], NOW) == ([], [])


def test_a_node_that_does_not_answer_is_waited_for_until_ray_knows_it_dead() -> None:
    clock = [0.0]
    ray = Ray(job("STOPPED", 9))
    ray.nodes, ray.silent = {"a": AGENTS}, True
    leftovers = Leftovers(ray.query, lambda: clock[0])
    frozen = worker("frozen", "a")
    assert leftovers.look(HEAD, [frozen], NOW) == ([frozen], [])
    clock[0] += SILENT_SECONDS - 1
    assert leftovers.look(HEAD, [frozen], NOW) == ([frozen], [])
    # A node that Ray still has after so long is only slow.
    clock[0] += 1
    assert leftovers.look(HEAD, [frozen], NOW) == ([], [])
    ray.dead.add("a")
    ray.silent = False
    assert leftovers.look(HEAD, [frozen], NOW) == ([frozen], [])
    clock[0] += PATIENCE_SECONDS
    assert leftovers.look(HEAD, [frozen], NOW) == ([], [frozen])


def test_nodes_of_a_head_that_is_gone_are_replaced_unless_they_join_the_new_one() -> None:
    ray = Ray()  # a new head knows no job
    old, new = worker("old", "a", runs=300), worker("new", "b", runs=2)
    ray.nodes["b"] = AGENTS
    leftovers = Leftovers(ray.query)
    born = worker("head", "h", runs=REJOIN_SECONDS - 5)
    assert leftovers.look(born, [old, new], NOW) == ([old], [])
    born = worker("head", "h", runs=REJOIN_SECONDS)
    assert leftovers.look(born, [old, new], NOW) == ([], [old])
    ray.nodes["a"] = [TRAINING]  # it joined, and its head remembers the job
    assert leftovers.look(born, [old, new], NOW) == ([], [])


def test_a_container_beside_rays_does_not_count() -> None:
    beside = {"name": "autoscaler", "state": {"running": {"startedAt": stamp(NOW)}}}
    pod = worker("head", "h", runs=100)
    pod["status"]["containerStatuses"][0]["name"] = "ray-head"
    pod["status"]["containerStatuses"].append(beside)
    assert started(pod) == NOW - 100
    assert started({"status": {}}) == 0


@pytest.mark.parametrize(("nodes", "found"), [([], False), (["node-h"], False), (["node-h", "node-a"], True)])
def test_tasks_on_workers_are_seen(nodes: list[str], found: bool) -> None:
    ray = Ray(job("RUNNING"))
    ray.nodes, ray.tasks = {"a": []}, nodes
    assert Leftovers(ray.query).tasks_on_workers() is found


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": {"result": {"result": None}}}, []])
def test_a_state_that_ray_does_not_tell_is_no_defect_but_waited_for(answer: Any) -> None:
    """As while its head starts: what asks for it knows what to do with a Ray that does not answer."""
    leftovers = Leftovers(lambda path: answer)
    with pytest.raises(BackendUnavailableError):
        leftovers.tasks_on_workers()
