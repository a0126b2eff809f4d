"""Pretraining windows: token pieces of a corpus, spooled to disk, then packed in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zhongjing.data.order import permutation
from zhongjing.data.samples import Segment

_OPEN_WINDOWS = 64
_ORDER_KEY = 0x7A6A  # of the fixed order; part of the cache format


class WindowPacker:
    """Token sequences in a local file: a corpus need not fit into memory to be shuffled.

    Args:
        path: the file, made new.
        longest: tokens of a window; longer texts are cut, each cut token being predicted once.
    """

    def __init__(self, path: Path, longest: int) -> None:
        self._path = path
        self._longest = longest
        self._file = path.open("wb")
        self._lengths: list[int] = []

    def append(self, ids: npt.NDArray[np.int32]) -> None:
        """Adds the tokens of one text.

        Where it is cut, the next piece begins with the last token of the piece before: that token stands
        there only to predict from, so no token is left out and none is predicted twice.
        """
        start = 0
        while start + 1 < len(ids):
            piece = ids[start : start + self._longest]
            self._file.write(piece.astype("<i4").tobytes())
            self._lengths.append(len(piece))
            start += self._longest - 1

    def close(self) -> None:
        """Closes the file; more cannot be added."""
        self._file.close()

    def windows(self) -> Iterator[tuple[Segment, ...]]:
        """Windows of at most ``longest`` tokens; all tokens but the first of a piece are targets."""
        self.close()
        if not self._lengths:
            return
        tokens = np.memmap(self._path, dtype="<i4", mode="r")
        ends = np.cumsum(self._lengths)
        for window in pack(self._lengths, self._longest):
            spans = [slice(ends[place] - self._lengths[place], ends[place]) for place in window]
            yield tuple(Segment.of_document(np.array(tokens[span], np.int32)) for span in spans)


def pack(lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    """Packs pieces into windows, first fit over a few open windows, in a fixed shuffled order.

    Yields:
        Positions of the pieces of each window; every piece occurs once.
    """
    windows: list[list[int]] = []
    room: list[int] = []
    for piece in permutation(len(lengths), _ORDER_KEY).tolist():
        length = lengths[piece]
        fitting = next((place for place, left in enumerate(room) if left >= length), None)
        if fitting is None:
            if len(windows) == _OPEN_WINDOWS:
                fullest = min(range(len(room)), key=room.__getitem__)
                room.pop(fullest)
                yield windows.pop(fullest)
            windows.append([])
            room.append(capacity)
            fitting = len(windows) - 1
        windows[fitting].append(piece)
        room[fitting] -= length
    yield from windows
