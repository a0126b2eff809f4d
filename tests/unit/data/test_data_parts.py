"""Builds by shards: the bytes of a build record by record, and what an interrupted one finds again."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.data import build_support
from tests.unit.data.build_support import QUARANTINE, Bench, qa
from tests.unit.data.support import QWEN3_LIKE_TEMPLATE, MemoryStore, json_lines, make_tokenizer
from zhongjing.config.stages import Stage
from zhongjing.data import build, corpus
from zhongjing.data.chat import Encoded, Unfit
from zhongjing.data.corpus import Shard
from zhongjing.data.encoding import RecordEncoder, adapt
from zhongjing.data.outputs import CacheOutputs
from zhongjing.data.parts import PartMaker
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Record, Rejected
from zhongjing.data.split import assign, content_of, unit_of
from zhongjing.data.tasks import encode_here
from zhongjing.data.tokenizer_folder import load_tokenizer
from zhongjing.data.tokens import TokenCacheRef, read_manifest
from zhongjing.storage.objects import ObjectStore

bench = build_support.bench

Objects = dict[str, bytes]


class StopError(Exception):
    """What a report raises when a stop was asked for."""


@pytest.fixture
def mixed(bench: Bench) -> Bench:
    """Sources of most formats, with duplicates, leaks, bad, long and empty records."""
    odd: list[Any] = [{"question": "没有回答", "answer": ""}, {"question": "长", "answer": "答" * 600}]
    lines = json_lines(qa(0, 60)) + b'{"question": broken\n\n' + json_lines([*odd, *qa(40, 60)])
    bench.source("lines", "dialogue", lines, maxQuarantineFraction=0.2)
    array = json.dumps(qa(90, 80) + qa(0, 5, "改"), ensure_ascii=False).encode()
    bench.source("array", "dialogue", gzip.compress(array, mtime=0))
    rows = "".join(f"{q['question']},{q['answer']}\n" for q in qa(150, 70))
    bench.source("table", "dialogue", ("ask,answer\n" + rows).encode("gb18030"), testFraction=0.3)
    bench.source("exam", "dialogue", qa(20, 15, "考"), split="test")
    book = "\n".join(
        f"第{i}段：传染病是由病原微生物感染人体后产生的疾病，{i * 7919 % 1000}例。" for i in range(300)
    )
    bench.source("book", "text", bz2.compress(book.encode()))
    ranked = [{"prompt": q["question"], "answers": ["甲", "乙", "丙"], "ranks": [1, 0, 1]} for q in qa(0, 90)]
    bench.source("ranked", "ranking", [*ranked, {"prompt": "问", "chosen": "答" * 600, "rejected": "否"}])
    return bench


STAGES: list[tuple[Stage, tuple[str, ...], dict[str, Any]]] = [
    (Stage.SFT, ("lines", "array", "table"), {}),
    (
        Stage.SFT,
        ("table", "lines"),
        {"mixture": {"singleTurn": 2, "multiTurn": 1}, "systemPrompt": "你是医生"},
    ),
    (Stage.PRETRAIN, ("book", "array"), {"maxLength": 64, "sectionCharacters": 300}),
    (Stage.RM, ("ranked",), {}),
    (Stage.PPO, ("ranked", "lines"), {"maxPromptLength": 128}),
]


def cache_of(bench: Bench, ref: TokenCacheRef) -> Objects:
    """All objects of a cache by their names in it, and the quarantine."""
    found = {
        uri[len(ref.uri) :]: data for uri, data in bench.memory.objects.items() if uri.startswith(ref.uri)
    }
    return found | {"quarantine": bench.memory.objects.get(QUARANTINE, b"")}


def record_by_record(
    bench: Bench, stage: Stage, names: Sequence[str], settings: dict[str, Any], ref: TokenCacheRef
) -> Objects:
    """The cache as it is defined: every record read, split, compared, tokenised and written by itself."""
    document = bench.document(stage, *names, **settings)
    own = document.spec.stages.get(stage)
    assert own is not None
    manifest = read_manifest(cast("ObjectStore", bench.memory), ref.uri)
    assert manifest is not None
    listings = {frozen.name: frozen for frozen in bench.frozen}
    encoder = RecordEncoder(load_tokenizer(bench.tokenizer))
    longest = manifest.fields["maxLength"]
    encoder.configure(stage, longest, document.spec.stages.system_prompt(stage))

    def read(name: str) -> Iterator[Record | Rejected]:
        for item in listings[name].objects:
            yield from read_object(
                item.uri,
                document.spec.source(name),
                cast("ObjectStore", bench.memory),
                section_characters=manifest.fields["sectionCharacters"],
                forbidden=encoder.special,
                stats=ReadStats(),
            )

    def split(record: Record, name: str, held: float) -> Any:
        source = document.spec.source(name)
        return assign(
            unit_of(record),
            test_fraction=source.test_fraction,
            validation_fraction=held,
            test_only=source.split == "test",
        )

    tests = {
        unit_of(record)
        for name in ("table", "exam")
        for record in read(name)
        if not isinstance(record, Rejected) and split(record, name, 0.0) == "test"
    }
    store = MemoryStore()
    with tempfile.TemporaryDirectory() as folder:
        outputs = CacheOutputs(
            cast("ObjectStore", store),
            "",
            dtype=encoder.dtype,
            window=longest,
            scratch=Path(folder),
            quarantine_uri="quarantine",
        )
        seen: set[bytes] = set()
        for name in (counts.name for counts in ref.counts):
            for record in read(name):
                if isinstance(record, Rejected):
                    outputs.quarantine(record)
                    continue
                wanted = adapt(record, stage)
                side = split(wanted, name, own.validation_fraction)
                if (side != "test" and unit_of(wanted) in tests) or content_of(wanted) in seen:
                    continue
                seen.add(content_of(wanted))
                (result,) = encoder.encode([wanted])
                if result is Unfit.TOO_LONG:
                    continue
                assert isinstance(result, Encoded)
                group = "singleTurn" if manifest.fields["groups"] == "category" else name
                outputs.add(side, manifest.group_names.index(group), result)
        outputs.store_quarantine()
        outputs.finish(lambda: None)
        outputs.close()
    return store.objects


def scattered(
    maker: PartMaker, shards: Iterable[Shard], listen: Callable[[Shard, float], None]
) -> Iterator[Shard]:
    """Tokenises in threads, the last shard first, each by a maker that travelled."""
    waiting = list(shards)
    with ThreadPoolExecutor(3) as pool:
        travelled = [copy.copy(maker) for _ in range(3)]  # by what pickle would take along, but one store
        made = [
            pool.submit(travelled[shard.number % 3].make, shard.name, shard.records)
            for shard in reversed(waiting)
            if shard.records
        ]
    for future in made:
        future.result()
    yield from waiting


def losing(
    maker: PartMaker, shards: Iterable[Shard], listen: Callable[[Shard, float], None]
) -> Iterator[Shard]:
    """Another build of the same cache ends and removes the parts."""
    for shard in encode_here(maker, shards, listen):
        maker.store.delete_folder(f"{maker.uri}/parts")
        yield shard


@pytest.mark.parametrize(("stage", "names", "settings"), STAGES, ids=lambda value: str(value)[:24])
def test_bytes_do_not_depend_on_shards_or_on_who_tokenises(
    mixed: Bench,
    stage: Stage,
    names: tuple[str, ...],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref = mixed.build(stage, *names, **settings)
    whole = cache_of(mixed, ref)
    assert whole.keys() >= {"/manifest.json", "/train/index.npz", "/train/shard-00000.bin", "quarantine"}
    assert not any("parts" in name for name in whole)
    plain = record_by_record(mixed, stage, names, settings, ref)
    assert {name: whole[name] for name in plain} == plain
    for characters, encode in ((1, encode_here), (700, encode_here), (2000, scattered), (2000, losing)):
        monkeypatch.setattr(corpus, "SHARD_CHARACTERS", characters)
        for uri in cache_of(mixed, ref):
            mixed.memory.objects.pop(ref.uri + uri, None)
        assert mixed.build(stage, *names, encode=encode, **settings) == ref
        assert cache_of(mixed, ref) == whole


class Counting:
    """Counts the records that are tokenised; stops where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records = 0
        self.stop_at: int | None = None
        original = RecordEncoder.encode

        def encode(encoder: RecordEncoder, records: Sequence[Record]) -> list[Encoded | Unfit]:
            if self.stop_at is not None and self.records >= self.stop_at:
                raise StopError
            self.records += len(records)
            return original(encoder, records)

        monkeypatch.setattr(RecordEncoder, "encode", encode)


