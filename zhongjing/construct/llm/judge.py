"""The step judge: a language model filters dialogues by the facts that the knowledge graph has on them.

This is the paper's KG-Instruction collaborative filtering (section 3, "Construction of Multi-turn Dialogue
Dataset"): the names of a dialogue are looked up in the graph, and what it holds of them stands in the
instruction. The model names the problems of the doctor's turns by kind, turn and statement; a dialogue with
one of the kinds that are not wanted is left out. No dialogue is changed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.check import digest, problem_notes
from zhongjing.construct.kg.facts import as_lines, facts
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.linker import Linker
from zhongjing.construct.llm.answers import AnswerModel, read_answer
from zhongjing.construct.llm.author import Author, Question
from zhongjing.construct.llm.checks import Fault
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.llm.model_step import ModelStep, left_as_it_is
from zhongjing.construct.llm.normalize import as_prompted, numbered
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Record

ProblemKind = Literal["contradiction", "wrong", "unsafe", "irrelevant", "empty"]
KINDS: frozenset[ProblemKind] = frozenset(get_args(ProblemKind))
_NO_FACTS = "（图谱里没有与这段对话有关的知识）"


class FoundProblem(AnswerModel):
    """What is wrong with one of the doctor's turns; ``fact`` is the number of a statement, 0 for none."""

    turn: int
    why: str
    kind: ProblemKind
    fact: int


class Judgement(AnswerModel):
    """All problems of a dialogue."""

    model_config = ConfigDict(title="judgement")

    problems: list[FoundProblem]


@dataclass(frozen=True, kw_only=True)
class JudgeStep(ModelStep):
    """Leaves out dialogues in which the model finds a problem; other records go on as they are.

    Attributes:
        graph: whose facts the model is shown.
        unwanted: kinds of problems for which a dialogue is left out; others are counted only.
        most: statements of the graph in an instruction, at most.
        longest: characters of a reason.
    """

    name: ClassVar[str] = "judge"
    version: ClassVar[int] = 1
    newest_prompt: ClassVar[int] = 1
    done: ClassVar[str] = "judged"
    growth: ClassVar[float] = 0.0
    shortest_answer: ClassVar[int] = 80

    graph: Graph
    unwanted: frozenset[ProblemKind] = KINDS
    most: int = 20
    longest: int = 50

    @functools.cached_property
    def _linker(self) -> Linker:
        return Linker(self.graph)

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self.graph)

    def __getstate__(self) -> dict[str, object]:
        # The automaton is made again in each process: sooner than it is sent.
        return {key: value for key, value in self.__dict__.items() if key != "_linker"}

    def settings(self) -> dict[str, object]:
        """The graph's digest, how much of it is shown, and what is unwanted."""
        return {
            "graph": self._digest,
            "unwanted": sorted(self.unwanted),
            "most": self.most,
            "longest": self.longest,
        }

    def finish(self, counts: Mapping[str, int], quarantined: Mapping[str, int]) -> dict[str, object]:
        """As for every step that a model writes, and what is odd in the graph."""
        return {**super().finish(counts, quarantined), "graph": problem_notes(self.graph)}

    def _values(self, dialogue: Dialogue, found: tuple[Triple, ...]) -> dict[str, str]:
        lines = "".join(f"{number}. {as_lines([triple])}" for number, triple in enumerate(found, 1))
        return {
            "facts": lines.strip() or _NO_FACTS,
            "dialogue": as_prompted(dialogue.turns),
            "longest": str(self.longest),
        }

    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The first messages for a dialogue."""
        if not isinstance(record, Dialogue):
            return None
        return self.prompt.opening(self._values(record, self._facts(record)))

    def _facts(self, dialogue: Dialogue) -> tuple[Triple, ...]:
        return facts(self.graph, self._linker, dialogue.turns, self.most)

    async def write(self, author: Author, record: Record) -> Outcome:
        """The dialogue as it is, or its quarantine."""
        if not isinstance(record, Dialogue):
            return left_as_it_is(record, "no dialogue")
        found = self._facts(record)

        def read(answer: StoredAnswer) -> Judgement | Fault:
            return self.read(record, found, answer)

        question = Question(self.prompt, self._values(record, found), Judgement.model_json_schema(), read)
        written = await author.write(question)
        if written.value is None:
            left = rejected(record, written.reason, written.code)
            return Outcome(counts=written.counts, quarantined=left)
        counts = Counter({**written.counts, self.done: 1})
        counts["with facts" if found else "without facts"] += 1
        for problem in written.value.problems:
            counts[f"problem: {problem.kind}"] += 1
            if problem.kind == "contradiction":
                counts[f"against {found[problem.fact - 1]}"] += 1
        unwanted = sorted({problem.kind for problem in written.value.problems} & self.unwanted)
        if not unwanted:
            return Outcome((record,), counts)
        reason = "the model finds: " + ", ".join(unwanted)
        return Outcome((), counts, rejected(record, reason, codes.JUDGED_UNFIT))

    def read(self, dialogue: Dialogue, found: tuple[Triple, ...], answer: StoredAnswer) -> Judgement | Fault:
        """The judgement, or why the answer is not used."""
        judgement = read_answer(answer.text, answer.finish_reason, Judgement)
        if isinstance(judgement, Fault):
            return judgement
        doctors = {number for number, turn in numbered(dialogue.turns) if turn.role == "assistant"}
        for problem in judgement.problems:
            if problem.turn not in doctors:
                return Fault(
                    "no such turn",
                    "the model judges a turn that is not the doctor's",
                    f"turn只能是医生的轮次，即第{'、'.join(map(str, sorted(doctors)))}轮",
                )
            least = 1 if problem.kind == "contradiction" else 0
            if not least <= problem.fact <= len(found):
                return Fault(
                    "no such fact",
                    "the model names a statement that it was not given",
                    f"fact只能是0到{len(found)}的编号，contradiction必须写出所违背的知识的编号，没有这样的知识就不是contradiction",
                )
        return judgement
