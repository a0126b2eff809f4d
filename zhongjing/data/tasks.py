"""Shards tokenised by other processes, some at a time, and taken in their order."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from zhongjing.data.corpus import Shard
from zhongjing.data.parts import Encode, PartMaker, encode_one
from zhongjing.data.records import Record
from zhongjing.errors import ZhongjingError
from zhongjing.storage.heartbeat import beat

logger = logging.getLogger(__name__)

SHARDS_HERE = 8
"""Whole shards, about 50 MB of Chinese, that this process tokenises first: the start of other processes costs
some ten seconds of each of their cores, so smaller corpora take longer by tasks (docs/LOG.md)."""
PATIENCE_SECONDS = 60.0
"""How long nothing may come of any task before this process tokenises the next shard itself."""
_POLL_SECONDS = 0.5


class Tasks(Protocol):
    """Processes that tokenise shards; a task is what :meth:`submit` returns."""

    places: int
    """Tasks that may run at a time."""

    def submit(self, name: str, records: Sequence[Record]) -> Any:
        """Begins to make a part."""
        ...

    def finished(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are over; waits for one at most so long."""
        ...

    def succeeded(self, task: Any) -> bool:
        """Whether the part is made; False if the process was lost. Raises the task's own error."""
        ...

    def close(self) -> None:
        """Ends what still runs."""
        ...


def encode_by(connect: Callable[[PartMaker], Tasks | None]) -> Encode:
    """Tokenises by tasks what is more than :data:`SHARDS_HERE`.

    Args:
        connect: starts processes for a cache; None if there is no room for any.
    """

    def encode(
        maker: PartMaker, shards: Iterable[Shard], listen: Callable[[Shard, float], None]
    ) -> Iterator[Shard]:
        made = maker.made()
        remaining = iter(shards)
        tasks: Tasks | None = None
        whole = 0
        for shard in remaining:
            whole += shard.is_full and shard.name not in made
            if whole == SHARDS_HERE + 1 and (tasks := connect(maker)) is not None:
                remaining = itertools.chain([shard], remaining)
                break
            encode_one(maker, shard, made, listen)
            yield shard
        if tasks is not None:
            with closing(tasks):
                yield from _overlapped(tasks, maker, remaining, made, listen)

    return encode


encode_here = encode_by(lambda maker: None)
"""Tokenises in this process, one shard after another."""


def _overlapped(
    tasks: Tasks,
    maker: PartMaker,
    shards: Iterator[Shard],
    made: set[str],
    listen: Callable[[Shard, float], None],
) -> Iterator[Shard]:
    waiting: deque[tuple[Shard, Any]] = deque()  # bounded: their records are in memory
    running: list[Any] = []
    ended: StopIteration | ZhongjingError | None = None
    last, patience = time.monotonic(), PATIENCE_SECONDS
    while True:
        while ended is None and len(running) < tasks.places and len(waiting) < 2 * tasks.places:
            try:
                shard = next(shards)
            except (StopIteration, ZhongjingError) as error:
                ended = error  # told when its turn comes, after what earlier shards may bring
                break
            task = None
            if shard.name not in made and (records := shard.records):
                task = tasks.submit(shard.name, records)
                running.append(task)
            waiting.append((shard, task))
        if not waiting:
            break
        shard, task = waiting[0]
        finished = tasks.finished(running, _POLL_SECONDS if task in running else 0.0) if running else []
        if finished:
            running = [one for one in running if one not in finished]
            last, patience = time.monotonic(), PATIENCE_SECONDS
            beat()
        if task in running:
            listen(shard, 0.0)
            if time.monotonic() - last < patience:
                continue
            logger.warning("no task has ended for %.0f s; this process tokenises as well", PATIENCE_SECONDS)
            running.remove(task)  # should it run after all, it makes the same
            patience = 0.0
            encode_one(maker, shard, made, listen)
        elif task is not None and not tasks.succeeded(task):
            encode_one(maker, shard, made, listen)
        waiting.popleft()
        yield shard
    if isinstance(ended, ZhongjingError):
        raise ended
