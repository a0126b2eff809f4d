"""Whether an answer states the example world's facts: the generator's own scorer."""

from __future__ import annotations

from collections.abc import Mapping

from zhongjing.data.example.facts import FACTS

_MEDICINES = frozenset(fact.medicine for fact in FACTS)
_DEPARTMENTS = frozenset(fact.department for fact in FACTS)


def exact_fact_score(prompt_record: Mapping[str, object], answer_text: str) -> float:
    """How right an answer is, by exact names.

    Args:
        prompt_record: a generated prompt, ranking or single-turn dialogue: its ``medicine`` and
            ``department`` are what is right.
        answer_text: the answer.

    Returns:
        1 when the right medicine is named and no other; 0.5 when it is named beside another one; otherwise
        0.25 when no medicine but the right department alone is named; else 0.
    """
    right = str(prompt_record["medicine"])
    named = {medicine for medicine in _MEDICINES if medicine in answer_text}
    if right in named:
        return 1.0 if len(named) == 1 else 0.5
    departments = {department for department in _DEPARTMENTS if department in answer_text}
    return 0.25 if not named and departments == {prompt_record["department"]} else 0.0
