"""The interpreter and the installed packages, against what the package's metadata ask for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command, machine

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "zhongjing"
TRAIN = "train"


def check_python(situation: Situation) -> Iterable[Finding]:
    """Looks at this interpreter."""
    try:
        wanted = metadata.metadata(NAME)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        wanted = ""
    yield judge_python(platform.python_version(), wanted, f"{sys.platform} {platform.machine()}")


def judge_python(version: str, wanted: str, system: str) -> Finding:
    """Python as asked for, on Linux."""
    from packaging.specifiers import SpecifierSet

    about = f"Python {version} ({wanted or 'any'} is asked for), {system}"
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return fails("python", about, machine.UNSUPPORTED_PYTHON)
    if not system.startswith("linux"):
        remedy = "run it on Linux, in a container or a virtual machine"
        return warn("python", f"{about}: only Linux is tested", machine.UNSUPPORTED_PYTHON, remedy)
    return fine("python", about)


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this environment: the command line's packages, and training's where runs happen here."""
    try:
        texts = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        said = "zhongjing runs from a folder and is not installed: its requirements are not known"
        remedy = "pip install --editable '.[train]' in the folder of the checkout"
        yield warn("packages", said, command.MISSING_PACKAGE, remedy)
        return
    versions: dict[str, str] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"] if found.metadata else None
        if name:  # the first on the path is the one that is imported
            versions.setdefault(_normalised(name), found.version)
    yield from judge(texts, versions, local=situation.local)


def judge(texts: Iterable[str], versions: dict[str, str], *, local: bool) -> Iterator[Finding]:
    """The requirements (PEP 508) against the versions, by normalised name (PEP 503)."""
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in texts]
    plain = [each for each in asked if _applies(each, "")]
    extra = [each for each in asked if _applies(each, TRAIN) and each not in plain]
    groups = [("packages", plain, "pip install --upgrade zhongjing")]
    if local:
        groups.append(("packages train", extra, f"pip install --upgrade 'zhongjing[{TRAIN}]'"))
    for name, listed, remedy in groups:
        wrong = [said for each in listed if (said := _fault(each, versions)) is not None]
        missing = any(said.endswith("missing") for said in wrong)
        code = command.MISSING_PACKAGE if missing else machine.UNTESTED_PACKAGES
        if wrong:
            yield fails(name, f"not as zhongjing asks for: {', '.join(wrong)}", code, remedy)
        else:
            yield fine(name, f"{len(listed)} packages are within their ranges")


def _fault(asked: Requirement, versions: dict[str, str]) -> str | None:
    there = versions.get(_normalised(asked.name))
    if there is None:
        return f"{asked.name} is missing"
    if asked.specifier.contains(there, prereleases=True):
        return None
    return f"{asked.name} {there} (asked for: {asked.specifier})"


def _applies(asked: Requirement, extra: str) -> bool:
    return asked.marker is None or asked.marker.evaluate({"extra": extra})


def _normalised(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)
