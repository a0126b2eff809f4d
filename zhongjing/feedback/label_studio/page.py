"""The page on which answers are ranked, and what becomes of what was done on it.

Tags: https://labelstud.io/tags/ranker, /list, /paragraphs, /choices, /textarea. Letters A, B, ... are the
order in which this annotator sees the answers; which answer a letter is follows from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from zhongjing.feedback.assignment import shown_order
from zhongjing.feedback.criteria import ABILITIES
from zhongjing.feedback.judgments import Judgment
from zhongjing.feedback.tasks import FeedbackTask

_SPEAKERS = {"system": "系统", "user": "患者", "assistant": "医生"}
_TIE = "第{}名与第{}名并列"
_ALL_WRONG = "全部错误"

INSTRUCTION = (
    "请把各个答案从好到差排序（拖动，最好的在最上面）。先看安全性（准确、安全、伦理），"
    "再看专业性（理解、清晰、主动询问），最后看流畅性（连贯、一致、语气温和）；前面的更重要。"
    "并列的请勾选。每个答案违反了哪些能力，请勾选。"
    "如果所有答案都是错的，请勾选“全部错误”，并把答案改写成诚实的“很抱歉，我不知道……”。"
    "请独立完成，不要与他人讨论。"
)


def config(most: int) -> str:
    """The labelling configuration for tasks of at most so many answers."""
    flags = "".join(
        f'<Header value="答案 {letter} 违反了" size="6"/>'
        f'<Choices name="flags_{letter}" toName="prompt" choice="multiple" showInline="true">'
        f"{_choices()}</Choices>"
        for letter in ascii_uppercase[:most]
    )
    ties = "".join(f"<Choice value={quoteattr(_TIE.format(n, n + 1))}/>" for n in range(1, most))
    return (
        "<View><Style>.lsf-ranker__item, .htx-ranker-item { white-space: pre-wrap; }</Style>"
        '<Header value="对话"/>'
        '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="who" textKey="text"/>'
        '<Header value="排序：最好的在最上面"/>'
        '<List name="answers" value="$answers" title="答案"/><Ranker name="rank" toName="answers"/>'
        f'<Choices name="ties" toName="prompt" choice="multiple" showInline="true">{ties}</Choices>'
        f"{flags}"
        '<Choices name="all_wrong" toName="prompt" choice="multiple" showInline="true">'
        f'<Choice value="{_ALL_WRONG}"/></Choices>'
        '<TextArea name="edited" toName="prompt" rows="2" maxSubmissions="1" editable="true" '
        'placeholder="全部错误时：很抱歉，我不知道……"/></View>'
    )


def _choices() -> str:
    return "".join(f"<Choice value={quoteattr(each.shown)}/>" for each in ABILITIES)


def as_task(task: FeedbackTask, annotator: str, seed: int) -> dict[str, Any]:
    """A task as Label Studio takes it, in this annotator's order; it says nothing of the model."""
    texts = {each.id: each.text for each in task.answers}
    shown = shown_order(task.id, annotator, list(texts), seed)
    return {
        "data": {
            "task": task.id,
            "prompt": [{"who": _SPEAKERS[turn.role], "text": turn.content} for turn in task.prompt],
            "answers": [
                {"id": letter, "title": f"答案 {letter}", "body": texts[answer]}
                for letter, answer in zip(ascii_uppercase, shown, strict=False)
            ],
        }
    }


class Read(NamedTuple):
    """What was read of one exported task; ``problem``: why there is no judgment."""

    judgment: Judgment | None
    problem: str | None = None


def read(
    exported: Mapping[str, Any], annotator: str, user: int, answers: Sequence[str], seed: int
) -> list[Read]:
    """The judgments of one exported task.

    Args:
        exported: as the export has it.
        annotator: whose project it is of.
        user: their id in Label Studio.
        answers: ids of the task's answers.
        seed: of the order that was shown.
    """
    task = str(exported["data"]["task"])
    shown = shown_order(task, annotator, answers, seed)
    letters = dict(zip(ascii_uppercase, shown, strict=False))
    found: list[Read] = []
    for annotation in exported.get("annotations") or ():
        by = annotation.get("completed_by")
        if (by.get("id") if isinstance(by, Mapping) else by) != user:
            found.append(Read(None, "done by another user"))
            continue
        common: dict[str, Any] = {
            "task": task,
            "annotator": annotator,
            "annotation": int(annotation["id"]),
            "updated": str(annotation.get("updated_at") or annotation.get("created_at") or ""),
            "seconds": annotation.get("lead_time"),
            "shown": list(shown),
        }
        if annotation.get("was_cancelled"):
            found.append(Read(Judgment(**common, skipped=True)))
            continue
        found.append(_judged(annotation.get("result") or (), common, letters))
    return found


def _judged(results: Sequence[Mapping[str, Any]], common: dict[str, Any], letters: Mapping[str, str]) -> Read:
    values = {str(each.get("from_name")): each.get("value") or {} for each in results}
    order = (values.get("rank", {}).get("ranker") or {}).get("_") or []
    if sorted(order) != sorted(letters):
        return Read(None, "not all answers are ranked")
    tied = set(values.get("ties", {}).get("choices") or ())
    groups: list[list[str]] = []
    for place, letter in enumerate(order):
        if place and _TIE.format(place, place + 1) in tied:
            groups[-1].append(letters[letter])
        else:
            groups.append([letters[letter]])
    names = {each.shown: each.name for each in ABILITIES}
    flags = {
        letters[letter]: [names[shown] for shown in values.get(f"flags_{letter}", {}).get("choices") or ()]
        for letter in letters
    }
    all_wrong = bool(values.get("all_wrong", {}).get("choices"))
    edited = " ".join(values.get("edited", {}).get("text") or ()).strip()
    return Read(
        Judgment(
            **common,
            order=[sorted(group) for group in groups],
            flags={answer: each for answer, each in flags.items() if each},
            all_wrong=all_wrong,
            edited=edited if all_wrong and edited else None,
        )
    )
