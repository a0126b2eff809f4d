from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.data.reading import one, read, reason, turns
from tests.unit.data.support import MemoryStore, json_lines
from zhongjing.config.sources import Kind, Source
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Dialogue, Ranking, Rejected, TextRecord, Turn
from zhongjing.data.streams import READ_BYTES, open_object
from zhongjing.errors import DataError, MissingInputError
from zhongjing.storage.objects import ObjectStore

U, A, S = "user", "assistant", "system"


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "问", "input": "", "output": "答"},
        {"instruction": ["问"], "input": "", "output": ["答"], "id": ""},
        {"instruction": "问", "input": "", "output": "答", "history": []},
        {"instruction": "问", "output": "答", "history": None},
        {"instruct": " 问\n", "output": "\t答 "},
        {"问": "问", "答": "答"},
        {"question": "问", "answer": "答"},
        {"prompt": "问", "response": "答"},
        {"department": "内科", "title": "题", "ask": "问", "answer": "答"},
        {"department": "内科", "title": "问", "ask": "nan", "answer": "答"},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        {
            "messages": [
                {"role": "User", "content": [{"type": "text", "text": "问"}]},
                {"role": "bot", "content": "答"},
            ]
        },
        [{"role": "患者", "content": "问"}, {"role": "医生", "content": "答"}],
    ],
)
def test_single_turn_layouts_give_the_same_dialogue(record: Any) -> None:
    assert turns(one(record)) == [(U, "问"), (A, "答")]


def test_history_input_and_system() -> None:
    record = {
        "system": "你是医生",
        "instruction": "问二",
        "input": "补充",
        "output": "答二",
        "history": [["问一", "答一"]],
    }
    assert turns(one(record)) == [(S, "你是医生"), (U, "问一"), (A, "答一"), (U, "问二\n补充"), (A, "答二")]
    talk = [
        {"from": "system", "value": "你是医生"},
        {"from": "human", "value": "问"},
        {"from": "gpt", "value": "答"},
    ]
    assert turns(one({"conversations": talk, "system": ""})) == [(S, "你是医生"), (U, "问"), (A, "答")]
    roles = {
        "instruction": "问二",
        "output": "答二",
        "history": [{"role": "user", "content": "问一"}, {"role": "assistant", "content": "答一"}],
    }
    assert turns(one(roles))[:2] == [(U, "问一"), (A, "答一")]


@pytest.mark.parametrize(
    ("fields", "department"),
    [
        ({"cate1": "外科", "cate2": "骨科"}, "外科"),
        ({"cate1": "nan", "cate2": "骨科"}, "骨科"),
        ({"cate1": "nan", "cate2": ""}, None),
        ({"cate1": float("nan")}, None),
        ({"department": " 内科 "}, "内科"),
        ({}, None),
    ],
)
def test_departments(fields: dict[str, Any], department: str | None) -> None:
    found = one({"instruction": "问", "output": "答", **fields})
    assert isinstance(found, Dialogue)
    assert found.department == department


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "问", "output": ""}, "the answer is empty"),
        ({"instruction": "  ", "output": "答"}, "the question is empty"),
        ({"instruction": "问", "output": None}, "the answer is missing"),
        ({"instruction": "问", "output": 5}, "the answer is not a text"),
        (
            {"instruction": ["问", "二"], "output": "答"},
            "the question is a list of 2 elements, one is expected",
        ),
        (
            {"instruction": "问", "output": "答", "history": [["只有问"]]},
            "history contains something other than pairs",
        ),
        ({"instruction": "问", "output": "答", "history": "x"}, "history is not a list"),
        ({"some": "keys", "nobody": "knows"}, "no known layout among its keys"),
        (5, "the record is neither a mapping nor a list of turns"),
        ({"conversations": [{"from": "human", "value": "问"}]}, "the dialogue has no answer"),
        ({"conversations": []}, "the dialogue has no turns"),
        (
            {"conversations": [{"from": "gpt", "value": "答"}, {"from": "human", "value": "问"}]},
            "roles are out of order",
        ),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "human", "value": "问"}]},
            "roles are out of order",
        ),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "system", "value": "系"}]},
            "a system turn comes after",
        ),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "a turn has an unknown role (tool)"),
        (
            {"conversations": [{"角色": "患者家属代表", "内容": "x"}]},
            "a turn has an unknown role (患者家属代表) under its key 角色",
        ),
        (
            {"conversations": [{"from": "很" * 30, "value": "x"}]},
            f"a turn has an unknown role ({'很' * 19}…) under its key from",
        ),
        (
            {"conversations": [{"谁": "患者", "说": "x"}]},
            "a turn has an unknown role: none of its keys (说, 谁) is one of role, from, 角色, 说话人",
        ),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": " "}]},
            "a turn is empty",
        ),
        ({"conversations": ["问", "答"]}, "a turn is not a mapping"),
        (
            {"question": "问", "answers": ["甲", "乙"]},
            "the record ranks answers; the source is of kind dialogue",
        ),
        ({"instruction": "问\ud83d", "output": "答"}, "the question contains half of a surrogate pair"),
    ],
)
def test_reasons_of_rejection(record: Any, expected: str) -> None:
    found = read(json.dumps(record).encode() + b"\n", Kind.DIALOGUE, format="jsonl")
    assert reason(found[0]).startswith(expected)


