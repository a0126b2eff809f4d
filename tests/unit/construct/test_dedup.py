"""Near duplicates and leaks: what is found, what stays, that it is the same however it is run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.unit.construct import own_steps
from zhongjing.config.sources import Kind, Source
from zhongjing.construct import parts
from zhongjing.construct.dedup import decision as decisions
from zhongjing.construct.dedup.decision import Decision
from zhongjing.construct.dedup.run import deduplicate
from zhongjing.construct.dedup.settings import DedupSettings
from zhongjing.construct.dedup.signatures import sign
from zhongjing.construct.manifest import MANIFEST_NAME, find_manifest
from zhongjing.construct.runner import in_processes
from zhongjing.data.grams import folded, grams, words_of
from zhongjing.data.leaks import EQUAL, SHARED, LeakIndex, index_of
from zhongjing.data.records import Dialogue, Position, Record, TextRecord, Turn
from zhongjing.errors import ConfigError
from zhongjing.storage.objects import ObjectStore

WORDS = [chr(0x4E00 + place) for place in range(400)]


def sentence(seed: int, length: int = 200) -> str:
    return "".join(random.Random(seed).choices(WORDS, k=length))


def changed(text: str, seed: int, times: int) -> str:
    """The text with some characters replaced: each takes up to five runs of five away."""
    draw = random.Random(seed)
    letters = list(text)
    for place in draw.sample(range(len(letters)), times):
        letters[place] = "Ω"
    return "".join(letters)


def jaccard(one: str, other: str) -> float:
    first, second = (set(grams(folded(each), 5).tolist()) for each in (one, other))
    return len(first & second) / len(first | second)


def texts(*contents: str, source: str = "s", begin: int = 0) -> list[Record]:
    return [
        TextRecord(content, Position(source, "uri", begin + index)) for index, content in enumerate(contents)
    ]


def decided(tmp_path: Path, *sources: list[Record], threshold: float = 0.8) -> Decision:
    decision = Decision(DedupSettings(threshold), tmp_path)
    decision.decide([list(sign(records, {"uri": 0}, None)) for records in sources])
    return decision


def test_width_case_blanks_and_marks_do_not_count() -> None:
    assert folded(" Ａｂｃ，１２3。\n高血压_!") == "abc123高血压"
    assert grams("ab", 5).shape == (1,)
    assert grams("", 5).tolist() == [0]
    assert grams("abcdefg", 5)[1] == grams("xbcdefy", 5)[1]
    assert len(set(grams(sentence(1, 3000), 5).tolist())) == 2996


def test_the_earliest_of_equal_and_alike_records_stays(tmp_path: Path) -> None:
    base = sentence(1)
    alike, unlike = changed(base, 1, 2), changed(base, 2, 25)
    assert jaccard(base, alike) > 0.85
    assert jaccard(base, unlike) < 0.5
    first = texts(sentence(2), base, unlike, f"{base}！")
    second = texts(alike, sentence(3), sentence(2))
    found = decided(tmp_path, first, second)
    assert found.verdicts.tolist() == [0, 0, 0, decisions.EQUAL, decisions.ALIKE, 0, decisions.EQUAL]
    assert found.because[[3, 4, 6]].tolist() == [1, 1, 0]
    assert found.sources.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_the_threshold_decides(tmp_path: Path) -> None:
    base = sentence(1, 400)
    other = changed(base, 3, 10)
    assert 0.7 < jaccard(base, other) < 0.85
    pair = texts(base, other)
    assert decided(tmp_path, pair, threshold=0.6).verdicts.tolist() == [0, decisions.ALIKE]
    assert decided(tmp_path, pair, threshold=0.95).verdicts.tolist() == [0, 0]
    with pytest.raises(ConfigError, match="threshold"):
        DedupSettings(0.1)


def test_planted_near_duplicates_are_found_and_no_others(tmp_path: Path) -> None:
    bases = [sentence(seed, 300) for seed in range(300)]
    copies = [changed(base, seed, 3) for seed, base in enumerate(bases[:100])]  # similarity about 0.9
    found = decided(tmp_path, texts(*bases), texts(*copies))
    assert not found.verdicts[:300].any()
    hits = np.flatnonzero(found.verdicts[300:] == decisions.ALIKE)
    assert len(hits) >= 98
    assert (found.because[300 + hits] == hits).all()


def test_nothing_at_all_is_decided_too(tmp_path: Path) -> None:
    assert decided(tmp_path, []).verdicts.tolist() == []
    assert decided(tmp_path, texts("。", "！", "咳")).verdicts.tolist() == [0, decisions.EQUAL, 0]


def talk(*contents: str) -> Dialogue:
    turns = (Turn("assistant" if place % 2 else "user", each) for place, each in enumerate(contents))
    return Dialogue(tuple(turns), Position("t", "t", 0))


def book(text: str) -> TextRecord:
    return TextRecord(text, Position("b", "b", 0))


@pytest.fixture
def index() -> LeakIndex:
    long = talk(sentence(1, 60), sentence(2, 90), sentence(3, 30), sentence(4, 80))
    cmt = [long, talk("头痛怎么办？", "多休息。")]
    made = index_of([("cmt", cmt), ("safety", [talk(sentence(9, 50), "不行。")])], 0.5)
    return LeakIndex.of_bytes(made.as_bytes())


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (talk(sentence(1, 60), sentence(2, 90), sentence(3, 30), sentence(4, 80)), (0, EQUAL)),
        (talk(f"{sentence(1, 60)} ", "另一个回答"), (0, EQUAL)),
        (talk("头痛怎么办?", "多休息。"), (0, EQUAL)),
        (talk("头痛怎么办，要紧吗？已经三天了。", "多休息。"), None),
        (talk(f"医生您好，{sentence(1, 60)}谢谢", "另一个回答"), (0, SHARED)),
        (talk("另一个人问的。", sentence(2, 90) + sentence(4, 80)), (0, SHARED)),
        (book(sentence(7, 300) + sentence(9, 50) + sentence(8, 300)), (1, SHARED)),
        (book(sentence(7, 300) + sentence(9, 50)[:28] + sentence(8, 300)), None),
        (talk(sentence(21, 60), sentence(22, 90)), None),
        (talk("咳", "嗯"), None),
    ],
)  # fmt: skip
def test_leaks_are_equal_records_openings_and_half_of_a_passage(
    index: LeakIndex, record: Record, found: tuple[int, int] | None
) -> None:
    assert index.find(record, words_of(record)) == found
    assert index.records == (2, 1)


def line(question: str, answer: str) -> str:
    return json.dumps({"instruction": question, "output": answer}, ensure_ascii=False) + "\n"


@pytest.fixture
def sources(
    store: ObjectStore, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Source], list[Source]]:
    """Two sources of 30 and 12 records, six of the latter in the former, and a test set."""
    monkeypatch.setattr(parts, "PART_RECORDS", own_steps.PART_RECORDS)
    talks = [line(sentence(2 * number, 40), sentence(2 * number + 1)) for number in range(30)]
    copies = [line(sentence(2 * number, 40), changed(sentence(2 * number + 1), 1, 1)) for number in range(6)]
    others = [line(sentence(900 + number, 40), sentence(950 + number)) for number in range(6)]
    store.put(f"{bucket_uri}/a/1.jsonl", "".join(talks[:20]).encode())
    store.put(f"{bucket_uri}/a/2.jsonl", "".join([*talks[20:], talks[3]]).encode())
    store.put(f"{bucket_uri}/b/1.jsonl", "".join([*copies, *others]).encode())
    store.put(f"{bucket_uri}/test/1.jsonl", line(sentence(900, 40), "测试的回答").encode())
    a, b, test = (
        Source(name=name, uri=f"{bucket_uri}/{name}", kind=Kind.DIALOGUE) for name in ("a", "b", "test")
    )
    return [a, b], [test]


def written(store: ObjectStore, folder: str) -> dict[str, bytes]:
    names = {info.uri.removeprefix(f"{folder}/"): info.uri for info in store.list(folder)}
    told = (MANIFEST_NAME, ".npz", "report.json")  # with dates, of archives and of when it was written
    return {name: store.get(uri) for name, uri in names.items() if not name.endswith(told)}


def test_sources_are_made_without_duplicates_and_leaks_with_lineage(
    store: ObjectStore, bucket_uri: str, sources: tuple[list[Source], list[Source]]
) -> None:
    out = f"{bucket_uri}/unique"
    heard: list[float] = []
    done = deduplicate(
        store, sources[0], out, against=sources[1], listen=lambda told: heard.append(told.fraction)
    )
    assert [(each.read, each.written) for each in done.manifests] == [(31, 30), (12, 5)]
    assert {(each.source, each.why, each.because, each.records) for each in done.report.left_out} == {
        ("a", "equal", "a", 1),
        ("b", "alike", "a", 6),
        ("b", "leak (equal or opens alike)", "test", 1),
    }
    assert done.manifests[1].counts["dedup"] == {"alike: a": 6, "leak (equal or opens alike): test": 1}
    assert done.report.tests == {"test": 1}
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert find_manifest(store, f"{out}/b") == done.manifests[1]
    again = deduplicate(store, sources[0], out, against=sources[1])
    assert again.manifests == done.manifests
    with pytest.raises(ConfigError, match="another construction"):
        deduplicate(store, sources[0], out)


@pytest.mark.slow
def test_processes_and_an_interrupted_run_make_the_same(
    store: ObjectStore, bucket_uri: str, sources: tuple[list[Source], list[Source]]
) -> None:
    deduplicate(store, sources[0], f"{bucket_uri}/one", against=sources[1])
    expected = written(store, f"{bucket_uri}/one")

    class Stop(Exception):  # noqa: N818 - no error
        pass

    calls = 0

    def interrupt(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise Stop

    rounds = 0
    while True:
        calls = 0
        try:
            hears = interrupt if rounds < 4 else lambda _: None
            deduplicate(store, sources[0], f"{bucket_uri}/two", against=sources[1], listen=hears)
            break
        except Stop:
            rounds += 1
    assert rounds
    assert written(store, f"{bucket_uri}/two") == expected
    deduplicate(store, sources[0], f"{bucket_uri}/three", against=sources[1], work=in_processes(2))
    assert written(store, f"{bucket_uri}/three") == expected


def test_one_source_lies_in_the_folder_itself(
    store: ObjectStore, bucket_uri: str, sources: tuple[list[Source], list[Source]]
) -> None:
    out = f"{bucket_uri}/alone"
    done = deduplicate(store, sources[0][:1], out)
    assert done.folders == (out,)
    assert done.manifests[0].written == 30
    chained = deduplicate(store, [Source(name="next", uri=out, kind=Kind.DIALOGUE)], f"{bucket_uri}/next")
    assert chained.manifests[0].has_passed("dedup")
    assert chained.manifests[0].parents[0].uri == out
    assert chained.manifests[0].complete
