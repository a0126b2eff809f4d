"""Every layout that peers document, read correctly or refused by name, each from a small file of ours.

Sources: LLaMA-Factory ``data/README.md``; MedicalGPT ``docs/datasets.md``; TRL
``docs/source/dataset_formats.md``; OpenRLHF ``openrlhf/datasets/*.py`` and its README; ms-swift
``docs/source_en/Customization/Custom-dataset.md`` and ``swift/llm/dataset/preprocessor/core.py``.
"""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.data.reading import one, read, reason, said
from tests.unit.data.support import json_lines
from zhongjing.config.sources import Columns, Kind, RoleMarks
from zhongjing.data.cachekey import CACHE_VERSION
from zhongjing.data.inspect import inspect_sources
from zhongjing.data.layouts import parse
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Dialogue, Prompt, Ranking, Record, Rejected, RejectedError, TextRecord

D, R, P, T = Kind.DIALOGUE, Kind.RANKING, Kind.PROMPTS, Kind.TEXT
Turns = list[tuple[str, str]]
ASKED, ANSWERED = ("user", "问"), ("assistant", "答")
SYSTEM = ("system", "系")
PAIR: tuple[Turns, tuple[str, ...], tuple[int, ...]] = ([ASKED], ("好", "坏"), (0, 1))


class Case(NamedTuple):
    """``reads``: the text, the turns, or prompt, answers and ranks; or ``refused``: how the reason begins."""

    name: str
    kind: Kind
    record: Any
    reads: Any = None
    refused: str = ""
    unused: tuple[str, ...] = ()


def spoken(who: str, words: str) -> dict[str, Any]:
    return {"from": who, "value": words}


U, A, SYS = said("user", "问"), said("assistant", "答"), said("system", "系")
GOOD, BAD = said("assistant", "好"), said("assistant", "坏")
HUMAN, GPT = spoken("human", "问"), spoken("gpt", "答")

FACTORY = [
    Case("alpaca", D,
         {"instruction": "问", "input": "补充", "output": "答", "system": "系",
          "history": [["一", "二"], ["", ""]]},
         [SYSTEM, ("user", "一"), ("assistant", "二"), ("user", "问\n补充"), ANSWERED]),
    Case("alpaca-pretraining", T, {"text": "正文"}, "正文"),
    Case("alpaca-preference", R, {"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"}, PAIR),
    Case("alpaca-preference-of-2023", R, {"instruction": "问", "input": "", "output": ["好", "坏"]}, PAIR),
    Case("alpaca-kto-bad", D, {"instruction": "问", "input": "", "output": "答", "kto_tag": False},
         refused="the answer is marked as a bad one (kto_tag: false)"),
    Case("alpaca-kto-good", D, {"instruction": "问", "output": "答", "kto_tag": True}, [ASKED, ANSWERED],
         unused=("kto_tag",)),
    Case("alpaca-kto-as-ranking", R, {"instruction": "问", "output": "答", "kto_tag": True},
         refused="an unpaired preference (kto_tag)"),
    Case("alpaca-images", D, {"instruction": "问", "input": "", "output": "答", "images": ["a.png"]},
         refused="the record has images"),
    Case("sharegpt", D, {"conversations": [HUMAN, GPT], "system": "系", "tools": ""},
         [SYSTEM, ASKED, ANSWERED]),
    Case("sharegpt-tools", D, {"conversations": [HUMAN, GPT], "tools": "[{}, {}]"},
         refused="the record has tools"),
    Case("sharegpt-function-call", D,
         {"conversations": [HUMAN, spoken("function_call", "{}"), spoken("observation", "结果")]},
         refused="a turn has an unknown role (function_call)"),
    Case("sharegpt-preference", R,
         {"conversations": [HUMAN], "chosen": spoken("gpt", "好"), "rejected": spoken("gpt", "坏")},
         PAIR),
    Case("sharegpt-kto", R, {"conversations": [HUMAN, GPT], "kto_tag": True},
         refused="an unpaired preference (kto_tag)"),
    Case("openai", D, {"messages": [SYS, U, A]},
         [SYSTEM, ASKED, ANSWERED]),
]  # fmt: skip

