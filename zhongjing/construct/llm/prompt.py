"""Prompts: files in Chinese, ``prompts/NAME-VERSION.md``, loaded by name and version.

A released file is never changed: what changes is a new version, and old data name the one that made them.
Three sections, ``# 系统``, ``# 用户`` and ``# 重试``: the system turn, the user turn (both with
``{{placeholders}}``), and what the model is told when its answer did not pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zhongjing.codes import language_model as codes
from zhongjing.errors import ConfigError

_FOLDER = Path(__file__).parent / "prompts"
_SECTION = re.compile(r"^# (系统|用户|重试)$", re.MULTILINE)
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of one version; ``digest``: sha256 of the file's text."""

    name: str
    version: int
    system: str
    user: str
    retry: str
    digest: str

    @property
    def label(self) -> str:
        """Name and version, for lineage and messages."""
        return f"{self.name}-{self.version}"

    def opening(self, values: Mapping[str, str]) -> tuple[dict[str, str], ...]:
        """The first messages, placeholders filled in."""
        return (
            {"role": "system", "content": _filled(self.system, values)},
            {"role": "user", "content": _filled(self.user, values)},
        )

    def again(self, answer: str, fault: str) -> tuple[dict[str, str], ...]:
        """The messages that follow an answer that did not pass; ``fault`` tells the model why."""
        return (
            {"role": "assistant", "content": answer},
            {"role": "user", "content": _filled(self.retry, {"reason": fault})},
        )


def _filled(text: str, values: Mapping[str, str]) -> str:
    # One pass: what is filled in may hold braces of its own.
    return _PLACE.sub(lambda match: values[match[1]], text)


def load_prompt(name: str, version: int, folder: Path = _FOLDER) -> Prompt:
    """A prompt by name and version.

    Raises:
        ConfigError: there is no such file (the message lists the versions), or a section is missing.
    """
    path = folder / f"{name}-{version}.md"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.md"))
        raise ConfigError(
            f"there is no prompt {name}-{version}; there are {', '.join(known)}",
            code=codes.UNKNOWN_PROMPT,
            where=str(folder),
        )
    text = path.read_text(encoding="utf-8")
    parts = _SECTION.split(text)
    sections = {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    if set(sections) != {"系统", "用户", "重试"}:
        raise ConfigError(
            "a prompt has the sections # 系统, # 用户 and # 重试, each once",
            code=codes.UNKNOWN_PROMPT,
            where=str(path),
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(name, version, sections["系统"], sections["用户"], sections["重试"], digest)