def parts(bench: Bench) -> list[str]:
    return [uri for uri in sorted(bench.memory.objects) if "/parts/" in uri]


def test_an_interrupted_build_goes_on_with_the_parts_that_are_there(
    mixed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    names = ("lines", "array", "table")
    ref = mixed.build(Stage.SFT, *names)
    whole, all_records = cache_of(mixed, ref), counting.records
    for uri in whole:
        mixed.memory.objects.pop(ref.uri + uri, None)
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 700)
    counting.records, counting.stop_at = 0, 120
    with pytest.raises(StopError):
        mixed.build(Stage.SFT, *names)
    done, counting.records, counting.stop_at = counting.records, 0, None
    left = parts(mixed)
    assert len(left) > 3
    damaged = left[0]
    mixed.memory.objects[damaged] = mixed.memory.objects[damaged][:-30] + b"x" * 30
    assert mixed.build(Stage.SFT, *names) == ref
    assert cache_of(mixed, ref) == whole
    assert parts(mixed) == []
    again = counting.records - (all_records - done)
    assert 0 < again <= 60, "only the shard that was under way and the damaged one"


def test_parts_of_other_shards_are_not_taken(mixed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    ref = mixed.build(Stage.SFT, "lines")
    whole, all_records = cache_of(mixed, ref), counting.records
    del mixed.memory.objects[f"{ref.uri}/manifest.json"]
    counting.records, counting.stop_at = 0, 60
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 900)
    with pytest.raises(StopError):
        mixed.build(Stage.SFT, "lines")
    assert parts(mixed)
    counting.records, counting.stop_at = 0, None
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 1000)
    assert mixed.build(Stage.SFT, "lines") == ref
    assert counting.records == all_records, "none of the parts is of the records that it has by now"
    assert cache_of(mixed, ref) == whole