MEDICAL = [
    Case("pretraining", T, {"text": "正文"}, "正文"),
    Case("sharegpt", D, {"conversations": [HUMAN, GPT]}, [ASKED, ANSWERED]),
    Case("reward", R, {"conversations": [HUMAN], "chosen": "好", "rejected": "坏"}, PAIR),
    Case("reward-tools", R,
         {"conversations": [HUMAN], "tools": "[{}]", "chosen": "好", "rejected": "坏"},
         refused="the record has tools"),
    Case("reward-of-2024", R,
         {"system": "", "history": [["一", "二"]], "question": "问", "response_chosen": "好",
          "response_rejected": "坏"},
         ([("user", "一"), ("assistant", "二"), ASKED], ("好", "坏"), (0, 1))),
    Case("reinforcement", P, {"conversations": [HUMAN, GPT]}, [ASKED]),
    Case("belle", D, {"instruction": "Human: 问一\nAssistant: 答一\nHuman: 问\nAssistant:", "output": "答"},
         refused="a question has role marks"),
    Case("hh", R, {"prompt": "\n\nHuman: 问\n\nAssistant:", "chosen": "好", "rejected": "坏"}, PAIR),
]  # fmt: skip

TRL = [
    Case("language-modeling", T, {"text": "正文"}, "正文"),
    Case("language-modeling-conversational", D, {"messages": [U, A]},
         [ASKED, ANSWERED]),
    Case("prompt-only", P, {"prompt": "问"}, [ASKED]),
    Case("prompt-only-conversational", P, {"prompt": [U]}, [ASKED]),
    Case("prompt-completion", D, {"prompt": "问", "completion": " 答"}, [ASKED, ANSWERED]),
    Case("prompt-completion-conversational", D,
         {"prompt": [U], "completion": [A]}, [ASKED, ANSWERED]),
    Case("preference", R, {"prompt": "问", "chosen": " 好", "rejected": " 坏"}, PAIR),
    Case("preference-implicit", R, {"chosen": "天是蓝的。", "rejected": "天是绿的。"},
         refused="chosen and rejected have no prompt"),
    Case("preference-conversational", R,
         {"prompt": [U], "chosen": [GOOD], "rejected": [BAD]},
         PAIR),
    Case("preference-conversational-implicit", R,
         {"chosen": [U, GOOD],
          "rejected": [U, BAD]}, PAIR),
    Case("unpaired", R, {"prompt": "问", "completion": "答", "label": True},
         refused="an unpaired preference (label)"),
    Case("unpaired-bad-as-dialogue", D,
         {"prompt": [U], "completion": [A], "label": False},
         refused="the answer is marked as a bad one (label: false)"),
    Case("stepwise", R, {"prompt": "问", "completions": ["一", "二"], "labels": [True, False]},
         refused="stepwise supervision"),
    Case("stepwise-as-dialogue", D, {"prompt": "问", "completions": ["一", "二"], "labels": [True, False]},
         refused="stepwise supervision"),
    Case("tool-calling", D,
         {"messages": [U, {"role": "assistant", "tool_calls": [{"type": "function"}]}]},
         refused="a turn calls a tool (tool_calls)"),
    Case("harmony", D,
         {"messages": [said("developer", "系"), U, said("assistant", "答", thinking="想")]},
         [SYSTEM, ASKED, ("assistant", "<think>\n想\n</think>\n\n答")]),
    Case("vision", D,
         {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "问"}]},
                       A]},
         refused="a turn contains more than text (image)"),
    Case("vision-images", D, {"prompt": "问", "completion": "答", "images": ["a.png"]},
         refused="the record has images"),
    Case("ultrafeedback-binarized", R,
         {"prompt": "问", "chosen": [U, GOOD],
          "rejected": [U, BAD],
          "messages": [U, GOOD], "score_chosen": 8.0, "score_rejected": 2.0},
         PAIR),
    Case("stack-exchange-paired", R, {"question": "问", "response_j": "好", "response_k": "坏"}, PAIR),
]  # fmt: skip