@pytest.mark.parametrize(("role", "content"), [("角色", "内容"), ("说话人", "发言"), ("role", "content")])
@pytest.mark.parametrize(("asks", "answers"), [("患者", "医生"), ("问", "答"), ("病人", "大夫")])
@pytest.mark.parametrize("bare", [False, True])
def test_turns_of_chinese_keys_and_roles(
    role: str, content: str, asks: str, answers: str, bare: bool
) -> None:
    turns = [{role: asks, content: "头痛"}, {role: answers, content: "休息"}]
    data: list[Any] = [turns, turns] if bare else [{"对话": turns}]
    columns = None if bare else {"messages": "对话"}
    found = read(json_lines(data), Kind.DIALOGUE, columns=columns or {})
    assert [isinstance(each, Dialogue) and [turn.content for turn in each.turns] for each in found] == [
        ["头痛", "休息"]
    ] * len(data)


def test_a_last_question_without_an_answer_is_left_out_and_counted() -> None:
    talk = [
        {"from": "human", "value": "问"},
        {"from": "gpt", "value": "答"},
        {"from": "human", "value": "再问"},
    ]
    stats = ReadStats()
    found = read(json_lines([{"conversations": talk}]), Kind.DIALOGUE, stats)
    assert turns(found[0]) == [(U, "问"), (A, "答")]
    assert stats.truncated == 1


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "问", "chosen": "好", "rejected": "坏"},
        {"question": "问", "response_chosen": "好", "response_rejected": "坏"},
        {"conversations": [{"from": "human", "value": "问"}], "chosen": "好", "rejected": "坏"},
        {
            "prompt": [{"role": "user", "content": "问"}],
            "chosen": [{"role": "assistant", "content": "好"}],
            "rejected": [{"role": "assistant", "content": "坏"}],
        },
        {
            "chosen": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "好"}],
            "rejected": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "坏"}],
        },
        {"prompt": "问", "answers": ["好", "坏"]},
        {"instruction": "问", "answers": [{"text": "好"}, {"content": "坏"}]},
        {"messages": [{"role": "user", "content": "问"}], "answers": ["好", "坏"], "ranks": [1, 2]},
    ],
)
def test_preferences_are_rankings_of_two(record: Any) -> None:
    found = one(record, Kind.RANKING)
    assert isinstance(found, Ranking)
    assert found.prompt == (Turn("user", "问"),)
    assert (found.answers, found.ranks) == (("好", "坏"), (0, 1))


