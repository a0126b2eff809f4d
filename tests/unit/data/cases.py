"""Small inputs, synthetic, of the kinds that public bug reports of peers describe."""

from __future__ import annotations

import json
from typing import Any

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
