"""The step normalize: the doctor's answers in one professional, friendly style; the patient's words stay.

Real doctors answer in few words and each in a style of their own; a model that learns from them answers so.
Questions stay as patients ask them, for they are to be diverse (the paper, section 3, "Construction of
Multi-turn Dialogue Dataset"). The model returns the doctor's turns alone, by their numbers: it has no way to
the patient's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import ConfigDict

from zhongjing.construct.llm.answers import AnswerModel, read_answer
from zhongjing.construct.llm.author import Author, Question
from zhongjing.construct.llm.checks import (
    Fault,
    added_fault,
    first_fault,
    lost_fault,
    patient_turns,
    roles_alternate,
    swapped_fault,
    whole_text,
    wording_fault,
)
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.llm.model_step import ModelStep, left_as_it_is, rewritten
from zhongjing.construct.step import Outcome
from zhongjing.data.records import Dialogue, Record, Turn, Turns


class Reply(AnswerModel):
    """One of the doctor's turns; ``turn`` counts from 1 and leaves a system turn out."""

    turn: int
    text: str


class Replies(AnswerModel):
    """All of the doctor's turns."""

    model_config = ConfigDict(title="replies")

    replies: list[Reply]


def numbered(turns: Turns) -> list[tuple[int, Turn]]:
    """User and assistant turns with their numbers, from 1."""
    return list(enumerate((turn for turn in turns if turn.role != "system"), start=1))


def as_prompted(turns: Turns) -> str:
    """A dialogue as the prompts have it: JSON, a turn a line."""
    roles = {"user": "患者", "assistant": "医生"}
    lines = [
        json.dumps({"turn": number, "role": roles[turn.role], "text": turn.content}, ensure_ascii=False)
        for number, turn in numbered(turns)
    ]
    return "[" + ",\n".join(lines) + "]"


@dataclass(frozen=True)
class NormalizeStep(ModelStep):
    """Rewrites the doctor's turns of dialogues; other records go on as they are.

    Attributes:
        shortest, longest: characters of a rewritten answer. An answer that was longer before may stay so.
    """

    name: ClassVar[str] = "normalize"
    version: ClassVar[int] = 1
    newest_prompt: ClassVar[int] = 1
    done: ClassVar[str] = "normalized"

    shortest: int = 8
    longest: int = 500

    def settings(self) -> dict[str, object]:
        """Bounds of the answers, in characters."""
        return {"shortest": self.shortest, "longest": self.longest}

    def _values(self, dialogue: Dialogue) -> dict[str, str]:
        return {"dialogue": as_prompted(dialogue.turns), "longest": str(self._most(dialogue.turns))}

    def _most(self, turns: Turns) -> int:
        before = max((len(turn.content) for turn in turns if turn.role == "assistant"), default=0)
        return max(self.longest, before)

    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The first messages for a dialogue."""
        return self.prompt.opening(self._values(record)) if isinstance(record, Dialogue) else None

    async def write(self, author: Author, record: Record) -> Outcome:
        """The dialogue with other words of the doctor's, or its quarantine."""
        if not isinstance(record, Dialogue):
            return left_as_it_is(record, "no dialogue")

        def read(answer: StoredAnswer) -> Turns | Fault:
            return self.read(record, answer)

        question = Question(self.prompt, self._values(record), Replies.model_json_schema(), read)
        return await rewritten(author, record, question, lambda turns: {self.done: 1})

    def read(self, dialogue: Dialogue, answer: StoredAnswer) -> Turns | Fault:
        """The dialogue's turns with the doctor's rewritten, or why the answer is not used."""
        replies = read_answer(answer.text, answer.finish_reason, Replies)
        if isinstance(replies, Fault):
            return replies
        doctors = [number for number, turn in numbered(dialogue.turns) if turn.role == "assistant"]
        given = [reply.turn for reply in replies.replies]
        if set(given) - set(doctors):
            return Fault(
                "patient changed",
                "the answer rewrites turns that are not the doctor's",
                f"只能改写医生的发言，即第{'、'.join(map(str, doctors))}轮，不能改动患者的话",
            )
        if given != doctors:
            return Fault(
                "turns missing",
                "the answer does not have each of the doctor's turns once",
                f"应当按顺序给出第{'、'.join(map(str, doctors))}轮，每轮一条",
            )
        texts = {reply.turn: reply.text.strip() for reply in replies.replies}
        turns = self._rewritten(dialogue.turns, texts)
        original = whole_text(dialogue.turns)
        for number, turn in numbered(dialogue.turns):
            if turn.role != "assistant":
                continue
            fault = first_fault(
                [
                    wording_fault(texts[number], self.shortest, self._most(dialogue.turns)),
                    added_fault(texts[number], original, self.drugs),
                    lost_fault(texts[number], turn.content, self.drugs),
                    swapped_fault(texts[number], turn.content, self.drugs),
                ]
            )
            if fault is not None:
                return fault
        assert patient_turns(turns) == patient_turns(dialogue.turns)
        assert roles_alternate(turns) == roles_alternate(dialogue.turns)
        return turns

    @staticmethod
    def _rewritten(turns: Turns, texts: dict[int, str]) -> Turns:
        system = tuple(turn for turn in turns if turn.role == "system")
        return system + tuple(
            replace(turn, content=texts.get(number, turn.content)) for number, turn in numbered(turns)
        )
