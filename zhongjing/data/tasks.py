"""Shards tokenised by other processes, some at a time, and taken in their order.

So are other pieces of work: those of data construction.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol, TypeVar

from zhongjing.errors import ZhongjingError
from zhongjing.storage.heartbeat import beat

logger = logging.getLogger(__name__)

SHARDS_HERE = 8
"""Whole shards, about 50 MB of Chinese, that this process tokenises first: the start of other processes costs
some ten seconds of each of their cores, so smaller corpora take longer by tasks (docs/LOG.md)."""
PATIENCE_SECONDS = 60.0
"""How long nothing may come of any task before this process tokenises the next shard itself."""
_POLL_SECONDS = 0.5


class Piece(Protocol):
    """A run of records that is worked on as a whole: a shard, say."""

    @property
    def name(self) -> str:
        """Of what is made of it."""
        ...

    @property
    def records(self) -> Sequence[Any]:
        """What is in it; of an empty piece nothing is made."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether it is as large as pieces get."""
        ...


class Maker(Protocol):
    """Makes something of pieces and stores it. It may be pickled into any process."""

    @property
    def uri(self) -> str:
        """Folder of what it makes; tells makers apart."""
        ...

    def made(self) -> set[str]:
        """Names of what is there already."""
        ...

    def make(self, name: str, records: Sequence[Any], listen: Callable[[float], None] = ...) -> None:
        """Makes what one piece becomes."""
        ...


PieceT = TypeVar("PieceT", bound=Piece)
MakerT = TypeVar("MakerT", bound=Maker)


def encode_one(maker: Maker, shard: PieceT, made: set[str], listen: Callable[[PieceT, float], None]) -> None:
    """Works on a piece in this process, unless what it becomes is among those ``made``."""
    records = shard.records
    if records and shard.name not in made:
        maker.make(shard.name, records, lambda part: listen(shard, part))


class Tasks(Protocol):
    """Processes that work on pieces; a task is what :meth:`submit` returns."""

    places: int
    """Tasks that may run at a time."""

    def submit(self, name: str, records: Sequence[Any]) -> Any:
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


def encode_by(
    connect: Callable[[MakerT], Tasks | None], *, here: int | None = None, patience: float | None = None
) -> Callable[[MakerT, Iterable[PieceT], Callable[[PieceT, float], None]], Iterator[PieceT]]:
    """Tokenises by tasks what is more than some whole shards.

    Args:
        connect: starts processes for a cache; None if there is no room for any.
        here: so many; None: :data:`SHARDS_HERE`.
        patience: in place of :data:`PATIENCE_SECONDS`.
    """

    def encode(
        maker: MakerT, shards: Iterable[PieceT], listen: Callable[[PieceT, float], None]
    ) -> Iterator[PieceT]:
        made = maker.made()
        first = SHARDS_HERE if here is None else here
        remaining = iter(shards)
        tasks: Tasks | None = None
        whole = 0
        for shard in remaining:
            whole += shard.is_full and shard.name not in made
            if whole == first + 1 and (tasks := connect(maker)) is not None:
                remaining = itertools.chain([shard], remaining)
                break
            encode_one(maker, shard, made, listen)
            yield shard
        if tasks is not None:
            with closing(tasks):
                yield from _overlapped(tasks, maker, remaining, made, listen, patience)

    return encode


encode_here = encode_by(lambda maker: None)
"""Tokenises in this process, one shard after another."""


def _overlapped(  # noqa: PLR0917
    tasks: Tasks,
    maker: MakerT,
    shards: Iterator[PieceT],
    made: set[str],
    listen: Callable[[PieceT, float], None],
    bears: float | None,
) -> Iterator[PieceT]:
    waiting: deque[tuple[PieceT, Any]] = deque()  # bounded: their records are in memory
    running: list[Any] = []
    ended: StopIteration | ZhongjingError | None = None
    longest = PATIENCE_SECONDS if bears is None else bears
    last, patience = time.monotonic(), longest
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
            last, patience = time.monotonic(), longest
            beat()
        if task in running:
            listen(shard, 0.0)
            if time.monotonic() - last < patience:
                continue
            logger.warning("no task has ended for %.0f s; this process works as well", longest)
            running.remove(task)  # should it run after all, it makes the same
            patience = 0.0
            encode_one(maker, shard, made, listen)
        elif task is not None and not tasks.succeeded(task):
            encode_one(maker, shard, made, listen)
        waiting.popleft()
        yield shard
    if isinstance(ended, ZhongjingError):
        raise ended