def test_ranks_tell_order_and_ties() -> None:
    found = one({"prompt": "问", "answers": ["甲", "乙", "丙", "丁"], "ranks": [3, 1, 3, 7]}, Kind.RANKING)
    assert isinstance(found, Ranking)
    assert found.ranks == (1, 0, 1, 2)
    found = one(
        {"prompt": "问", "answers": [{"text": "甲", "rank": 2}, {"text": "乙", "rank": 1}]}, Kind.RANKING
    )
    assert isinstance(found, Ranking)
    assert found.ranks == (1, 0)


def test_a_system_turn_stays_before_the_prompt_of_a_preference() -> None:
    talk = [{"from": "system", "value": "系"}, {"from": "human", "value": "问"}]
    found = one({"conversations": talk, "chosen": "好", "rejected": "坏"}, Kind.RANKING)
    assert isinstance(found, Ranking)
    assert [turn.role for turn in found.prompt] == ["system", "user"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "问", "answers": ["甲"]}, "only one answer is ranked"),
        ({"prompt": "问", "answers": ["甲", "甲 "]}, "two of the answers are equal"),
        ({"prompt": "问", "answers": ["甲", "乙"], "ranks": [1, 1]}, "all answers tie"),
        ({"prompt": "问", "answers": ["甲", "乙"], "ranks": [1]}, "ranks and answers are not equally many"),
        ({"prompt": "问", "answers": ["甲", "乙"], "ranks": [1, "x"]}, "a rank is not a number"),
        ({"prompt": "问", "answers": ["甲", ""]}, "an answer is empty"),
        ({"prompt": "问", "chosen": "同", "rejected": "同"}, "two of the answers are equal"),
        ({"chosen": "好", "rejected": "坏"}, "chosen and rejected have no prompt"),
        ({"prompt": "问", "response": "答"}, "the record has no ranked answers"),
        (
            {
                "chosen": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "好"}],
                "rejected": [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "坏"}],
            },
            "chosen and rejected do not begin with the same prompt",
        ),
    ],
)
def test_rankings_that_cannot_be_compared(record: Any, expected: str) -> None:
    assert reason(one(record, Kind.RANKING)).startswith(expected)


def test_prompts_from_anything_with_a_question() -> None:
    talk = [
        {"from": "human", "value": "一"},
        {"from": "gpt", "value": "答"},
        {"from": "human", "value": "二"},
    ]
    assert turns(one({"prompt": "问"}, Kind.PROMPTS)) == [(U, "问")]
    assert turns(one({"instruction": "问", "output": "答"}, Kind.PROMPTS)) == [(U, "问")]
    assert turns(one({"conversations": talk}, Kind.PROMPTS)) == [(U, "一"), (A, "答"), (U, "二")]
    assert turns(one({"prompt": "问", "chosen": "好", "rejected": "坏"}, Kind.PROMPTS)) == [(U, "问")]
    lines = read("头痛怎么办\n\n发烧怎么办\n".encode(), Kind.PROMPTS)
    assert [turns(line) for line in lines] == [[(U, "头痛怎么办")], [(U, "发烧怎么办")]]


def test_text_from_texts_and_dialogues() -> None:
    found = one({"text": " 正文 "}, Kind.TEXT)
    assert isinstance(found, TextRecord)
    assert found.text == "正文"
    found = one({"问": "问", "答": "答"}, Kind.TEXT)
    assert isinstance(found, TextRecord)
    assert found.text == "问\n答"


def test_plain_text_is_no_dialogue() -> None:
    for kind in (Kind.DIALOGUE, Kind.RANKING):
        assert (
            reason(one({"text": "正文"}, kind)) == f"the record is plain text; the source is of kind {kind}"
        )
        assert reason(read("第一行\n".encode(), kind)[0]).startswith("the record is plain text")


