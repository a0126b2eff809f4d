"""The interpreter and the platform against what the release was made for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.cli.diagnosis.packages import requires_python
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine


@dataclass(frozen=True, slots=True)
class Facts:
    """The interpreter: its version, what the package asks for, and where it runs."""

    version: str
    wanted: str
    system: str
    processor: str


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this interpreter."""
    yield judge(Facts(platform.python_version(), requires_python(), sys.platform, platform.machine()))


def judge(facts: Facts) -> Finding:
    """Python as wanted, on Linux."""
    from packaging.specifiers import SpecifierSet

    about = f"Python {facts.version} ({facts.wanted or 'any'} is asked for), {facts.system} {facts.processor}"
    if not SpecifierSet(facts.wanted).contains(facts.version, prereleases=True):
        return fails("python", about, machine.UNSUPPORTED_PYTHON)
    if facts.system != "linux":
        return warn(
            "python",
            f"{about}: zhongjing is tested on Linux only",
            machine.UNSUPPORTED_PYTHON,
            "run it on Linux, in a container or a virtual machine",
        )
    return fine("python", about)
