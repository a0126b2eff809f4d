"""From judgments to rankings: where orders agree, and where an expert decides (paper, section 3). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import kendalltau

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError
from zhongjing.feedback.criteria import UNKNOWN_ANSWER
from zhongjing.feedback.judgments import Judgment

_TAU = re.compile(r"tau<(-?[01](\.\d+)?)")


class State(StrEnum):
    """How far a task is."""

    WAITING = "waiting"  # an annotator has not ranked it
    SKIPPED = "skipped"  # no annotator could rank it
    DISAGREE = "disagree"  # the expert is to decide
    AGREED = "agreed"
    DECIDED = "decided"  # by the expert

    @property
    def is_ranked(self) -> bool:
        """Whether there is a ranking."""
        return self in (State.AGREED, State.DECIDED)


@dataclass(frozen=True, slots=True)
class Decision:
    """A task's ranking: groups of answer ids, best first.

    ``unknown`` is the answer K+1 of a task whose answers are all wrong.
    """

    state: State
    order: tuple[tuple[str, ...], ...] = ()
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """When two orders count as different: ``order`` (the paper's), ``top1``, ``tau<x`` (Kendall's tau-b)."""

    rule: str = "order"

    def __post_init__(self) -> None:
        if self.rule not in ("order", "top1") and not _TAU.fullmatch(self.rule):
            raise ConfigError(
                f"{self.rule!r} is no rule",
                code=INVALID_OPTION,
                where="--disagree-when",
                remedy="write order, top1, or tau<0.5",
            )

    def holds(self, one: Judgment, other: Judgment) -> bool:
        """Whether they disagree. On whether all answers are wrong they must agree by every rule."""
        if one.all_wrong != other.all_wrong:
            return True
        if self.rule == "top1":
            return set(one.order[0]) != set(other.order[0])
        if self.rule == "order":
            return [set(group) for group in one.order] != [set(group) for group in other.order]
        return tau_b(one, other) < float(self.rule.removeprefix("tau<"))


def tau_b(one: Judgment, other: Judgment) -> float:
    """Kendall's tau-b of two orders, -1 to 1; two orders of nothing but ties count as 1 where they are equal.

    Source: Kendall 1945, The treatment of ties in ranking problems (scipy.stats.kendalltau).
    """
    first, second = one.ranks(), other.ranks()
    answers = sorted(first)
    a, b = [first[each] for each in answers], [second[each] for each in answers]
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 1.0 if a == b else 0.0
    return float(kendalltau(a, b).statistic)


def decide(
    judgments: Sequence[Judgment], expert: Judgment | None, *, wanted: int, rule: Disagreement
) -> Decision:
    """What is known of one task.

    Args:
        judgments: the latest of each annotator that it is assigned to.
        expert: the expert's, if there is one.
        wanted: annotators that the task has.
        rule: when orders differ.
    """
    if expert is not None and not expert.skipped:
        return _decision(State.DECIDED, [expert])
    given = [each for each in judgments if not each.skipped]
    if len(judgments) < wanted:
        return Decision(State.WAITING)
    if not given:
        return Decision(State.SKIPPED)
    if len(given) < wanted:
        return Decision(State.DISAGREE)  # one could not rank it: the expert may
    if any(rule.holds(given[0], other) for other in given[1:]):
        return Decision(State.DISAGREE)
    return _decision(State.AGREED, given)


def _decision(state: State, judgments: Sequence[Judgment]) -> Decision:
    ranks: Mapping[str, float] = {
        answer: sum(each.ranks()[answer] for each in judgments) / len(judgments)
        for answer in judgments[0].ranks()
    }
    groups = [
        tuple(sorted(answer for answer in ranks if ranks[answer] == rank))
        for rank in sorted(set(ranks.values()))
    ]
    unknown = None
    if judgments[0].all_wrong:
        unknown = next((each.edited for each in judgments if each.edited), UNKNOWN_ANSWER)
    return Decision(state, tuple(groups), unknown)