OPENRLHF = [
    Case("sft-turns", D, {"input": [U, A]}, [ASKED, ANSWERED]),
    Case("sft-input-output", D, {"input": "问", "output": "答"}, [ASKED, ANSWERED]),
    Case("sft-turns-and-output", D, {"input": [U], "output": [A]},
         [ASKED, ANSWERED]),
    Case("openorca", D, {"id": "1", "system_prompt": "系", "question": "问", "response": "答"},
         [SYSTEM, ASKED, ANSWERED], unused=("id",)),
    Case("pretraining", T, {"text": "正文"}, "正文"),
    Case("reward-turns", R,
         {"chosen": [U, GOOD],
          "rejected": [U, BAD], "margin": 0.5}, PAIR),
    Case("reward-prompt", R, {"prompt": "问", "chosen": "好", "rejected": "坏"}, PAIR),
    Case("reward-hh", R,
         {"chosen": "\n\nHuman: 问\n\nAssistant: 好", "rejected": "\n\nHuman: 问\n\nAssistant: 坏"}, PAIR),
    Case("reward-margin-inverts", R, {"prompt": "问", "chosen": "好", "rejected": "坏", "margin": -1.0},
         refused="margin is negative"),
    Case("prompts", P, {"context_messages": [U]}, [ASKED]),
    Case("prompts-with-label", P, {"prompt": [U], "label": "42"}, [ASKED], unused=("label",)),
    Case("unpaired", R, {"instruction": "问", "response": "答", "score": 0.1, "label": False},
         refused="an unpaired preference (label)"),
    Case("process-reward", D, {"inputs": "步骤一", "labels": ["+"]},
         refused="no known layout among its keys"),
]  # fmt: skip

SWIFT = [
    Case("messages", D, {"messages": [SYS, U, A]},
         [SYSTEM, ASKED, ANSWERED]),
    Case("sharegpt", D, {"system": "系", "conversation": [{"human": "问", "assistant": "答"}]},
         [SYSTEM, ASKED, ANSWERED]),
    Case("alpaca", D, {"system": "系", "instruction": "问", "input": "补充", "output": "答"},
         [SYSTEM, ("user", "问\n补充"), ANSWERED]),
    Case("query-response", D, {"system": "系", "query": "问", "response": "答", "history": [["一", "二"]]},
         [SYSTEM, ("user", "一"), ("assistant", "二"), ASKED, ANSWERED]),
    Case("history-as-text", D, {"query": "问", "response": "答", "history": "[['一', '二']]"},
         [("user", "一"), ("assistant", "二"), ASKED, ANSWERED]),
    Case("messages-as-text", D, {"messages": json.dumps([U, A])},
         [ASKED, ANSWERED]),
    Case("pretraining", T, {"messages": [said("assistant", "正文")]}, "正文"),
    Case("loss", D,
         {"messages": [U, said("assistant", "错", loss=False), said("user", "再想"),
                       said("assistant", "答", loss=True)]},
         [ASKED, ("assistant", "错"), ("user", "再想"), ANSWERED]),
    Case("loss-by-axolotl", D,
         {"conversations": [spoken("human", "问") | {"train": True}, GPT | {"train": False},
                            spoken("human", "再想"), GPT | {"train": True}]},
         [ASKED, ANSWERED, ("user", "再想"), ANSWERED]),
    Case("rejected-response", R,
         {"messages": [SYS, U, GOOD], "rejected_response": "坏"},
         ([SYSTEM, ASKED], ("好", "坏"), (0, 1))),
    Case("rejected-messages", R,
         {"messages": [U, GOOD],
          "rejected_messages": [U, BAD]}, PAIR),
    Case("rejected-messages-of-another-prompt", R,
         {"messages": [U, GOOD],
          "rejected_messages": [said("user", "别的"), BAD]},
         refused="the dialogue and rejected_messages do not begin with the same prompt"),
    Case("query-rejected-response", R, {"query": "问", "response": "好", "rejected_response": "坏"}, PAIR),
    Case("kto", D, {"messages": [U, A], "label": False},
         refused="the answer is marked as a bad one (label: false)"),
    Case("ppo", P, {"messages": [SYS, U]}, [SYSTEM, ASKED]),
    Case("grpo-solution", P, {"messages": [U], "solution": "42"}, [ASKED], unused=("solution",)),
    Case("classification", D, {"messages": [U], "label": 1}, refused="the dialogue has no answer"),
    Case("embedding", D, {"messages": [U], "positive_messages": [[said("user", "同")]]},
         refused="pairs for embedding or reranking"),
    Case("images", D, {"messages": [said("user", "<image>问"), A], "images": ["a.png"]},
         refused="the record has images"),
    Case("grounding", D, {"messages": [U, A], "objects": {"ref": ["a"]}},
         refused="the record has objects"),
    Case("agent", D, {"messages": [U, said("tool_call", "{}"), said("tool_response", "{}")]},
         refused="a turn has an unknown role (tool_call)"),
    Case("tools", D, {"tools": "[{}]", "messages": [U, A]},
         refused="the record has tools"),
    Case("answer-in-two-fields", D, {"query": "问", "response": "答", "answer": "别的"},
         refused="response and answer could both be the answer: name one as columns.response"),
]  # fmt: skip

