"""What an answer of the model must not do, each check a function that names the first fault or finds none.

A fault is told twice: to the model in Chinese, with the words that are meant, and to people without any text
of the record. Checks compare with the original, so what the doctor has said is never a fault.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zhongjing.construct.llm.doses import Dose, doses, find_doses, notation
from zhongjing.construct.llm.drugs import DrugNames
from zhongjing.data.records import Turns, has_undecodable

_AI = re.compile(
    r"作为(?:一[个名位款])?(?:AI|人工智能|语言模型|大模型|智能助手|虚拟)|我是(?:一[个名位款])?(?:AI|人工智能|语言模型|大模型|智能|虚拟|机器人)"
    r"|(?:AI|人工智能|语言)(?:助手|模型)|ChatGPT|GPT-?\d|as an ai\b|language model"
    r"|无法提供(?:具体的)?医疗(?:建议|诊断)",
    re.IGNORECASE,
)
_META = re.compile(
    r"改写后|扩写|润色|原文|原回答|原对话|按照?您?的要求"
    r"|以下是(?:我|为您)?(?:改写|修改|规范|整理|扩展)|\{|\}|```|^\s*#+ |\*\*|^\s*[-*•] ",
    re.MULTILINE,
)
_QUESTION = re.compile(r"[?？]|吗[。！]?$|呢[。！]?$")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an answer is not used. ``name`` is its label in counts; ``told`` goes to the model alone."""

    name: str
    reason: str
    told: str


def wording_fault(text: str, shortest: int, longest: int) -> Fault | None:
    """Length in characters, tone, and whether it is text at all."""
    stripped = text.strip()
    if not stripped:
        return Fault("empty", "an answer is empty", "有一条回答是空的")
    if has_undecodable(text):
        return Fault("undecodable", "an answer has characters that are none", "有一条回答含有乱码")
    if len(stripped) < shortest:
        return Fault("short", "an answer is too short", "有一条发言过于简短，请写完整")
    if len(stripped) > longest:
        return Fault(
            "long",
            "an answer is too long",
            f"有一条发言超过{longest}个字，请写得简洁些",
        )
    if _AI.search(text):
        return Fault(
            "ai talk", "the model speaks of itself", "医生的话里提到了人工智能或模型，请始终以医生的身份说话"
        )
    if _META.search(text):
        return Fault(
            "meta talk", "the answer speaks of its task or has markup", "回答里提到了改写任务或含有标记符号"
        )
    return None


def added_fault(text: str, original: str, names: DrugNames) -> Fault | None:
    """Drugs and doses that ``original`` lacks."""
    if drugs := names.added(text, original):
        return Fault(
            "drug added",
            "a drug that the original lacks",
            f"出现了原对话没有的药名：{'、'.join(sorted(drugs)[:5])}",
        )
    if more := doses(text) - doses(original):
        return Fault(
            "dose added", "a dose that the original lacks", f"出现了原对话没有的剂量或疗程：{_shown(more)}"
        )
    return None


def lost_fault(text: str, original: str, names: DrugNames) -> Fault | None:
    """Drugs and doses of ``original`` that are gone from ``text``."""
    written = notation(text)
    gone = {mention.name for mention in names.find(notation(original)) if mention.name not in written}
    if gone:
        return Fault(
            "drug lost",
            "a drug of the original is missing",
            f"缺少原回答中的药名：{'、'.join(sorted(gone)[:5])}",
        )
    if less := doses(original) - doses(text):
        return Fault(
            "dose lost", "a dose of the original is missing", f"缺少原回答中的剂量或疗程：{_shown(less)}"
        )
    return None


def swapped_fault(text: str, original: str, names: DrugNames) -> Fault | None:
    """A dose that stands after another drug than in ``original``."""
    before, after = _by_drug(original, names), _by_drug(text, names)
    for dose, drugs in after.items():
        known = before.get(dose, set())
        # A dose without a drug before it (每次2片，阿莫西林) tells nothing.
        if known and None not in known and None not in drugs and not drugs <= known:
            return Fault(
                "dose swapped", "a dose stands with another drug", "有的剂量与药名的对应关系和原回答不一致"
            )
    return None


def asks(text: str) -> bool:
    """Whether the turn asks something."""
    return bool(_QUESTION.search(text.strip()))


def patient_turns(turns: Turns) -> tuple[str, ...]:
    """The patient's words, in order."""
    return tuple(turn.content for turn in turns if turn.role == "user")


def roles_alternate(turns: Turns) -> bool:
    """System (optional), then user and assistant in turn, an assistant last."""
    roles = [turn.role for turn in turns]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return bool(roles) and len(roles) % 2 == 0 and roles == ["user", "assistant"] * (len(roles) // 2)


def whole_text(turns: Turns) -> str:
    """All that a dialogue says, a turn a line: where facts may come from."""
    return "\n".join(turn.content for turn in turns)


def first_fault(faults: Sequence[Fault | None]) -> Fault | None:
    """The first that is one."""
    return next((fault for fault in faults if fault is not None), None)


def _by_drug(text: str, names: DrugNames) -> dict[Dose, set[str | None]]:
    written = notation(text)
    mentions = names.find(written)
    found: dict[Dose, set[str | None]] = {}
    for each in find_doses(written):
        before = [mention.name for mention in mentions if mention.start < each.start]
        found.setdefault(each.dose, set()).add(before[-1] if before else None)
    return found


def _shown(found: set[Dose]) -> str:
    units = {"a day": "次/日", "days": "天", "unit": "单位", "percent": "%"}
    return "、".join(f"{dose.value:g}{units.get(dose.kind, dose.kind)}" for dose in sorted(found)[:5])
