"""Prompts to be answered: every turn of a dialogue, chosen by what they say and by the seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zhongjing.config.sources import Source
from zhongjing.errors import DataError
from zhongjing.feedback.prompts import Asked, Drawing, draw, units_of_tests
from zhongjing.feedback.tasks import Origin
from zhongjing.storage.manifest import FrozenObject, FrozenSource


def written(path: Path, dialogues: list[list[str]], **fields: Any) -> tuple[Source, FrozenSource]:
    roles = ("user", "assistant")
    lines = [
        json.dumps(
            {
                "messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)],
                "department": "内科",
            },
            ensure_ascii=False,
        )
        for turns in dialogues
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = Source.model_validate({"name": path.stem, "uri": str(path), "kind": "dialogue", **fields})
    item = FrozenObject(uri=str(path), size=path.stat().st_size, digest="d")
    return source, FrozenSource(name=path.stem, objects=[item], digest="d")


def drawn(
    places: list[tuple[Source, FrozenSource]],
    count: int,
    seed: int = 0,
    tests: frozenset[bytes] = frozenset(),
    **fields: Any,
) -> list[Asked]:
    drawings = [Drawing(source, frozen, "in_distribution", **fields) for source, frozen in places]
    wanted: dict[Origin, int] = {"in_distribution": count}
    return draw(None, drawings, wanted, seed, tests, "quarantine.jsonl", lambda name, part: None)[0]


def many(start: int, count: int) -> list[list[str]]:
    return [[f"第{start + index}位患者：我头痛得厉害，已经好几天了", "请多休息。"] for index in range(count)]


def test_a_dialogue_is_cut_into_its_turns(tmp_path: Path) -> None:
    turns = ["医生您好，我最近总是咳嗽怎么办", "多久了？", "两天。", "请多喝水。"]
    found = drawn([written(tmp_path / "a.jsonl", [turns])], 10)
    said = sorted([[turn.content for turn in asked.turns] for asked in found], key=len)
    assert said == [turns[:1], turns[:3]]
    assert {asked.department for asked in found} == {"内科"}
    assert [Asked.from_json(asked.as_json()) for asked in found] == found


def test_the_choice_depends_on_the_seed_and_not_on_files_or_their_order(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.jsonl", many(0, 50)), written(tmp_path / "b.jsonl", many(50, 50))
    both = written(tmp_path / "c.jsonl", [*many(50, 50), *many(0, 50), *many(0, 50)])
    chosen = drawn([one, two], 20)
    assert len(chosen) == len({asked.key for asked in chosen}) == 20
    assert chosen == drawn([both], 20)
    assert chosen == drawn([one, two], 30)[:20]
    assert {asked.key for asked in chosen} != {asked.key for asked in drawn([one, two], 20, seed=1)}
    assert len(drawn([both], 1000)) == 100


def test_test_data_and_what_is_held_out_are_no_prompts(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", many(0, 100))
    test = written(tmp_path / "t.jsonl", many(90, 20), split="test")
    units = frozenset(units_of_tests(None, [test], lambda name, part: None))
    assert len(units) == 20
    wanted: dict[Origin, int] = {"in_distribution": 1000}
    drawing = Drawing(*data, "in_distribution", 0.3)
    found, (counts,) = draw(None, [drawing], wanted, 0, units, "q", lambda name, part: None)
    assert (counts.read, counts.leaks, counts.kept) == (100, 10, 90)
    assert counts.train + counts.validation == 90
    assert len(found) == counts.train
    assert 10 < counts.validation < 45


def test_origins_have_numbers_of_their_own(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.jsonl", many(0, 30)), written(tmp_path / "b.jsonl", many(20, 30))
    drawings = [Drawing(*one, "in_distribution"), Drawing(*two, "out_of_distribution")]
    wanted: dict[Origin, int] = {"in_distribution": 30, "out_of_distribution": 5}
    found, _ = draw(None, drawings, wanted, 0, (), "q", lambda name, part: None)
    assert [asked.origin for asked in found].count("in_distribution") == 30
    outside = [asked for asked in found if asked.origin == "out_of_distribution"]
    assert len(outside) == 5
    assert len({asked.key for asked in found}) == 35


def test_a_source_without_a_good_record_is_refused(tmp_path: Path) -> None:
    source, frozen = written(tmp_path / "a.jsonl", many(0, 3))
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": 2}\n', encoding="utf-8")
    with pytest.raises(DataError, match="none of the 2 records of source a"):
        drawn([(source, frozen)], 5)
