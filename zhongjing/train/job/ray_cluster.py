"""The Ray cluster that a job is on: joining it, and running a function on workers by Ray Train."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from zhongjing.config.sources import Storage
from zhongjing.train.distributed import COLLECTIVE_SECONDS
from zhongjing.train.job.ray_storage import ray_storage


def connect() -> None:
    """Joins the cluster of this process's head, once.

    Raises:
        ConnectionError: there is none.
    """
    import ray

    if not ray.is_initialized():
        ray.init(address="auto", logging_level=logging.WARNING)


def worker_resources(cpus: float, gpus: float) -> dict[str, float]:
    """What Ray counts for one worker."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    name: str,
    workers: int,
    resources: dict[str, float],
    storage: Storage,
    scratch: Path,
) -> Any:
    """Runs ``function(config)`` on each worker; what rank 0 returned.

    Args:
        function: found by its module in the workers' processes.
        config: its argument.
        name: of the run. A finished one of the same name would be reloaded.
        workers: how many.
        resources: of each, as :func:`worker_resources` says.
        storage: settings of the object store, for what Ray Train keeps of the run.
        scratch: a folder of this node.

    Raises:
        TrainingFailedError: a worker failed. Nothing is tried again: attempts are the sequencer's, and each
            starts from the last checkpoint.
    """
    # One process less. A stop with a checkpoint reaches the loop by way of S3.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = "GPU" in resources
    place = ray_storage(storage, scratch)
    trainer = TorchTrainer(
        cast("Any", function),
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=place.path,
            storage_filesystem=place.filesystem,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        result: Any = trainer.fit()
    finally:
        place.remove(name)
    return result.return_value