def test_columns_name_any_other_keys() -> None:
    record = {"q": "问", "a": "答", "d": "nan", "s": "系", "answer": "不用"}
    columns = {"prompt": "q", "response": "a", "department": "d", "system": "s"}
    found = one(record, columns=columns)
    assert turns(found) == [(S, "系"), (U, "问"), (A, "答")]
    assert isinstance(found, Dialogue)
    assert found.department is None
    assert reason(one({"q": "问"}, columns=columns)).startswith(
        "the key 'a' named under `columns` is missing"
    )
    ranked = one({"q": "问", "best": ["甲", "乙"]}, Kind.RANKING, columns={"prompt": "q", "answers": "best"})
    assert isinstance(ranked, Ranking)
    pair = one(
        {"q": "问", "w": "好", "l": "坏"},
        Kind.RANKING,
        columns={"prompt": "q", "chosen": "w", "rejected": "l"},
    )
    assert isinstance(pair, Ranking)
    text = one({"t": "正文"}, Kind.TEXT, columns={"text": "t"})
    assert isinstance(text, TextRecord)
    chat = one(
        {"talk": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        columns={"messages": "talk"},
    )
    assert turns(chat) == [(U, "问"), (A, "答")]


def test_rejections_hold_the_hash_and_never_the_text_unless_kept() -> None:
    secret = "张三患有糖尿病"
    data = json_lines([{"instruction": secret, "output": ""}, {"instruction": "问", "output": "答"}])
    rejected, kept = read(data, Kind.DIALOGUE)
    assert isinstance(rejected, Rejected)
    assert isinstance(kept, Dialogue)
    raw = data.split(b"\n")[0]
    assert rejected.sha256 == hashlib.sha256(raw).hexdigest()
    line = json.loads(rejected.as_json())
    assert line == {
        "source": "x",
        "uri": "s3://b/x",
        "index": 0,
        "line": 1,
        "code": "UnusableRecord",
        "reason": "the answer is empty",
        "sha256": rejected.sha256,
    }
    assert "text" not in line
    kept_text = read(data, Kind.DIALOGUE, keep_text=True)[0]
    assert isinstance(kept_text, Rejected)
    assert json.loads(kept_text.as_json())["text"] == raw.decode()


def test_every_reason_is_free_of_the_record() -> None:
    secret = "秘密病历"
    records: list[Any] = [
        {secret: secret},
        {"conversations": [{"from": secret, "value": secret}]},
        {"instruction": secret, "output": [secret, secret]},
        {"prompt": secret, "answers": [secret, secret]},
        {"history": [secret], "instruction": secret, "output": secret},
        [secret],
    ]
    for kind in Kind:
        for found in read(json_lines(records) + f'{{"{secret}": \n'.encode(), kind):
            if isinstance(found, Rejected):
                assert secret not in found.as_json()


def test_an_object_is_read_in_large_ranges_and_never_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert READ_BYTES >= 4 << 20  # smaller ranges are several times slower
    monkeypatch.setattr("zhongjing.data.streams.READ_BYTES", 1 << 20)
    store = MemoryStore()
    line = json.dumps({"question": "q" * 1000, "answer": "a" * 1000}).encode() + b"\n"
    store.put("s3://b/big", line * ((2 << 20) // len(line) + 10))
    source = Source(name="x", uri="s3://b/big", kind=Kind.DIALOGUE)
    count = len(list(read_object("s3://b/big", source, cast("ObjectStore", store))))
    assert count == len(store.objects["s3://b/big"]) // len(line)
    fetched = [length for _, _, length in store.ranges]
    assert max(fetched) == 1 << 20
    assert sum(fetched) < 1.6 * len(store.objects["s3://b/big"])  # the head is read twice, no more


def test_missing_and_damaged_objects_name_their_uri(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        open_object(str(tmp_path / "nowhere.json"))
    with pytest.raises(MissingInputError, match="s3://b/none"):
        open_object("s3://b/none", MemoryStore())  # type: ignore[arg-type]
    path = tmp_path / "cut.json"
    path.write_text('[{"question": "q", "answer": "a"}, {"quest')
    source = Source(name="x", uri=str(path), kind=Kind.DIALOGUE)
    with pytest.raises(DataError, match=r"cut\.json.*has no end"):
        list(read_object(str(path), source))


def test_reading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, zhongjing.data.readers, zhongjing.data.inspect, zhongjing.data.split\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
