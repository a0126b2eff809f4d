"""Tables with a row for each answer: a question stands several times, and a column ranks its answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from zhongjing.codes import data as codes
from zhongjing.data.fields import Fields, is_missing, is_name, number_of
from zhongjing.data.records import Dialogue, RejectedError

_RANKING = re.compile(r"(rank|ranks|ranking|score|scores|rating|reward|排名|排序|名次|评分|得分|打分|分数)$")
# Numbers the turns of a visit, the visits or the rows: they begin at 1 as ranks do, and order no answers.
_NUMBERING = re.compile(r"轮|turn|round|号|会话|(^|_|[a-z])id$|^column \d+$")
_MOST_QUESTIONS = 100_000  # kept in memory, under 100 MB; a table that ranks shows it sooner
_MOST_ANSWERS = 32  # of a question; what counts further is the number of a record


@dataclass(slots=True)
class _Question:
    """The answers to one question that were read, and what unused columns said beside them."""

    answers: set[bytes] = field(default_factory=set)
    values: dict[str, set[float]] = field(default_factory=dict)


class RankedRows:
    """Finds rows of dialogues that are answers to one question in an order of preference.

    As dialogues the worst answers would be learned as well as the best.
    """

    def __init__(self) -> None:
        self._questions: dict[bytes, _Question] = {}

    def check(self, value: object, record: Dialogue, unused: Mapping[str, int]) -> None:
        """Takes the next record, raw and as it was read, and what of it was not used, by key.

        Raises:
            RejectedError: its question had another answer before, and an unused column with a name such as
                ``rank`` tells them apart, or one that numbers them from 1.
        """
        numbers = _numbers(value, unused)
        if not numbers:
            return
        *before, answer = record.turns
        asked = _digest("\n".join(turn.content for turn in before))
        if asked not in self._questions and len(self._questions) >= _MOST_QUESTIONS:
            return
        question = self._questions.setdefault(asked, _Question())
        said = _digest(answer.content)
        if said in question.answers:
            return
        question.answers.add(said)
        for name, number in numbers.items():
            values = question.values.setdefault(name, set())
            values.add(number)
            count = len(question.answers)
            is_numbered = values == set(map(float, range(1, count + 1)))
            if count > 1 and len(values) > 1 and (is_numbered or _RANKING.search(name.lower())):
                told = name if is_name(name) else "a column"
                raise RejectedError(
                    f"{told} seems to rank several answers to one question, a row each; "
                    "as dialogues the worst would be learned too: write a record for each "
                    "question with its answers and ranks (kind ranking), or keep the best answers "
                    "without this column",
                    codes.AMBIGUOUS_RECORD,
                )


def _numbers(value: object, unused: Mapping[str, int]) -> dict[str, float]:
    """Unused keys of the record itself that may be ranks or scores."""
    found: dict[str, float] = {}
    for name in unused:
        held = value.get(name) if isinstance(value, dict | Fields) else None
        if is_missing(held):
            continue
        try:
            number = number_of(held, name)
        except RejectedError:
            continue
        may_number = (
            number.is_integer() and 1 <= number <= _MOST_ANSWERS and not _NUMBERING.search(name.lower())
        )
        if may_number or _RANKING.search(name.lower()):
            found[name] = number
    return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
