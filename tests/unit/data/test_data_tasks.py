"""Shards tokenised by tasks: in their order, bounded, and never waited for in vain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.unit.data.build_support import qa
from tests.unit.data.support import MemoryStore
from zhongjing.codes import data as codes
from zhongjing.config.sources import Kind, Source
from zhongjing.config.stages import Stage
from zhongjing.data import corpus, tasks
from zhongjing.data.corpus import Shard
from zhongjing.data.parts import PartMaker, Purpose
from zhongjing.data.records import Dialogue, Position, Record, Turn
from zhongjing.data.tasks import encode_by
from zhongjing.errors import DataError
from zhongjing.storage.objects import ObjectStore

SOURCE = Source(name="qa", uri="s3://b/qa", kind=Kind.DIALOGUE)


def cut(count: int, taken: list[int], error: DataError | None = None) -> Iterator[Shard]:
    """Whole shards of a record each; an error behind them."""
    for number, pair in enumerate(qa(0, count)):
        shard = Shard(SOURCE, number, 0)
        turns = (Turn("user", pair["question"]), Turn("assistant", pair["answer"]))
        shard.add(Dialogue(turns, Position("qa", "s3://b/qa", number)), "train", str(number).encode())
        taken.append(number)
        yield shard
    if error is not None:
        raise error


class Pool:
    """Tasks that are over when the test says so, the newest first."""

    def __init__(self, maker: PartMaker, places: int) -> None:
        self.maker = maker
        self.places = places
        self.most = 0
        self.submitted: list[str] = []
        self.lost: set[str] = set()
        self.errors: dict[str, DataError] = {}
        self.stuck: set[str] = set()
        self.closed = False

    def submit(self, name: str, records: Sequence[Record]) -> str:
        self.submitted.append(name)
        if not {name} & (self.lost | self.stuck):
            self.maker.make(name, records)
        return name

    def finished(self, tasks: Sequence[str], seconds: float) -> list[str]:
        self.most = max(self.most, len(tasks))
        return [task for task in reversed(tasks) if task not in self.stuck][:1]

    def succeeded(self, task: str) -> bool:
        if task in self.errors:
            raise self.errors[task]
        return task not in self.lost

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def maker(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> PartMaker:
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 1)
    monkeypatch.setattr(tasks, "SHARDS_HERE", 1)
    store = cast("ObjectStore", MemoryStore())
    return PartMaker(store, "s3://b/cache", tokenizer_folder, Purpose(Stage.SFT, 512, None))


def names(count: int) -> list[str]:
    return [shard.name for shard in cut(count, [])]


def nothing(shard: Shard, part: float) -> None:
    pass


def test_shards_come_in_their_order_and_few_are_read_ahead(maker: PartMaker) -> None:
    pool = Pool(maker, 3)
    taken: list[int] = []
    for number, shard in enumerate(encode_by(lambda _: pool)(maker, cut(20, taken), nothing)):
        assert shard.number == number
        assert len(maker.load(shard)) == 1
        assert len(taken) <= number + 1 + 2 * pool.places
    assert number == 19
    assert pool.submitted == names(20)[1:], "tasks are asked for when a second whole shard comes"
    assert pool.most == 3
    assert pool.closed


def test_parts_that_are_there_are_not_made_again(maker: PartMaker) -> None:
    pool = Pool(maker, 2)
    for shard in cut(8, []):
        if shard.number in (0, 1, 4):
            maker.make(shard.name, shard.records)
    found = [shard.number for shard in encode_by(lambda _: pool)(maker, cut(8, []), nothing)]
    assert found == list(range(8))
    assert pool.submitted == [name for name in names(8)[3:] if name != names(8)[4]]


def test_a_lost_task_is_done_here_and_its_error_is_told_in_its_turn(maker: PartMaker) -> None:
    pool = Pool(maker, 2)
    pool.lost = {names(8)[2]}
    pool.errors = {names(8)[5]: DataError("of a record", code=codes.UNREADABLE_SOURCE)}
    later = DataError("of a source that is read later", code=codes.UNREADABLE_SOURCE)
    seen: list[int] = []
    with pytest.raises(DataError, match="of a record"):
        seen.extend(shard.number for shard in encode_by(lambda _: pool)(maker, cut(6, [], later), nothing))
    assert seen == [0, 1, 2, 3, 4]
    assert maker.made() >= set(names(5))
    assert pool.closed
    pool.errors = {}
    seen.clear()
    with pytest.raises(DataError, match="of a source"):
        seen.extend(shard.number for shard in encode_by(lambda _: pool)(maker, cut(6, [], later), nothing))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_nothing_waits_for_tasks_that_never_begin(maker: PartMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PATIENCE_SECONDS", 0.05)
    pool = Pool(maker, 2)
    pool.stuck = set(names(9)[3:])
    asked: list[int] = []

    def listen(shard: Shard, part: float) -> None:
        asked.append(shard.number)

    found = [shard.number for shard in encode_by(lambda _: pool)(maker, cut(9, []), listen)]
    assert found == list(range(9))
    assert asked.count(3) > 1, "it is asked for a stop while it waits"
    assert maker.made() == set(names(9))


def test_without_room_for_tasks_this_process_does_all(maker: PartMaker) -> None:
    found = [shard.number for shard in encode_by(lambda _: None)(maker, cut(5, []), nothing)]
    assert found == list(range(5))
    assert maker.made() == set(names(5))


def test_small_corpora_start_no_tasks(maker: PartMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PartMaker] = []
    ask = encode_by(asked.append)
    rest = Shard(SOURCE, 1, 0, ends_source=True)
    assert len(list(ask(maker, [*cut(1, []), rest], nothing))) == 2
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 1000)
    assert len(list(ask(maker, cut(5, []), nothing))) == 5
    assert asked == []