def test_what_an_ended_build_left_is_removed_by_the_next(mixed: Bench) -> None:
    ref = mixed.build(Stage.SFT, "lines")
    mixed.memory.put(f"{ref.uri}/parts/000000-0.npz", b"x")
    mixed.build(Stage.SFT, "lines")
    assert parts(mixed) == []


def test_a_stop_is_heard_within_a_shard_and_while_sources_are_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TELL_SECONDS", 0.0)
    bench.source("qa", "dialogue", qa(0, 1200))
    bench.source("exam", "dialogue", qa(2000, 300), split="test")
    bench.build(Stage.SFT, "qa")
    told = dict.fromkeys(message for message, _ in bench.reports)
    reading, tokenising, writing = "reading the test data of exam", "tokenising qa", "writing the token cache"
    assert list(told)[1:4] == [reading, tokenising, "tokenising exam"]
    assert writing in told
    fractions = [part for message, part in bench.reports if message == tokenising]
    assert fractions == sorted(fractions)
    assert len({part for part in fractions if 0 < part < 0.8}) >= 4, "one shard, told batch by batch"
    assert len({part for message, part in bench.reports if message == reading}) >= 2
    for wanted in (reading, tokenising, writing):
        other = Bench(MemoryStore(), bench.tokenizer)
        other.source("qa", "dialogue", qa(0, 1200))
        other.source("exam", "dialogue", qa(2000, 300), split="test")

        def report(message: str, part: float, wanted: str = wanted) -> None:
            if message == wanted:
                raise StopError

        monkeypatch.setattr(other, "report", report)
        with pytest.raises(StopError):
            other.build(Stage.SFT, "qa")


def test_rewritten_answers_stand_in_the_quarantine_where_they_were_read(
    memory: MemoryStore, tmp_path: Path
) -> None:
    template = QWEN3_LIKE_TEMPLATE.replace("thought + ", "'' + ")
    make_tokenizer(template, chatml=True).save_pretrained(str(tmp_path))
    bench = Bench(memory, tmp_path)
    cut = {"question": "头痛怎么办？", "answer": "<think>想一想</think>多休息。"}
    bad = {"question": "没有回答", "answer": ""}
    bench.source("qa", "dialogue", [*qa(0, 3), cut, *qa(3, 3), bad], maxQuarantineFraction=0.5)
    ref = bench.build(Stage.SFT, "qa")
    lines = [json.loads(line) for line in memory.get(QUARANTINE).decode().splitlines()]
    assert [line["line"] for line in lines] == [4, 8]
    assert (ref.counts[0].quarantined, ref.counts[0].kept) == (2, 6)
