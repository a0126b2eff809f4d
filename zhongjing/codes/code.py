"""What a code is, and the groups that codes stand in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of error, as users meet it in messages, conditions and docs/troubleshooting.md.

    Attributes:
        name: in CamelCase, so that it may be the reason of a Kubernetes condition.
        summary: what is wrong, one sentence.
        cause: what usually brings it about.
        remedy: what to do; also the remedy of an error that names none of its own.
        exit_code: of a command that ends with it.
    """

    name: str
    summary: str
    cause: str
    remedy: str
    exit_code: int

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, ...]:
        return (_known, (self.name, self.summary, self.cause, self.remedy, self.exit_code))


def _known(name: str, summary: str, cause: str, remedy: str, exit_code: int) -> Code:
    """The catalogue's own object, so that ``is`` holds between processes; else another release's code."""
    from zhongjing.codes import find

    return find(name) or Code(name, summary, cause, remedy, exit_code)


@dataclass(slots=True)
class Group:
    """Codes of one area that end a command with the same exit code."""

    title: str
    exit_code: int
    codes: list[Code] = field(default_factory=list)

    def code(self, name: str, summary: str, *, cause: str, remedy: str) -> Code:
        """Defines a code of this group."""
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", name), name
        made = Code(name, summary, cause, remedy, self.exit_code)
        self.codes.append(made)
        return made
