"""Looks for reasons to stop an attempt, in a thread: asking costs the loop nothing.

There is the stop object of the attempt; and a node that is being drained. What Ray 2.60 does when a pod is to
end: ``ray start --block`` has the node marked as draining and waits, for
``RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S`` at most, until nothing runs on it. No worker and no driver gets a
signal before it is killed. Ray Train's own ``get_preemption_info`` is a barrier of all ranks at every call;
here rank 0 asks the GCS, and the step's all-reduce tells the others.

Where the attempt is to stop because it hangs, the thread leaves the stacks of its process in the store, from
inside: in a pod no other process may look in. The main thread may wait in Python or in a library that has
given the interpreter free (a collective, a read); a process that was stopped (SIGSTOP) says nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection

from zhongjing.codes.training import HUNG
from zhongjing.errors import NotFoundError, ZhongjingError
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import time_stamp

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Rank 0, whose answer the others wait for."""
OTHERS_POLL_SECONDS = 8.0
"""All others, who only look whether they hang; shorter than the time from a hung stop to its end."""
LATE_SECONDS = 180.0
"""A stop with a checkpoint that has not come about by then is looked into as well."""


class StopWatch:
    """Watches one attempt.

    Args:
        store: where the stop object will be.
        layout: URIs of this run of the stage.
        attempt: its number.
        name: of this process in the attempt: ``rank0``, ``driver``.
        interval: seconds between two looks.
        nodes: ids of the Ray nodes whose draining is a reason to stop; none: they are not asked for.
    """

    def __init__(
        self,
        store: ObjectStore,
        layout: StageLayout,
        attempt: int,
        *,
        name: str,
        interval: float,
        nodes: Collection[str] = (),
    ) -> None:
        self._store = store
        self._uri = layout.stop(attempt)
        self._stacks = f"{layout.logs}/stacks-a{attempt}-{name}.txt"
        self._name = name
        self._interval = interval
        self.nodes = frozenset(nodes)
        self._requested = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-watch", daemon=True)
        self._thread.start()

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for, or a node is being drained."""
        return self._requested.is_set()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            if self.nodes and not self.requested:
                leaving = draining(self.nodes)
                if leaving:
                    logger.warning("stops with a checkpoint: %s", leaving)
                    self._requested.set()
            try:
                mark = self._store.get_json(self._uri)
            except NotFoundError:
                continue
            except ZhongjingError:
                # An outage is no stop request; the next look will tell.
                continue
            self._requested.set()
            hangs = isinstance(mark, dict) and mark.get("reason") == HUNG.name
            if hangs or not self._ended.wait(LATE_SECONDS):
                self._leave_stacks()
            return

    def _leave_stacks(self) -> None:
        try:
            self._store.put(self._stacks, stacks(self._name).encode(errors="replace"))
            logger.warning("the stacks of %s are in %s", self._name, self._stacks)
        except ZhongjingError as error:
            logger.warning("the stacks of %s could not be stored: %s", self._name, error)


def draining(nodes: Collection[str]) -> str | None:
    """Says that one of ``nodes`` is being drained, and for how long it stays; None if none is."""
    from ray._private.state import state

    try:
        found: dict[str, int] = state.get_draining_nodes()
    except Exception as error:  # the GCS is away, or Ray not connected
        logger.debug("draining nodes are not known: %s", error)
        return None
    for node in sorted(found.keys() & set(nodes)):
        seconds = max(found[node] / 1000 - time.time(), 0.0)
        return f"node {node[:12]} is being drained" + (f", {seconds:.0f} s are left" if found[node] else "")
    return None


def stacks(name: str) -> str:
    """Where every thread of this process is now, the main thread first."""
    frames = sys._current_frames()
    threads = sorted(
        threading.enumerate(), key=lambda thread: (thread is not threading.main_thread(), thread.name)
    )
    names = {thread.ident: thread.name for thread in threads if thread.ident is not None}
    names |= {ident: "not started by Python" for ident in frames if ident not in names}
    parts = [
        f"{name}: process {os.getpid()} on {socket.gethostname()}, {time_stamp()}, "
        f"{time.process_time():.0f} s of CPU so far"
    ]
    for ident, label in names.items():
        frame = frames.get(ident)
        if frame is not None and ident != threading.get_ident():
            parts.append(f"thread {label}:\n{''.join(traceback.format_stack(frame))}")
    return "\n\n".join(parts) + "\n"
