"""What the training loop may ask of the world around it.

The loop knows nothing of Ray or S3: adapters in ``train/`` and ``jobs/`` implement this protocol, and tests
and benchmarks run the loop in one plain process with a context of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from zhongjing.storage.progress import Activity


class Stateful(Protocol):
    """Anything whose state a checkpoint must hold. States are JSON or tensors, never pickled objects."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        ...


class RunContext(Protocol):
    """The world, as the loop sees it."""

    rank: int
    world_size: int
    device: torch.device

    def stop_requested(self) -> bool:
        """Whether somebody asked for a stop with a checkpoint. Called on rank 0, once a step; cheap."""
        ...

    def report(self, activity: Activity, **fields: Any) -> None:
        """Rank 0: publishes progress; ``fields`` are those of ``zhongjing.storage.progress.Progress``."""
        ...

    def log(self, kind: str, step: int, values: dict[str, float], *, epoch: float = 0.0) -> None:
        """Rank 0: adds a metric point."""
        ...

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> None:
        """Rank 0: keeps a checkpoint.

        ``write`` fills an empty local folder before ``save`` returns; the upload goes on behind, and its
        manifest comes last. ``best`` protects it from rotation.

        Raises:
            StorageError: it was not taken, with the code ``DiskFull`` if the local disk has no room for it
                (``write`` was called or not); another call may succeed.
        """
        ...

    def wait_saved(self) -> None:
        """Rank 0: blocks until every checkpoint handed to ``save`` is complete in the store."""
        ...

    def latest(self) -> Path | None:
        """All ranks: a local folder with the latest complete checkpoint, or None at a fresh start."""
        ...

    def checkpoint(self, step: int) -> Path:
        """All ranks: a local folder with the checkpoint of ``step`` (the best one, at the end)."""
        ...
