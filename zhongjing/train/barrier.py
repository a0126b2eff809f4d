"""Where ranks wait for one another's transfers: beside the collectives, never in one.

A collective has a timeout, and a transfer may take longer than any: a rank that waits for rank 0's download
or another node's upload asks the process group's own key-value store (c10d's, which rank 0 serves) instead.
There the waiting ranks also see the others' heartbeats (:mod:`zhongjing.storage.heartbeat`). So it is bounded
how long no rank does anything, not how long the work takes; and what others do counts as a heartbeat of who
waits for them, for rank 0 publishes the progress of all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from zhongjing.storage.heartbeat import HEARTBEAT, beat
from zhongjing.train.distributed import COLLECTIVE_SECONDS

T = TypeVar("T")

_TELL_SECONDS = 1.0
_SHORTEST_LOOK, _LONGEST_LOOK = 0.002, 0.5  # seconds


class BarrierError(Exception):
    """Another rank did not come. Its own error, where it has one, is the one that counts."""


class _Meetings:
    """Numbers the meetings of a process group; all ranks come to them in the same order."""

    def __init__(self) -> None:
        self._group: object = None
        self._next = 0

    def number(self) -> int:
        group = distributed.group.WORLD
        if group is not self._group:
            self._group, self._next = group, 0
        self._next += 1
        return self._next


_meetings = _Meetings()


def meet(work: Callable[[], T], *, seconds: float = COLLECTIVE_SECONDS) -> list[T]:
    """Does this rank's work, and waits until every rank has done its own. All ranks call it.

    Args:
        work: may take as long as it beats; what it returns must be JSON.
        seconds: how long a rank waits while no rank does anything.

    Returns:
        What each rank's work returned, by rank.

    Raises:
        BarrierError: another rank's work failed, or no rank does anything any more.
        Exception: what this rank's own work ended with.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [work()]
    rank, size = distributed.get_rank(), distributed.get_world_size()
    store = distributed.distributed_c10d._get_default_store()
    place = f"zhongjing/meeting/{_meetings.number()}"
    with _Telling(store, rank):
        try:
            result = work()
        except BaseException as error:
            store.set(f"{place}/failed", f"rank {rank}: {type(error).__name__}: {error}")
            raise
    store.set(f"{place}/{rank}", json.dumps(result))
    keys = [f"{place}/{other}" for other in range(size)]
    _wait(store, place, lambda: bool(store.check(keys)), size, seconds)
    results: list[T] = [json.loads(store.get(key)) for key in keys]
    left = f"{place}/left"
    if store.add(left, 1) and rank == 0:
        # The store is in this process, which may end now: the last to leave puts out the light.
        _wait(store, place, lambda: store.add(left, 0) == size, size, seconds)
        for key in (*keys, left):
            store.delete_key(key)
    return results


def first(work: Callable[[], T], *, seconds: float = COLLECTIVE_SECONDS) -> T:
    """Rank 0 does the work; every rank gets what it returned. As :func:`meet` otherwise."""
    alone = not distributed.is_initialized() or distributed.get_rank() == 0
    results: list[Any] = meet(lambda: work() if alone else None, seconds=seconds)
    value: T = results[0]
    return value


def _wait(store: Any, place: str, over: Callable[[], bool], size: int, seconds: float) -> None:
    pause, told = _SHORTEST_LOOK, -1
    moved = time.monotonic()
    while not over():
        if store.check([f"{place}/failed"]):
            raise BarrierError(f"another rank failed: {store.get(f'{place}/failed').decode()}")
        count = sum(store.add(_beats(rank), 0) for rank in range(size))
        if count != told:
            if told >= 0:
                beat()
            told, moved = count, time.monotonic()
        if time.monotonic() - moved > seconds:
            raise BarrierError(f"no rank has done anything for {seconds:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK)


def _beats(rank: int) -> str:
    return f"zhongjing/beats/{rank}"


class _Telling:
    """While a rank works, the others can see that it does."""

    def __init__(self, store: Any, rank: int) -> None:
        self._store, self._key = store, _beats(rank)
        self._ended = threading.Event()
        self._told = HEARTBEAT.count
        self._thread = threading.Thread(target=self._run, name="meeting", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_TELL_SECONDS):
            count = HEARTBEAT.count
            if count != self._told:
                self._store.add(self._key, count - self._told)
                self._told = count
