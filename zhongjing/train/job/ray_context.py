"""The loop's world on a cluster: Ray Train workers, progress and checkpoints in S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from zhongjing.storage.checkpoint_records import Wanted
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.manifest import StageRequest
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Activity, MetricPoint, Progress, time_stamp
from zhongjing.storage.progress_writer import MetricsWriter, ProgressWriter
from zhongjing.train.barrier import meet
from zhongjing.train.job.stop_watch import OTHERS_POLL_SECONDS, POLL_SECONDS, StopWatch

# Of a checkpoint: metric points up to its step that were not in the store yet when it was taken.
POINTS_FILE = "points.jsonl"


class RayRunContext:
    """A :class:`zhongjing.train.context.RunContext` over S3, for workers that Ray Train started.

    Args:
        request: what the job was asked to do.
        layout: URIs of this run of the stage.
        store: the object store.
        spool: local folder of this attempt, for downloads; lost without harm.
        checkpoints: local folder for snapshots on their way to the store, the same for all attempts on
            this node: the next one waits for the uploader of a dead one, and clears up after it.
        device: this worker's device.
        keep: how many checkpoints are kept besides the best.
        nodes: ids of the Ray nodes that the attempt is on.
        gauges: called with every metric point on rank 0 (Ray's metrics, TensorBoard).
        watchers: called with every progress on rank 0.
        warnings: what was found doubtful before the training; stands before what is reported later.
    """

    def __init__(
        self,
        request: StageRequest,
        layout: StageLayout,
        store: ObjectStore,
        spool: Path,
        checkpoints: Path,
        *,
        rank: int,
        world_size: int,
        local_rank: int,
        device: torch.device,
        keep: int,
        nodes: Collection[str] = (),
        gauges: tuple[Callable[[MetricPoint], None], ...] = (),
        watchers: tuple[Callable[[Progress], None], ...] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._local_rank = local_rank
        self._spool = spool
        self._gauges = gauges
        self._watchers = watchers
        self._warnings = list(warnings)
        self.buffers: Path | None = checkpoints / f"buffers-{request.attempt}-{rank}"
        self._checkpoints = CheckpointStore(
            store, layout, checkpoints, keep, request.attempt, rank=rank, ranks=world_size, meet=meet
        )
        self._fields: dict[str, Any] = {
            "stage": request.stage,
            "key": request.key,
            "attempt": request.attempt,
            "started_at": time_stamp(),
            "warnings": self._warnings,
        }
        self._stop = StopWatch(
            store,
            layout,
            request.attempt,
            name=f"rank{rank}",
            interval=POLL_SECONDS if rank == 0 else OTHERS_POLL_SECONDS,
            nodes=nodes if rank == 0 else (),
        )
        self._progress: ProgressWriter | None = None
        self._metrics: MetricsWriter | None = None
        if rank == 0:
            self._progress = ProgressWriter(store, layout)
            self._metrics = MetricsWriter(store, layout)

    def stop_requested(self) -> bool:
        """Whether a stop with a checkpoint was asked for (rank 0)."""
        return self._stop.requested

    def report(self, activity: Activity, **fields: Any) -> None:
        """Publishes progress (rank 0)."""
        if self._progress is None:
            return
        # A message is of the moment; everything else stays until it changes.
        saved: dict[str, Any] = {"checkpoint_step": self._checkpoints.completed}
        if "warnings" in fields:
            saved["warnings"] = [*self._warnings, *fields["warnings"]]
        self._fields.update({"message": "", **fields, **saved})
        progress = Progress(activity=activity, updated_at=time_stamp(), **self._fields)
        self._progress.write(progress)
        for watcher in self._watchers:
            watcher(progress)

    def warn(self, warnings: Sequence[str]) -> None:
        """Adds to what was found doubtful before the training; published with the next report."""
        self._warnings += warnings

    def log(self, kind: str, step: int, values: dict[str, float], *, epoch: float = 0.0) -> None:
        """Adds a metric point (rank 0)."""
        if self._metrics is None:
            return
        point = MetricPoint.model_validate(
            {"kind": kind, "step": step, "time": time_stamp(), "epoch": epoch, "values": values}
        )
        self._metrics.add(point)
        for gauge in self._gauges:
            gauge(point)

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> None:
        """Each rank snapshots its part to its node's spool; the upload goes on behind the training."""

        def write_all(folder: Path) -> None:
            write(folder)
            if self._metrics is not None:
                (folder / POINTS_FILE).write_bytes(self._metrics.unstored())

        self._checkpoints.save(step, write_all, best=best)

    def wait_saved(self) -> None:
        """Blocks until every checkpoint is complete in the store."""
        self._checkpoints.wait()

    def latest(self, wanted: Wanted) -> Path | None:
        """Folder with this rank's part of the latest good checkpoint; None, for all, at a fresh start."""
        meet(lambda: self._checkpoints.clean_spool() if self._local_rank == 0 and self.rank else None)
        folder = self._spool / f"restore-{self.rank}"
        step = self._checkpoints.restore(folder, wanted)
        if self._metrics is not None:
            points = folder / POINTS_FILE
            found = step is not None and points.is_file()
            self._metrics.truncate(step, points.read_bytes() if found else b"")
        return None if step is None else folder

    def checkpoint(self, step: int, wanted: Wanted) -> Path:
        """Folder with this rank's part of the checkpoint of ``step``."""
        folder = self._spool / f"restore-{self.rank}"
        meet(lambda: self._checkpoints.fetch(step, folder, wanted))
        return folder

    def close(self) -> None:
        """Writes what is pending and ends the threads."""
        self._stop.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._progress is not None:
            self._progress.close()

    def compact_metrics(self) -> list[MetricPoint]:
        """Writes metrics.jsonl and returns its points (rank 0, at the end)."""
        assert self._metrics is not None, "only rank 0 has the metrics"
        return self._metrics.compact()


class TensorBoard:
    """Metric points as TensorBoard events in a local folder, uploaded with the stage's result."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, point: MetricPoint) -> None:
        """Adds a scalar for every value of the point."""
        for name, value in point.values.items():
            self._writer.add_scalar(f"{point.kind}/{name}", value, point.step, walltime=time.time())

    def close(self) -> None:
        """Flushes the file."""
        self._writer.close()
