"""Parts made by processes of this machine, where no Ray is there (:class:`zhongjing.data.tasks.Tasks`).

They end with this process, however it ends: left alone, a pool's processes wait for their next work without
an end.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait as wait_for
from typing import Any

from zhongjing.construct.access import reach_with
from zhongjing.construct.parts import PartMaker
from zhongjing.storage.credentials import Access
from zhongjing.storage.objects import open_store

logger = logging.getLogger(__name__)

_makers: list[PartMaker] = []  # in a process of a pool: the one in use


def connect(maker: PartMaker, places: int | None = None) -> ProcessTasks | None:
    """Processes for an output; None if this one is as good.

    Args:
        maker: of the output.
        places: how many; None: one for each core that this process may use.
    """
    places = len(os.sched_getaffinity(0)) if places is None else places
    return ProcessTasks(maker, places) if places > 1 else None


class ProcessTasks:
    """Processes of this machine.

    Args:
        maker: of the output.
        places: how many.
    """

    def __init__(self, maker: PartMaker, places: int) -> None:
        self.places = places
        self._maker = maker
        self._running: set[Future[None]] = set()
        self._pool = self._new_pool()

    def submit(self, name: str, records: Sequence[Any]) -> Future[None]:
        """Begins to make a part."""
        try:
            task = self._pool.submit(_make, name, list(records))
        except BrokenProcessPool:
            # One process died, and took the pool with it.
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
            task = self._pool.submit(_make, name, list(records))
        self._running.add(task)
        return task

    def finished(self, tasks: Sequence[Future[None]], seconds: float) -> list[Future[None]]:
        """Those that are over; waits for one at most so long."""
        done, _ = wait(tasks, timeout=seconds, return_when=FIRST_COMPLETED)
        self._running -= done
        return list(done)

    def succeeded(self, task: Future[None]) -> bool:
        """Whether the part is made; False if its process died. Raises the task's own error."""
        try:
            task.result()
        except BrokenProcessPool:
            logger.warning("a process was lost; this one does its work")
            return False
        return True

    def close(self) -> None:
        """Ends what still runs; parts that are stored are found again."""
        if self._running:
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned: threads of this process, those of the store's client among them, do not outlive a fork.
        return ProcessPoolExecutor(
            self.places,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._maker, self._maker.store.connection.access),
        )


def _begin(maker: PartMaker, access: Access) -> None:
    """Sets a process up. A store is pickled without its keys, which this machine's processes share."""
    # Ctrl-C reaches all processes of a terminal; the one that the user started ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    reach_with(access)
    _makers[:] = [replace(maker, store=open_store(maker.store.storage, access))]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _make(name: str, records: Sequence[Any]) -> None:
    _makers[0].make(name, records)