PEERS = {"llamafactory": FACTORY, "medicalgpt": MEDICAL, "trl": TRL, "openrlhf": OPENRLHF, "swift": SWIFT}
ALL = [pytest.param(case, id=f"{peer}-{case.name}") for peer, cases in PEERS.items() for case in cases]
# Prompts and pretraining turns look like dialogues, and marks need their field.
TOLD = [
    pytest.param(case, id=f"{peer}-{case.name}")
    for peer, cases in PEERS.items()
    for case in cases
    if not case.refused
    and case.name not in ("hh", "loss", "loss-by-axolotl")
    and case.kind is not P
    and not (case.kind is T and "messages" in case.record)
]


def plain(record: Record | Rejected) -> Any:
    assert not isinstance(record, Rejected), record.reason
    if isinstance(record, TextRecord):
        return record.text
    if isinstance(record, Ranking):
        return [(turn.role, turn.content) for turn in record.prompt], record.answers, record.ranks
    return [(turn.role, turn.content) for turn in record.turns]


@pytest.mark.parametrize("case", ALL)
def test_every_layout_that_peers_document_is_read_or_refused_by_name(case: Case) -> None:
    marks: dict[str, Any] = {"role_marks": "split"} if case.name == "hh" else {}
    stats = ReadStats()
    (found,) = read(json_lines([case.record]), case.kind, stats, format="jsonl", **marks)
    if case.refused:
        assert reason(found).startswith(case.refused)
        return
    assert plain(found) == case.reads
    if case.kind is not P:  # of prompts the answers are not used
        assert set(stats.unused.report()) == set(case.unused)


