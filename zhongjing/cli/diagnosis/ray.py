"""Ray itself, with ``--deep``: a head of our own runs a job whose workers add up a tensor, and is ended.

The way that training's gradients take, without a model. As a program this module is that job.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, of_error
from zhongjing.cli.diagnosis.probes import clean_up_with, remove
from zhongjing.codes import machine
from zhongjing.codes import ray as codes
from zhongjing.errors import ZhongjingError

if TYPE_CHECKING:
    from zhongjing.backends.local.ray_head import RayHead
    from zhongjing.cli.diagnosis.checks import Situation

SECONDS = 240.0  # Ray may take two minutes on a starved machine, and the job one and a half
JOB_SECONDS = 90.0
RANKS = 2
ELEMENTS = 2**20  # of float32: 4 MiB, as a bucket of gradients
_GROUP_SECONDS = 60
_JOB = "zhongjing-doctor"
_WRONG = "zhongjing-doctor: the sum is wrong"  # a line of the job's log


def ray(situation: Situation) -> list[Finding]:
    """Starts a Ray of our own in the temporary folder."""
    from zhongjing.backends.local.ray_head import RayHead

    folder = situation.probes.folder() / "ray"
    # Ray's processes are in sessions of their own: whatever becomes of the probe, they are ended.
    situation.probes.at_end(RayHead(folder).stop)
    steps = {"ray start": codes.RAY_FAILED, "ray job": codes.RAY_REFUSED}
    return situation.probes.run(
        f"{__name__}:probe", steps, seconds=SECONDS, environment=situation.environment, folder=str(folder)
    )


def probe(folder: str) -> Iterator[Finding]:
    """Ray starts, and a job's workers can add up a tensor."""
    from zhongjing.backends.local.ray_head import RayHead

    head = RayHead(Path(folder))
    clean_up_with(head.stop)
    clean_up_with(lambda: remove(Path(folder)))
    began = time.monotonic()
    try:
        head.start(RANKS)
    except ZhongjingError as error:
        yield of_error("ray start", error)
        return
    yield fine("ray start", f"a Ray of our own was ready after {time.monotonic() - began:.1f} s")
    try:
        yield _job(head)
    except ZhongjingError as error:
        yield of_error("ray job", error)


def _job(head: RayHead) -> Finding:
    """Submits the job and waits for it."""
    from zhongjing.pipeline.backend import JobState

    began = time.monotonic()
    jobs = head.backend("jobs")
    jobs.start(_JOB, ["-m", __name__], {})
    job = jobs.describe(_JOB)
    while not job.state.is_terminal and time.monotonic() - began < JOB_SECONDS:
        time.sleep(0.2)
        job = jobs.describe(_JOB)
    if job.state is not JobState.SUCCEEDED:
        return fails("ray job", f"{job.state}: {job.message}".rstrip(": "), codes.RAY_REFUSED)
    return judge_job(jobs.read_log(_JOB), time.monotonic() - began)


def judge_job(log: Iterable[str], seconds: float) -> Finding:
    """What the job's log says; ``seconds`` is how long it took."""
    if any(line.startswith(_WRONG) for line in log):
        return fails("ray job", "the workers' sum is wrong", machine.TORCH_UNUSABLE)
    return fine("ray job", f"{RANKS} workers added up 4 MiB by gloo; the job took {seconds:.1f} s")


# The job


def add_up(rank: int, port: int) -> bool:
    """Joins the group and adds up a tensor; returns whether the sum is right."""
    import torch
    from torch import distributed

    address = f"tcp://127.0.0.1:{port}"
    patience = timedelta(seconds=_GROUP_SECONDS)
    distributed.init_process_group("gloo", address, patience, RANKS, rank)
    try:
        values = torch.full((ELEMENTS,), float(rank + 1))
        distributed.all_reduce(values)
        return bool((values == RANKS * (RANKS + 1) / 2).all())
    finally:
        distributed.destroy_process_group()


def main() -> None:
    """Runs the workers and prints a line where their sum is wrong."""
    import ray

    from zhongjing.backends.local.processes import free_ports

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    [port] = free_ports(1)
    worker = ray.remote(num_cpus=1)(add_up)
    if not all(ray.get([worker.remote(rank, port) for rank in range(RANKS)])):
        sys.stdout.write(f"\n{_WRONG}\n")


if __name__ == "__main__":
    main()
