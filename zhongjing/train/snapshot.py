"""Host memory that a rank copies its state into: mapped files, reused from one checkpoint to the next.

A mapped file is both the buffer and the spool file. The training writes it at the speed of memory, and the
process that uploads reads the same pages: no rank ever holds a second copy. The file stays when a checkpoint
is stored (its folder has only a link to it), so that its pages need not be made again.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

_STAGING_ELEMENTS = 16 << 20  # fp32: 64 MiB of pinned memory between a GPU and the mapped file


class SnapshotBuffer:
    """The mapped files of one rank.

    Args:
        folder: where they are kept to be used again, on the file system of the snapshots. None: each
            snapshot has files of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[str, torch.Tensor] = {}
        self._staging: torch.Tensor | None = None

    def fill(self, target: Path, parts: list[torch.Tensor]) -> None:
        """Makes ``target`` a file of the parts' elements, one after the other.

        Args:
            target: a file that does not exist; not written any more when this returns, until the next call
                for a file of the same name.
            parts: flat fp32 tensors, on any device.

        Raises:
            OSError: the disk is full (nothing is written beyond what it has room for), or no disk.
        """
        elements = sum(part.numel() for part in parts)
        if elements == 0:
            target.touch()
            return
        if self._folder is None:
            memory = _mapped(target, elements)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / target.name
            kept = self._kept.get(target.name)
            if kept is None or kept.numel() != elements or not path.exists():
                kept = self._kept[target.name] = _mapped(path, elements)
            memory = kept
            os.link(path, target)
        at = 0
        for part in parts:
            self._copy(memory[at : at + part.numel()], part.detach().flatten())
            at += part.numel()

    def _copy(self, memory: torch.Tensor, part: torch.Tensor) -> None:
        if part.device.type != "cuda":
            memory.copy_(part)
            return
        if self._staging is None:
            self._staging = torch.empty(_STAGING_ELEMENTS, dtype=torch.float32, pin_memory=True)
        for start in range(0, part.numel(), _STAGING_ELEMENTS):
            piece = part[start : start + _STAGING_ELEMENTS]
            self._staging[: piece.numel()].copy_(piece)
            memory[start : start + piece.numel()].copy_(self._staging[: piece.numel()])


def _mapped(path: Path, elements: int) -> torch.Tensor:
    """A new file as fp32 memory. Its blocks are there: a full disk is an error now and no signal later."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * elements)
    return torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
