"""Answers to one prompt in the order of preference. Nothing is guessed: a wrong order trains the opposite.

An order is what the record says: ranks (1 is the best), scores and ratings (the highest is the best), the
names chosen and rejected, or, where nothing else is said, a list under ``answers``, the best first. Where two
of them contradict each other, or only some answers have one, the record is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zhongjing.codes import data as codes
from zhongjing.data import published_keys as keys
from zhongjing.data.fields import Fields, answer_of, is_missing, number_of
from zhongjing.data.records import Parsed, RejectedError, Turns
from zhongjing.data.turns import is_turn, is_turn_list, listed, marked_turns, turn_list, turns_in
from zhongjing.data.unnamed_orders import FIRST_BEST, is_order


def pair_of(better: object, worse: object, prompt: Turns) -> Parsed:
    """A ranking of chosen and rejected answers: each a text, a turn, turns, or a list of texts.

    ``worse`` may be several, of which none is better than another; ``prompt`` is empty where both hold the
    whole dialogue.

    Raises:
        RejectedError: they have no prompt, or not the same one.
    """
    better, worse = turns_in(better), turns_in(worse)
    if not prompt and isinstance(better, str) and isinstance(worse, str):
        marked = marked_turns(better), marked_turns(worse)
        if marked[0] is None or marked[1] is None:
            raise RejectedError(
                "chosen and rejected have no prompt: it needs its own field, or role marks (Human: ...)"
            )
        return _pair_of_dialogues(marked[0], marked[1], (), "preference, dialogues with role marks")
    if is_turn(better) and is_turn(worse):
        better, worse = [better], [worse]
    if is_turn_list(better) and is_turn_list(worse):
        return _pair_of_dialogues(turn_list(better), turn_list(worse), prompt, "conversational preference")
    if not prompt:
        raise RejectedError("chosen and rejected have no prompt")
    chosen, rejected = _texts(better, "chosen"), _texts(worse, "rejected")
    ranks = (0,) * len(chosen) + (1,) * len(rejected)
    several = "" if len(ranks) == 2 else ", several answers"
    return Parsed(f"preference{several}", turns=prompt, answers=(*chosen, *rejected), ranks=ranks)


def contents_of(turns: Turns) -> list[tuple[str, str]]:
    """Who says what: two prompts that say the same are one."""
    return [(turn.role, turn.content) for turn in turns]


def check_pair_scores(record: Mapping[str, object]) -> None:
    """Scores beside chosen and rejected must not contradict them.

    Raises:
        RejectedError: the rejected answer's score is as high or higher, or a margin is negative.
    """
    for better, worse in keys.PAIR_SCORES:
        if better in record and worse in record and record[better] is not None and record[worse] is not None:
            difference = number_of(record[better], better) - number_of(record[worse], worse)
            if difference <= 0:
                what = "equals" if difference == 0 else "is less than"
                raise RejectedError(f"{better} {what} {worse}, which contradicts chosen and rejected")
    if "margin" in record and not is_missing(record["margin"]) and number_of(record["margin"], "margin") < 0:
        raise RejectedError("margin is negative, which contradicts chosen and rejected")


def order_in(record: Fields, names: Sequence[str]) -> object:
    """What the first of the names orders a list of answers by; None where none does.

    A number under a name in the singular is one of the question (its votes, say), not of its answers.
    """
    for name in record.present(names):
        value = record.peek(name)
        if not is_missing(value) and (name.endswith("s") or isinstance(listed(value), list)):
            return record.take(name, listed)
    return None


def deciding(record: Fields, count: int) -> list[str]:
    """Keys beside ``count`` answers that may say which is the best, in a way that is not known here.

    Lists with a number for each answer are left to :func:`check_first_best`: they may be named as ranks or
    scores.
    """
    return [
        name
        for name in record.present(keys.DECIDING)
        if not is_missing(value := listed(record.peek(name)))
        and not (isinstance(value, list) and is_order(value, count))
    ]


def ordered(
    listed: object, ranks: object, scores: object, *, best_first: bool, beside: Sequence[str] = ()
) -> Parsed:
    """A ranking, without its prompt, of a list of answers and what orders them.

    Args:
        listed: texts, or mappings of a text with its ``rank`` or ``score``, ``rating``.
        ranks: of the answers, the smallest the best; None: none are given beside the list.
        scores: of the answers, the highest the best; likewise.
        best_first: whether the list's own order counts where nothing else is said.
        beside: keys of the record that may say something else; then it is refused.

    Raises:
        RejectedError: the order is not told, not for all, or told in two ways that contradict each other.
    """
    if not isinstance(listed, list):
        raise RejectedError("the answers are not a list")
    texts: list[str] = []
    for item in listed:
        content = item
        if isinstance(item, Mapping):
            content = next((item[name] for name in keys.RANKED_TEXTS if name in item), None)
        texts.append(answer_of(content, "an answer"))
    ranked = _numbers(ranks, len(texts), "rank") or _own(listed, keys.OWN_RANKS)
    scored = _numbers(scores, len(texts), "score") or _own(listed, keys.OWN_SCORES)
    if ranked is None and scored is None:
        if not best_first:
            raise RejectedError(
                "the answers have neither ranks nor scores, so their order is not known",
                codes.AMBIGUOUS_RECORD,
            )
        if beside:
            raise RejectedError(
                f"{beside[0]} beside the answers may say which is the best: give ranks or scores, or, where "
                "the first is the best, name the list as columns.answers",
                codes.AMBIGUOUS_RECORD,
            )
        return _ranking(f"answers, {FIRST_BEST}", texts, range(len(texts)))
    by_rank = None if ranked is None else _dense_ranks(ranked)
    by_score = None if scored is None else _dense_ranks([-score for score in scored])
    if by_rank is not None and by_score is not None:
        places = list(zip(by_rank, by_score, strict=True))
        if any((a - c) * (b - d) < 0 for a, b in places for c, d in places):
            raise RejectedError(
                "ranks and scores order the answers differently: name the one that counts under `columns`, "
                "or the other in columns.ignore",
                codes.AMBIGUOUS_RECORD,
            )
    if by_rank is not None:
        return _ranking("answers by rank, the smallest best", texts, by_rank)
    assert by_score is not None
    return _ranking("answers by score, the highest best", texts, by_score)


def _ranking(layout: str, answers: Sequence[str], ranks: Sequence[int]) -> Parsed:
    return Parsed(layout, answers=tuple(answers), ranks=tuple(ranks))


def _pair_of_dialogues(chosen: Turns, rejected: Turns, prompt: Turns, how: str) -> Parsed:
    """Two dialogues that are one but for their last turns."""
    if not chosen or not rejected or (chosen[-1].role, rejected[-1].role) != ("assistant", "assistant"):
        raise RejectedError("chosen and rejected must be assistant turns")
    answers = (chosen[-1].content, rejected[-1].content)
    if contents_of(chosen[:-1]) != contents_of(rejected[:-1]):
        raise RejectedError("chosen and rejected do not begin with the same prompt")
    own = chosen[:-1]
    if not own:
        if not prompt:
            raise RejectedError("chosen and rejected have no prompt")
        return Parsed(how, turns=prompt, answers=answers, ranks=(0, 1))
    if (
        prompt
        and contents_of(own) != contents_of(prompt)
        and prompt[-1].content not in [turn.content for turn in own]
    ):
        raise RejectedError("chosen and rejected must be one turn each after the prompt")
    # Beside whole dialogues the prompt is a question of them once more (UltraFeedback binarized).
    turns = own if len(own) >= len(prompt) else prompt
    return Parsed(how, turns=turns, answers=answers, ranks=(0, 1))


def _texts(value: object, what: str) -> tuple[str, ...]:
    if is_turn(value):
        value = [value]
    if is_turn_list(value):
        turns = turn_list(value)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise RejectedError("chosen and rejected must be one assistant turn each after the prompt")
        return (turns[0].content,)
    if isinstance(value, list):
        return tuple(answer_of(item, what) for item in value) or (answer_of(None, what),)
    return (answer_of(value, what),)


def _own(listed: Sequence[object], names: Sequence[str]) -> list[float] | None:
    """The ranks or scores that stand in the answers themselves; None where there are none."""
    for name in names:
        having = [item for item in listed if isinstance(item, Mapping) and name in item]
        if not having:
            continue
        values = [item[name] for item in having]
        if len(having) < len(listed) or any(value is None for value in values):
            raise RejectedError(
                f"some of the answers have a {name} and some have none", codes.AMBIGUOUS_RECORD
            )
        return [number_of(value, f"a {name}") for value in values]
    return None


def _numbers(values: object, count: int, what: str) -> list[float] | None:
    if values is None or values == []:
        return None
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        raise RejectedError(f"{what}s and answers are not equally many")
    return [number_of(value, f"a {what}") for value in values]


def _dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """The smallest is 0, equal ones tie."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return tuple(places[value] for value in values)
