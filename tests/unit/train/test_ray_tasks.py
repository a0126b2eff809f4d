"""Where tasks of a token cache run: on CPUs that are free, else on the driver's own node, else nowhere."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from zhongjing.data.parts import PartMaker
from zhongjing.train.job import ray_tasks

NODE = "a1" * 28
GIB = 1 << 30


@pytest.mark.parametrize(
    ("cpus", "cores", "free", "places", "own_node"),
    [
        (8.0, 4, 64 * GIB, 8, False),
        (128.0, 4, 1 * GIB, 32, False),
        (1.0, 16, 64 * GIB, 4, True),
        (None, 3, 64 * GIB, 3, True),
        (0.0, 16, 5 * GIB, 2, True),
        (0.0, 16, 3 * GIB, None, True),
        (0.5, 1, 64 * GIB, None, True),
    ],
)
def test_places(
    cpus: float | None,
    cores: int,
    free: int,
    places: int | None,
    own_node: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "available_resources", lambda: {} if cpus is None else {"CPU": cpus})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: NODE))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(ray_tasks, "free_bytes", lambda _: free)
    monkeypatch.setattr(ray_tasks, "RayTasks", lambda maker, places, options: (places, options))
    found: Any = ray_tasks.connect(cast("PartMaker", None))
    if places is None:
        assert found is None
        return
    assert found[0] == places
    options = found[1]
    if own_node:
        # No CPU, or an autoscaler would start a node for it.
        assert options["num_cpus"] == 0
        strategy = options["scheduling_strategy"]
        assert (strategy.node_id, strategy.soft) == (NODE, False)
    else:
        assert options == {"num_cpus": 1}


def test_without_a_cluster_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    assert ray_tasks.connect(cast("PartMaker", None)) is None
