"""The job that ``zhongjing doctor --deep`` submits: two workers on Ray that add up a tensor by gloo.

The way that training's gradients take, without a model. Prints one line that begins with :data:`RESULT`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

RESULT = "zhongjing-doctor: "
RANKS = 2
ELEMENTS = 2**20  # of float32: 4 MiB, as a bucket of gradients
_ROUNDS = 5
_SECONDS = 60


def reduce(rank: int, port: int) -> tuple[bool, float]:
    """Joins the group and adds up a tensor; returns whether the sum is right, and milliseconds a round."""
    import torch
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=_SECONDS),
    )
    try:
        right = True
        began = time.monotonic()
        for _ in range(_ROUNDS):
            values = torch.full((ELEMENTS,), float(rank + 1))
            distributed.all_reduce(values)
            right = right and bool((values == RANKS * (RANKS + 1) / 2).all())
        return right, (time.monotonic() - began) / _ROUNDS * 1000
    finally:
        distributed.destroy_process_group()


def main() -> None:
    """Runs the workers and prints what they found."""
    import ray

    from zhongjing.backends.local.processes import free_ports

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    [port] = free_ports(1)
    worker = ray.remote(num_cpus=1)(reduce)
    answers = ray.get([worker.remote(rank, port) for rank in range(RANKS)])
    result = {
        "ranks": RANKS,
        "right": all(right for right, _ in answers),
        "milliseconds": max(each for _, each in answers),
    }
    sys.stdout.write(f"\n{RESULT}{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
