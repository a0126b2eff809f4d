from __future__ import annotations

import random

import pytest

from zhongjing.data.records import Dialogue, Position, Prompt, Ranking, Record, TextRecord, Turn
from zhongjing.data.sections import Section, cut_sections
from zhongjing.data.split import assign, bucket, content_of, normalise, unit_of

HERE = Position("s", "u", 0)
THERE = Position("other", "file", 9, 9)


def dialogue(*contents: str, position: Position = HERE, system: str | None = None) -> Dialogue:
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    head = [Turn("system", system)] if system else []
    return Dialogue((*head, *turns), position)


def test_buckets_are_uniform_fixed_and_independent_between_salts() -> None:
    values = [bucket(f"key {i}", "test") for i in range(20_000)]
    assert all(0 <= value < 1 for value in values)
    for edge in (0.01, 0.1, 0.5, 0.9):
        assert abs(sum(value < edge for value in values) / len(values) - edge) < 0.01
    both = sum(
        bucket(f"key {i}", "test") < 0.5 and bucket(f"key {i}", "validation") < 0.5 for i in range(20_000)
    )
    assert abs(both / 20_000 - 0.25) < 0.01
    # Written down: a change of these numbers would move every record of every user.
    assert bucket("头痛怎么办", "test") == pytest.approx(PINNED_TEST, abs=1e-15)
    assert bucket(b"\x00\x01", "validation") == pytest.approx(PINNED_VALIDATION, abs=1e-15)


PINNED_TEST = 0.9767029618264855
PINNED_VALIDATION = 0.06457003040422826


def test_the_question_decides_and_nothing_else() -> None:
    question = "医生您好，我头痛已经三天了，应该怎么办？"
    one = dialogue(question, "多休息", "还有呢", "喝水")
    assert unit_of(one) == unit_of(dialogue(question, "去医院", position=THERE, system="你是医生"))
    prompt = (Turn("user", question),)
    assert unit_of(one) == unit_of(Ranking(prompt, ("甲", "乙"), (0, 1), HERE))
    assert unit_of(one) == unit_of(Prompt(prompt, HERE))
    assert unit_of(one) == unit_of(dialogue("医生您好， 我头痛已经三天了,应该怎么办?", "x"))
    assert unit_of(one) != unit_of(dialogue("医生您好，我牙痛已经三天了，应该怎么办？", "多休息"))


def test_a_greeting_is_not_what_a_dialogue_is_about() -> None:
    first = dialogue("你好", "您好", "我头痛已经三天了，应该怎么办呢？", "多休息")
    second = dialogue("你好", "您好", "孩子发烧到三十九度，要不要去医院？", "要")
    assert unit_of(first) != unit_of(second)
    assert unit_of(first) == unit_of(dialogue("你好", "请讲", "我头痛已经三天了，应该怎么办呢？", "喝水"))


def test_duplicates_are_equal_in_everything_but_their_place() -> None:
    assert content_of(dialogue("问", "答")) == content_of(dialogue("问", "答", position=THERE))
    different: list[Record] = [
        dialogue("问", "答"),
        dialogue("问", "答", "问", "答"),
        dialogue("问答", ""),
        dialogue("问", "答", system="系"),
        dialogue("问", "答 "),
        Prompt((Turn("user", "问"),), HERE),
        Ranking((Turn("user", "问"),), ("答", "否"), (0, 1), HERE),
        Ranking((Turn("user", "问"),), ("答", "否"), (1, 0), HERE),
        TextRecord("问", HERE),
    ]
    assert len({content_of(record) for record in different}) == len(different)
    # The same judgement, written in another order.
    swapped = Ranking((Turn("user", "问"),), ("否", "答"), (1, 0), THERE)
    assert content_of(different[6]) == content_of(swapped)


def test_assignment_is_nested_and_test_comes_first() -> None:
    units = [normalise(f"问题 {i}").encode() for i in range(5000)]
    tests = {u for u in units if assign(u, test_fraction=0.2, validation_fraction=0.1) == "test"}
    more = {u for u in units if assign(u, test_fraction=0.5, validation_fraction=0.3) == "test"}
    assert tests < more
    held = [u for u in units if assign(u, test_fraction=0.2, validation_fraction=0.1) == "validation"]
    assert abs(len(tests) / 5000 - 0.2) < 0.02
    assert abs(len(held) / (5000 - len(tests)) - 0.1) < 0.015
    assert all(assign(u, test_fraction=0.0, validation_fraction=0.1) == "validation" for u in held)
    assert assign(units[0], test_fraction=0.0, validation_fraction=0.0) == "train"
    assert assign(units[0], test_fraction=0.0, validation_fraction=0.0, test_only=True) == "test"


def book(seed: int, paragraphs: int, shortest: int = 5, longest: int = 300) -> list[str]:
    rng = random.Random(seed)
    letters = "病症药方脉舌苔寒热虚实表里阴阳气血"
    return ["".join(rng.choices(letters, k=rng.randint(shortest, longest))) for _ in range(paragraphs)]


@pytest.mark.parametrize("length", [100, 500, 2000])
@pytest.mark.parametrize("shape", [(5, 30), (5, 300), (200, 900)])
def test_sections_keep_every_paragraph_in_order_at_about_the_length(
    length: int, shape: tuple[int, int]
) -> None:
    lines = book(1, 2000, *shape)
    sections = list(cut_sections([line + "\n" for line in lines], length))
    joined = "".join(section.text.replace("\n", "") for section in sections)
    assert joined == "".join(lines)
    sizes = [len(section.text) for section in sections]
    assert max(sizes) <= 1.5 * length + 1
    assert 0.6 * length < sum(sizes) / len(sizes) < 1.3 * length
    assert sections[0].line == 1
    assert [section.line for section in sections] == sorted(section.line for section in sections)


def test_sections_far_from_a_change_stay_as_they_are() -> None:
    lines = book(2, 3000)
    before = {section.text for section in cut_sections(lines, 2000)}
    edited = [*lines[:700], "新加的一段。", *lines[700:]]
    after = {section.text for section in cut_sections(edited, 2000)}
    assert len(before - after) <= 5
    appended = {section.text for section in cut_sections([*lines, *book(3, 50)], 2000)}
    assert len(before - appended) <= 1


def test_a_line_of_a_whole_book_is_cut_at_sentence_ends() -> None:
    sentence = "传染病是由病原微生物感染人体后产生的疾病。"
    sections = list(cut_sections([sentence * 1000], 500))
    assert all(section.text.endswith("。") and section.line == 1 for section in sections)
    assert "".join(section.text.replace("\n", "") for section in sections) == sentence * 1000
    unbroken = list(cut_sections(["字" * 5000], 500))
    assert sum(len(section.text.replace("\n", "")) for section in unbroken) == 5000


def test_blank_lines_and_windows_line_ends_are_no_paragraphs() -> None:
    assert list(cut_sections(["\n", "  甲 \r\n", "\n", "乙\n"], 2000)) == [Section(2, "甲\n乙")]
    assert list(cut_sections([], 2000)) == []