@pytest.mark.parametrize("case", TOLD)
def test_the_kind_of_a_documented_layout_is_told_from_its_records(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(json_lines([case.record]))
    (report,) = inspect_sources([str(path)]).sources
    assert report.kind is case.kind


@pytest.mark.parametrize("name", ["loss", "loss-by-axolotl"])
def test_loss_and_weight_are_kept_with_the_turns(name: str) -> None:
    case = next(case for case in SWIFT if case.name == name)
    found = one(case.record, case.kind)
    assert isinstance(found, Dialogue)
    assert [turn.learn for turn in found.turns if turn.role == "assistant"] == [False, True]


def test_other_readings_need_another_cache() -> None:
    """A layout read otherwise on purpose raises CACHE_VERSION; a new case changes the digest alone."""
    readings = hashlib.sha256()
    for case in (each for cases in PEERS.values() for each in cases):
        found = one(case.record, case.kind)
        learned = [turn.learn for turn in found.turns] if isinstance(found, Dialogue) else []
        readings.update(repr(("" if isinstance(found, Rejected) else plain(found), learned)).encode())
    assert (CACHE_VERSION, readings.hexdigest()[:12]) == (3, "1f085b6d9510")


def test_role_marks_inside_text_are_detected_and_offered_to_be_split() -> None:
    """BELLE's multi-turn set, one that marks turns with <user>: and <bot>:, OpenAssistant-Guanaco."""
    for text in (
        "Human:问一\nAssistant:答一\nHuman:问\nAssistant:",
        "<user>:问一<bot>:答一<user>:问<bot>:",
        "### Human: 问一### Assistant: 答一### Human: 问### Assistant:",
    ):
        case = Case("marks", D, {"instruction": text, "input": "", "output": "答"})
        refused = one(case.record, case.kind)
        assert isinstance(refused, Rejected)
        assert "roleMarks" in refused.reason
        split = one(case.record, case.kind, role_marks="split")
        assert plain(split) == [("user", "问一"), ("assistant", "答一"), ASKED, ANSWERED]
        kept = one(case.record, case.kind, role_marks="keep")
        assert plain(kept) == [("user", text), ANSWERED]
    for text in ("请总结：\nHuman: 甲\nAssistant: 乙", "患者：男，45岁，咳嗽三天", "Human: 甲\nHuman: 乙"):
        case = Case("no marks", D, {"instruction": text, "output": "答"})
        assert plain(one(case.record, case.kind)) == [("user", text), ANSWERED]


@pytest.mark.parametrize(
    ("record", "kind", "columns", "reads"),
    [
        ({"c": [spoken("human", "问")], "a": spoken("gpt", "好"), "b": spoken("gpt", "坏")}, R,
         {"messages": "c", "chosen": "a.value", "rejected": "b.value"}, PAIR),
        ({"c": [spoken("human", "问")], "a": spoken("gpt", "好"), "b": spoken("gpt", "坏")}, R,
         {"messages": "c", "chosen": "a", "rejected": "b"}, PAIR),
        ({"d": ["问", "答"]}, D, {"prompt": "d.0", "response": "d.1"}, [ASKED, ANSWERED]),
        ({"q.text": "问", "a": {"best": {"text": "答"}}}, D, {"prompt": "q.text", "response": "a.best.text"},
         [ASKED, ANSWERED]),
        ({"q": "问", "all": [{"t": "坏", "s": 1}, {"t": "好", "s": 9}]}, R,
         {"prompt": "q", "answers": "all.t", "scores": "all.s"}, ([ASKED], ("坏", "好"), (1, 0))),
    ],
)  # fmt: skip
def test_columns_have_paths(record: Any, kind: Kind, columns: Any, reads: Any) -> None:
    assert plain(one(record, kind, columns=columns)) == reads


def test_a_path_that_leads_nowhere_is_named() -> None:
    for path in ("d.1", "d.x", "e.text", "f"):
        found = one({"d": ["问"], "e": {}}, columns={"prompt": "d.0", "response": path})
        assert reason(found).startswith(f"the key {path!r} named under `columns` is missing")


def test_any_record_is_read_or_rejected_and_never_ends_the_job() -> None:
    """Known keys with values of any type: one record must not cost the others."""
    names = sorted({name for cases in PEERS.values() for case in cases for name in case.record})
    names += [
        "options",
        "questions",
        "answers",
        "scores",
        "ranks",
        "Complex_CoT",
        "data",
        "score_chosen",
        "title",
    ]
    words: list[Any] = ["问", "nan", "", "Human: 甲\nAssistant: 乙", "问：甲", "[1]", '["甲"]', "true"]
    others: list[Any] = [
        None,
        float("nan"),
        0,
        1,
        0.5,
        True,
        float("inf"),
        [],
        [[]],
        {},
        [None],
        [U, A],
        [U],
        A,
    ]

    def value(draw: random.Random, depth: int = 0) -> Any:
        if depth > 2 or draw.random() < 0.6:
            return draw.choice(words if draw.random() < 0.5 else others)
        if draw.random() < 0.5:
            return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
        keys = ("role", "content", "from", "value", "human", "assistant", "weight", "text", "score", "type")
        return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(4))}

    parsed = 0
    for seed in range(4000):
        draw = random.Random(seed)
        record = {draw.choice(names): value(draw) for _ in range(draw.randrange(1, 6))}
        columns = Columns() if draw.random() < 0.7 else Columns.model_validate(
            {key: f"{draw.choice(names)}{draw.choice(['', '.0', '.content'])}"
             for key in draw.sample(["prompt", "response", "messages", "answers", "scores", "text"], 2)}
        )  # fmt: skip
        marks: RoleMarks | None = draw.choice([None, "split", "keep"])
        with suppress(RejectedError):
            parse(record, columns, draw.choice(list(Kind)), marks)
            parsed += 1
    assert parsed > 100


def test_prompt_records_are_of_kind_prompts() -> None:
    assert isinstance(one({"prompt": "问"}, P), Prompt)
