from __future__ import annotations

import itertools

import pytest

from zhongjing.data.example import phrases
from zhongjing.data.example.facts import FACTS
from zhongjing.data.example.generate import fill


@pytest.mark.parametrize("column", ["disease", "medicine", "check"])
def test_names_are_unique_and_none_is_part_of_another(column: str) -> None:
    names = [getattr(fact, column) for fact in FACTS]
    assert len(set(names)) == len(names)
    assert [(one, two) for one, two in itertools.permutations(names, 2) if one in two] == []


def test_departments_are_no_parts_of_each_other() -> None:
    departments = {fact.department for fact in FACTS}
    assert [(one, two) for one, two in itertools.permutations(departments, 2) if one in two] == []


def test_a_medicine_is_named_only_by_its_own_row() -> None:
    """Else the scorer would find a medicine in a symptom or a check."""
    for fact in FACTS:
        cells = [(*other.symptoms, other.check, other.caution, other.disease) for other in FACTS]
        assert not any(fact.medicine in cell for row in cells for cell in row), fact.medicine


def test_no_row_gives_a_dose() -> None:
    for fact in FACTS:
        assert not any(unit in fact.medicine + fact.caution for unit in ("毫克", "mg", "克每", "片每"))


@pytest.mark.parametrize(
    "patterns",
    [
        phrases.TEXTBOOK,
        [phrases.RIGHT, phrases.WRONG],
        phrases.QUESTIONS_NAMED,
        phrases.QUESTIONS_SYMPTOMS,
        phrases.CORES_NAMED,
        phrases.CORES_SYMPTOMS,
        phrases.EXTRAS,
        phrases.FIRST_QUESTIONS,
        phrases.FIRST_INQUIRIES,
        phrases.REPLIES,
    ],
)
def test_every_pattern_fills(patterns: list[str]) -> None:
    for pattern in patterns:
        text = fill(pattern, FACTS[0], FACTS[1])
        assert "{" not in text
        assert text != pattern


def test_questions_do_not_give_the_answer_away() -> None:
    for pattern in (*phrases.QUESTIONS_NAMED, *phrases.QUESTIONS_SYMPTOMS):
        assert not any(slot in pattern for slot in ("{m}", "{p}", "{t}", "{n}"))
    for pattern in phrases.QUESTIONS_SYMPTOMS:
        assert "{d}" not in pattern


def test_phrases_themselves_name_no_medicine_or_department() -> None:
    fixed = [
        *phrases.OPENINGS_WARM,
        *phrases.OPENINGS_COLD,
        *phrases.CLOSINGS_WARM,
        *phrases.CLOSINGS_COLD,
        *phrases.INQUIRIES,
        *phrases.SAFE,
        *phrases.UNSAFE,
    ]
    for text in fixed:
        assert not any(fact.medicine in text or fact.department in text for fact in FACTS)
