"""The step expand: single-turn dialogues with a terse answer become consultations; the doctor inquires.

A model learns to ask back only from dialogues in which doctors do (the paper, section 3, "Construction of
Multi-turn Dialogue Dataset"). The patient's question stays the first turn as it is; the last turn says what
the original answer said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from zhongjing.construct.llm.answers import AnswerModel, read_answer
from zhongjing.construct.llm.author import Author, Question
from zhongjing.construct.llm.checks import (
    Fault,
    added_fault,
    asks,
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
from zhongjing.construct.llm.normalize import as_prompted
from zhongjing.construct.step import Outcome
from zhongjing.data.records import Dialogue, Record, Turn, Turns

_PATIENT_CHANGED = Fault(
    "patient changed",
    "the patient's words are changed",
    "患者的第一句话一个字也不能改，请从医生的第一次回应开始写",
)


class SpokenTurn(AnswerModel):
    """What one of the two says."""

    role: Literal["doctor", "patient"]
    text: str


class SpokenTurns(AnswerModel):
    """What follows the patient's question."""

    model_config = ConfigDict(title="turns")

    turns: list[SpokenTurn]


@dataclass(frozen=True)
class ExpandStep(ModelStep):
    """Expands dialogues of one question and a terse answer; other records go on as they are.

    Attributes:
        terse: an answer of at most so many characters is terse.
        fewest, most: turns of the doctor in the result.
        longest: characters of one turn. A patient may say a single word.
    """

    name: ClassVar[str] = "expand"
    version: ClassVar[int] = 1
    newest_prompt: ClassVar[int] = 1
    done: ClassVar[str] = "expanded"
    growth: ClassVar[float] = 1.0
    shortest_answer: ClassVar[int] = 300

    terse: int = 60
    fewest: int = 2
    most: int = 5
    longest: int = 300

    def settings(self) -> dict[str, object]:
        """Which dialogues are expanded, and bounds of the result."""
        return {"terse": self.terse, "fewest": self.fewest, "most": self.most, "longest": self.longest}

    def is_terse(self, record: Record) -> bool:
        """Whether the step is for this record."""
        if not isinstance(record, Dialogue) or not roles_alternate(record.turns):
            return False
        answers = [turn for turn in record.turns if turn.role == "assistant"]
        return len(answers) == 1 and len(answers[0].content.strip()) <= self.terse

    def _values(self, dialogue: Dialogue) -> dict[str, str]:
        bounds = {"fewest": self.fewest, "most": self.most, "longest": self.longest}
        return {
            "dialogue": as_prompted(dialogue.turns),
            **{name: str(value) for name, value in bounds.items()},
        }

    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The first messages for a dialogue that the step is for."""
        if not isinstance(record, Dialogue) or not self.is_terse(record):
            return None
        return self.prompt.opening(self._values(record))

    async def write(self, author: Author, record: Record) -> Outcome:
        """The dialogue with more turns, or its quarantine."""
        if not isinstance(record, Dialogue) or not self.is_terse(record):
            return left_as_it_is(record, "not terse")

        def read(answer: StoredAnswer) -> Turns | Fault:
            return self.read(record, answer)

        question = Question(self.prompt, self._values(record), SpokenTurns.model_json_schema(), read)
        before = len(record.turns)
        return await rewritten(
            author, record, question, lambda turns: {self.done: 1, "turns added": len(turns) - before}
        )

    def read(self, dialogue: Dialogue, answer: StoredAnswer) -> Turns | Fault:
        """The turns of the expanded dialogue, or why the answer is not used."""
        spoken = read_answer(answer.text, answer.finish_reason, SpokenTurns)
        if isinstance(spoken, Fault):
            return spoken
        question, reply = dialogue.turns[-2], dialogue.turns[-1]
        said = spoken.turns
        if said and said[0].role == "patient":
            # Some models begin with the question nevertheless: no harm where it is the very same.
            if said[0].text != question.content:
                return _PATIENT_CHANGED
            said = said[1:]
        roles = ["doctor", "patient"] * len(said)
        if [turn.role for turn in said] != roles[: len(said)] or len(said) % 2 == 0:
            return Fault(
                "roles",
                "roles do not alternate, or the doctor is not last",
                "医生和患者应当交替发言，以医生的话结束",
            )
        doctors = [turn.text for turn in said if turn.role == "doctor"]
        if not self.fewest <= len(doctors) <= self.most:
            return Fault(
                "turns",
                f"the doctor does not have {self.fewest} to {self.most} turns",
                f"医生应当发言{self.fewest}到{self.most}次",
            )
        if not all(asks(text) for text in doctors[:-1]):
            return Fault(
                "no inquiry",
                "a turn before the last asks nothing",
                "除最后一轮外，医生的每次发言都应主动询问病情",
            )
        original = whole_text(dialogue.turns)
        fault = first_fault(
            [
                *(wording_fault(turn.text, 1, self.longest) for turn in said),
                *(added_fault(turn.text, original, self.drugs) for turn in said),
                lost_fault(doctors[-1], reply.content, self.drugs),
                swapped_fault(doctors[-1], reply.content, self.drugs),
            ]
        )
        if fault is not None:
            return fault
        turns = dialogue.turns[:-1] + tuple(
            Turn("assistant", turn.text.strip(), reply.learn)
            if turn.role == "doctor"
            else Turn("user", turn.text.strip())
            for turn in said
        )
        assert patient_turns(turns)[0] == question.content
        assert roles_alternate(turns)
        return turns
