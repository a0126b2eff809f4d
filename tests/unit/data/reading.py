"""Records and files read as a source of a kind; small synthetic inputs after public bug reports."""

from __future__ import annotations

import json
from typing import Any, cast

from tests.unit.data.support import MemoryStore, json_lines
from zhongjing.config.sources import Kind, Source
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Dialogue, Prompt, Record, Rejected

AILMENTS = ("高血压", "糖尿病", "胃炎", "湿疹", "便秘", "失眠", "哮喘", "偏头痛", "颈椎病", "感冒")


def pairs(count: int, start: int = 1) -> list[dict[str, Any]]:
    """Questions and answers that differ from each other."""
    return [
        {
            "instruction": f"我得了{AILMENTS[number % 10]}，已经{number}天了，应该怎么办？",
            "input": "",
            "output": f"建议您先到医院检查，{AILMENTS[number % 10]}要按时吃药，第{number}天后复查。",
        }
        for number in range(start, start + count)
    ]


def dumps(value: object, **how: Any) -> str:
    """JSON with Chinese as it is."""
    return json.dumps(value, ensure_ascii=False, **how)


def table(count: int, start: int = 1) -> list[str]:
    """Lines of a table without its header."""
    return [f"{pair['instruction']},{pair['output']}" for pair in pairs(count, start)]


def read(
    data: str | bytes, kind: Kind = Kind.DIALOGUE, stats: ReadStats | None = None, **fields: Any
) -> list[Record | Rejected]:
    """The records of a file."""
    source = Source.model_validate({"name": "x", "uri": "s3://b/x", "kind": kind, **fields})
    store = MemoryStore()
    store.put("s3://b/x", data if isinstance(data, bytes) else data.encode())
    return list(read_object("s3://b/x", source, cast("Any", store), stats=stats))


def one(record: Any, kind: Kind = Kind.DIALOGUE, **fields: Any) -> Record | Rejected:
    """A record as JSON lines have it."""
    (found,) = read(json_lines([record]), kind, format="jsonl", **fields)
    return found


def turns(record: Record | Rejected) -> list[tuple[str, str]]:
    """Role and content of the turns of a record that was read."""
    assert isinstance(record, Dialogue | Prompt), record
    return [(turn.role, turn.content) for turn in record.turns]


def reason(record: Record | Rejected) -> str:
    """Why a record was rejected."""
    assert isinstance(record, Rejected), record
    return record.reason


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A turn by OpenAI's keys."""
    return {"role": role, "content": content, **more}
