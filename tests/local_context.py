"""A :class:`zhongjing.train.context.RunContext` on a plain folder: for tests, benchmarks and profiles.

::

    <folder>/step-00000010/      a checkpoint; a step-*.partial beside it was never finished
    <folder>/metrics.jsonl       metric points
    <folder>/progress.json       latest progress
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zhongjing.codes import storage as codes
from zhongjing.errors import NotFoundError, StorageError
from zhongjing.storage.checkpoint_records import Wanted
from zhongjing.storage.files import is_disk_full
from zhongjing.storage.progress import Activity
from zhongjing.train.barrier import first, meet


class LocalContext:
    """Keeps checkpoints, metrics and progress in a folder that all ranks see.

    Args:
        folder: where everything goes; made if it does not exist.
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        stop_at: a stop is requested once so many optimizer steps were asked about; None: never.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        stop_at: int | None = None,
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.world_size = world_size
        self.device = device or torch.device("cpu")
        self.buffers: Path | None = None  # the files of a checkpoint stay where they were written
        self.points: list[dict[str, Any]] = []
        self._stop_at = stop_at
        self._asked = 0
        folder.mkdir(parents=True, exist_ok=True)

    def stop_requested(self) -> bool:
        """Whether ``stop_at`` steps were asked about, or a file ``stop`` stands in the folder."""
        self._asked += 1
        return (self._stop_at is not None and self._asked >= self._stop_at) or (self.folder / "stop").exists()

    def report(self, activity: Activity, **fields: Any) -> None:
        """Writes progress.json."""
        content = {"activity": activity.value, **fields}
        (self.folder / "progress.json").write_text(json.dumps(content), encoding="utf-8")

    def log(self, kind: str, step: int, values: dict[str, float], *, epoch: float = 0.0) -> None:
        """Appends to metrics.jsonl, and to ``points``."""
        point = {"kind": kind, "step": step, "epoch": epoch, "values": values}
        self.points.append(point)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> None:
        """Writes a checkpoint; it has its name only when it is complete.

        Raises:
            StorageError: the disk is full.
        """
        target = self._path(step)
        partial = target.with_suffix(".partial")

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()

        def fits(act: Callable[[], None]) -> bool:
            try:
                act()
            except Exception as error:
                if is_disk_full(error):
                    return False
                raise
            return True

        def end(taken: bool) -> None:
            if not taken:
                shutil.rmtree(partial, ignore_errors=True)
                return
            if best:
                (partial / "best").touch()
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)

        taken = first(lambda: fits(begin)) and all(meet(lambda: fits(lambda: write(partial))))
        first(lambda: end(taken))
        if not taken:
            raise StorageError("the disk is full", code=codes.DISK_FULL, where=str(target))

    def wait_saved(self) -> None:
        """Nothing to wait for: ``save`` returns when the checkpoint is complete."""

    def latest(self, wanted: Wanted) -> Path | None:
        """The checkpoint of the latest step, or None."""
        found = sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")
        return found[-1] if found else None

    def checkpoint(self, step: int, wanted: Wanted) -> Path:
        """The checkpoint of ``step``.

        Raises:
            NotFoundError: there is none.
        """
        path = self._path(step)
        if not path.is_dir():
            raise NotFoundError(
                f"no checkpoint of step {step}", code=codes.OBJECT_NOT_FOUND, where=str(self.folder)
            )
        return path

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
