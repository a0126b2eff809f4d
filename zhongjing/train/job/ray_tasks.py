"""Tokenising and data construction by Ray tasks (:mod:`zhongjing.data.tasks`).

Where tasks run, and what becomes of lost ones:

A task asks for a CPU where the cluster has free ones now, and for nothing that it would have to grow for: an
autoscaler would start nodes with GPUs. Where all are taken, or a head counts none (the chart's), a few tasks
run on the driver's own node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

import torch

from zhongjing.data.tasks import Maker
from zhongjing.errors import ZhongjingError
from zhongjing.model.kv_cache import free_bytes
from zhongjing.train.job import ray_cluster

logger = logging.getLogger(__name__)

_MOST = 32  # reading and writing, in one process, keep up with about so many
_MOST_ON_OWN_NODE = 4  # a head has its own work
_TASK_BYTES = 2 << 30  # transformers and torch take 0.6 GB, a shard on its way less than 0.2
_RETRIES = 3

_makers: dict[str, Maker] = {}  # in a task's process: the one in use


def connect(maker: Maker, most: int | None = None) -> RayTasks | None:
    """Tasks for a cache or a source, or None if this process is as good.

    Args:
        maker: of what the tasks make.
        most: tasks at a time; None: as many as there is room for.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray_cluster.connect()
    except ConnectionError:
        return None
    available: dict[str, float] = cast("Any", ray).available_resources()
    most = _MOST if most is None else most
    places = min(int(available.get("CPU", 0)), most)
    options: dict[str, Any] = {"num_cpus": 1}
    if places < 2:
        room = free_bytes(torch.device("cpu")) // _TASK_BYTES
        places = min(len(os.sched_getaffinity(0)), room, _MOST_ON_OWN_NODE, most)
        node = ray.get_runtime_context().get_node_id()
        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    if places < 2:
        return None
    logger.info("working by %d tasks", places)
    return RayTasks(maker, places, options)


class RayTasks:
    """Processes of a Ray cluster.

    Args:
        maker: of the cache.
        places: tasks at a time.
        options: what a task asks for.
    """

    def __init__(self, maker: Maker, places: int, options: dict[str, Any]) -> None:
        import ray

        self.places = places
        self._uri = maker.uri
        # In a list, or Ray would unpack the tokenizer for every task.
        self._maker = [ray.put(maker)]
        self._running: set[Any] = set()
        self._task = ray.remote(_make).options(
            max_retries=_RETRIES,
            # One core each; and processes of their own, which no training worker takes over.
            runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
            **options,
        )

    def submit(self, name: str, records: Sequence[Any]) -> Any:
        """Begins to make a part."""
        task = self._task.remote(self._maker, self._uri, name, list(records))
        self._running.add(task)
        return task

    def finished(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are over; waits for one at most so long."""
        import ray

        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        self._running.difference_update(ready)
        return list(ready)

    def succeeded(self, task: Any) -> bool:
        """Whether the part is made; False if its process died, each time that Ray tried.

        Raises:
            ZhongjingError: the task's own.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            ray.get(task)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ZhongjingError):
                raise cause from None
            raise
        except RayError as error:
            logger.warning("a task was lost (%s); this process does its work", type(error).__name__)
            return False
        return True

    def close(self) -> None:
        """Ends what still runs; parts that are stored are found again."""
        import ray

        for task in self._running:
            ray.cancel(task, force=True)
        self._running.clear()


def _make(maker: list[Any], uri: str, name: str, records: Sequence[Any]) -> None:
    import ray

    if uri not in _makers:
        _makers.clear()
        _makers[uri] = ray.get(maker[0])
    _makers[uri].make(name, records)
