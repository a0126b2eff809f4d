"""How long a checkpoint of 336 MB stops two workers, against saving and uploading it while they wait.

Run: ``python -m benchmarks.checkpoint_stall``. Prints the two bars: the stall is at most 10 % of the blocking
way, and the extra memory of a rank at most 1.2 x its own part (memory of its own and mapped files together).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.training_support import free_port
from zhongjing.config.sources import Storage
from zhongjing.config.stages import SftSettings, Stage
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import open_store
from zhongjing.train.barrier import meet
from zhongjing.train.distributed import ensure_process_group
from zhongjing.train.engine import Engine
from zhongjing.train.snapshot import SnapshotBuffer
from zhongjing.train.state import write_state

PARAMETERS = 28 << 20  # x 12 bytes of masters and moments: 336 MiB
ROUNDS = 4
BUCKET = "s3://bench"


def resident(kind: str = "VmRSS") -> int:
    """Memory of this process in bytes: mapped files and its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) << 10
    raise AssertionError(kind)


def one_rank(folder: Path) -> dict[str, Any]:
    """Stalls of one rank, of saving behind the training and of saving and waiting, and its memory."""
    rank, ranks = ensure_process_group(torch.device("cpu"))
    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(PARAMETERS >> 20)])
    settings = SftSettings(precision="fp32", data=[{"source": "any"}])
    engine = Engine(module, [{"params": list(module.parameters())}], settings, torch.device("cpu"))
    store = open_store(Storage(uri=BUCKET))
    layout = Layout(BUCKET, "local", "x").stage(Stage.SFT, "k")
    spool = folder / "spool"
    checkpoints = CheckpointStore(store, layout, spool, 1, rank=rank, ranks=ranks, meet=meet)
    buffer = SnapshotBuffer(spool / f"buffers-{rank}")
    before = resident()
    stalls, blocking = [], []
    peak = 0
    for step in range(1, ROUNDS + 1):
        meet(lambda: None)
        began = time.monotonic()
        checkpoints.save(step, lambda into: write_state(engine, into, {}, buffer))
        stalls.append(time.monotonic() - began)
        checkpoints.wait()
        blocking.append(time.monotonic() - began)
        peak = max(peak, resident())
    part = sum(12 * partition.numel() for partition in engine.zero.single_partition_of_fp32_groups)
    return {"stalls": stalls, "blocking": blocking, "extra": peak - before, "part": part}


def main() -> int:
    """Prints the figures and returns 1 if a bar is missed."""
    with tempfile.TemporaryDirectory() as name, EmbeddedS3(Path(name) / "s3") as server:
        os.environ.update(server.environment())
        BucketAdmin(Storage(uri=BUCKET)).ensure_bucket(BUCKET)
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.checkpoint_stall", name],
                env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]
        if sum(worker.wait() != 0 for worker in workers):
            return 1
        results = [json.loads((Path(name) / f"result-{rank}.json").read_text()) for rank in range(2)]
    stall = [max(result["stalls"][at] for result in results) for at in range(ROUNDS)]
    blocking = [max(result["blocking"][at] for result in results) for at in range(ROUNDS)]
    extra = max(result["extra"] / result["part"] for result in results)
    ratio = statistics.median(stall) / statistics.median(blocking)
    print(json.dumps({"stall": stall, "blocking": blocking, "ratio": ratio, "memory": extra}, indent=1))
    return int(ratio > 0.10 or extra > 1.2)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    result = one_rank(Path(sys.argv[1]))
    (Path(sys.argv[1]) / f"result-{os.environ['RANK']}.json").write_text(json.dumps(result))
