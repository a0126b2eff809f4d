"""What the training loop may ask of the world around it.

The loop knows nothing of Ray or S3: adapters in ``train/`` and ``jobs/`` implement this protocol, and tests
and benchmarks run the loop in one plain process with a context of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from zhongjing.storage.checkpoint_records import Wanted
from zhongjing.storage.progress import Activity


class RunContext(Protocol):
    """The world, as the loop sees it."""

    rank: int
    world_size: int
    device: torch.device
    buffers: Path | None
    """A folder for memory that is used again from one checkpoint to the next; None: there is no such."""

    def stop_requested(self) -> bool:
        """Whether a stop with a checkpoint was asked for. Called on rank 0, once a step; cheap."""
        ...

    def report(self, activity: Activity, **fields: Any) -> None:
        """Rank 0: publishes progress; ``fields`` are those of ``zhongjing.storage.progress.Progress``."""
        ...

    def log(self, kind: str, step: int, values: dict[str, float], *, epoch: float = 0.0) -> None:
        """Rank 0: adds a metric point."""
        ...

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> None:
        """All ranks: keeps a checkpoint.

        ``write`` puts this rank's part into a local folder before ``save`` returns; the upload goes on
        behind, and the manifest comes when every rank's part is there. ``best`` protects it from rotation.

        Raises:
            StorageError: it was not taken, the same on every rank; with the code ``DiskFull`` if some rank's
                local disk has no room for its part. Another call may succeed.
        """
        ...

    def wait_saved(self) -> None:
        """All ranks: blocks until every checkpoint handed to ``save`` is complete in the store."""
        ...

    def latest(self, wanted: Wanted) -> Path | None:
        """All ranks: a local folder with what this rank wants of the latest good checkpoint.

        None at a fresh start. What was not wanted may be absent, or of its size and empty.
        """
        ...

    def checkpoint(self, step: int, wanted: Wanted) -> Path:
        """All ranks: the same of a given checkpoint (weights of the best one, at the end)."""
        ...
