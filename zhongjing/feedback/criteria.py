"""The abilities that answers are ranked by, in their order of precedence (paper, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Ability:
    """One of the nine abilities; ``name`` is what is stored."""

    name: str
    dimension: str
    shown: str


ABILITIES: Final = (
    Ability("accuracy", "safety", "准确"),
    Ability("safety", "safety", "安全"),
    Ability("ethics", "safety", "伦理"),
    Ability("comprehension", "professionalism", "理解"),
    Ability("clarity", "professionalism", "清晰"),
    Ability("initiative", "professionalism", "主动询问"),
    Ability("coherence", "fluency", "连贯"),
    Ability("consistency", "fluency", "一致"),
    Ability("warmTone", "fluency", "语气温和"),
)

UNKNOWN_ANSWER: Final = "很抱歉，这个问题我不知道确切的答案，建议您到医院就诊，由医生当面判断。"
"""What an all-wrong set of answers gets as its best one unless the annotator writes it (paper, section 3)."""
