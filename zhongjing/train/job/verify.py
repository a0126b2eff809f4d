"""One optimizer step of a tiny module under ZeRO-2, by Ray Train: what ``helm test`` has a cluster show.

It goes the way that a stage goes: a driver on the head, a worker of its own, Ray Train's folder in the object
store, DeepSpeed on the device that the stage would have.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from zhongjing.config.sources import Storage
from zhongjing.errors import ZhongjingError
from zhongjing.train.job.failures import cause_of, describe_failure
from zhongjing.train.job.ray_cluster import connect, run_workers, worker_resources
from zhongjing.train.job.scratch import scratch_folder

logger = logging.getLogger("zhongjing.verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the step. Returns the exit status: 0 done, 1 failed; the log says why."""
    parser = argparse.ArgumentParser(description="One optimizer step under ZeRO-2 on a Ray cluster.")
    parser.add_argument("--gpus", type=float, default=0.0, help="of the worker")
    parser.add_argument("--cpus", type=float, default=1.0, help="of the worker")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    name = f"verify-{uuid.uuid4().hex[:8]}"
    scratch = scratch_folder(name)
    try:
        connect()
        outcome = run_workers(
            one_step,
            {"gpus": options.gpus},
            name=name,
            workers=1,
            resources=worker_resources(options.cpus, options.gpus),
            storage=Storage(),
            scratch=scratch,
        )
    except Exception as error:
        cause = cause_of(error)
        failure = describe_failure(cause)
        logger.exception("the step failed", exc_info=cause)
        logger.error("[%s] %s\n  remedy: %s", failure.code, failure.message, failure.remedy)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logger.info("one step under ZeRO-2 on %(device)s: loss %(loss).4f, gradient norm %(norm).4f", outcome)
    return 0


def one_step(config: dict[str, Any]) -> dict[str, Any]:
    """The worker: takes the step and returns device, loss and gradient norm.

    Raises:
        TrainingError: the GPU cannot be used.
        ZhongjingError: the step changed nothing.
    """
    import torch
    from torch import nn

    from zhongjing.config.stages import SftSettings
    from zhongjing.train.distributed import prepare_deepspeed
    from zhongjing.train.job.accelerator import cuda_facts, no_cuda, use_gpu

    device = torch.device("cpu")
    if config["gpus"]:
        trouble = no_cuda(cuda_facts())
        if trouble is not None:
            raise trouble
        import ray.train.torch

        device = ray.train.torch.get_device()
        use_gpu(device)
    prepare_deepspeed(device)
    from zhongjing.train.engine import Engine
    from zhongjing.train.stages.program import MicroLoss, StepBatches

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(16, 4)

        def forward(self, batch: torch.Tensor) -> MicroLoss:
            return MicroLoss(self.layer(batch).square().sum().float())

    line = Line()
    before = line.layer.weight.detach().clone()
    settings = SftSettings.model_validate({"data": [{"source": "none"}], "precision": "fp32"})
    engine = Engine(line, [{"params": list(line.parameters())}], settings, device)
    try:
        result = engine.train_step(StepBatches([torch.ones(4, 16)], 4.0), 1e-2, (), step=0)
        moved = not torch.equal(line.layer.weight.detach().float().cpu(), before)
    finally:
        engine.destroy()
    if not (result.applied and moved):
        from zhongjing.codes import unexpected

        raise ZhongjingError("the optimizer step changed nothing", code=unexpected.UNEXPECTED)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return {"device": name, "loss": result.loss, "norm": result.gradient_norm}
