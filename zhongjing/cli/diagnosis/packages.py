"""Installed packages: what the package's metadata ask for, and the versions that the tests ran with.

The ranges of the metadata always count. ``constraints.txt`` is looked at where it lies beside a checkout; of
its names only those count that zhongjing needs, itself or through others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import zhongjing
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command, machine

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "zhongjing"
TRAIN = "train"
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed package: its version and its requirements (PEP 508)."""

    version: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is installed, by normalised name, and what it is held against.

    Attributes:
        installed: every distribution of the environment.
        constraints: the tested versions; none without a checkout.
    """

    installed: Mapping[str, Distribution]
    constraints: Mapping[str, str] | None


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this environment."""
    return judge(gather(), local=situation.local)


def requires_python() -> str:
    """What the package's metadata say of Python, e.g. ``<3.14,>=3.11``; empty where it is not installed."""
    try:
        return metadata.metadata(NAME)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return ""


def gather() -> Facts:
    """Reads the metadata of the environment, and the constraints of the checkout."""
    installed: dict[str, Distribution] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"] if found.metadata else None
        if name and normalised(name) not in installed:  # the first on the path is the one that is imported
            installed[normalised(name)] = Distribution(found.version, tuple(found.requires or ()))
    root = Path(zhongjing.__file__).absolute().parent.parent
    file = root / "constraints.txt"
    is_checkout = (root / "pyproject.toml").is_file() and file.is_file()
    return Facts(installed, parse_constraints(file.read_text(encoding="utf-8")) if is_checkout else None)


def parse_constraints(text: str) -> dict[str, str]:
    """The pins of a constraints file, by normalised name."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, flags=re.MULTILINE)
    return {normalised(name): version for name, version in pins}


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def judge(facts: Facts, *, local: bool) -> list[Finding]:
    """The command line's packages, training's packages, and the tested versions."""
    if NAME not in facts.installed:
        return [
            warn(
                "packages",
                "zhongjing runs from a folder and is not installed: its requirements are not known",
                command.MISSING_PACKAGE,
                "pip install --editable '.[train]' in the folder of the checkout",
            )
        ]
    own = [_parsed(text) for text in facts.installed[NAME].requires]
    findings = [_command_line(facts, own), _training(facts, own, local=local)]
    if facts.constraints is not None:
        findings.append(_tested(facts, facts.constraints))
    return findings


def _command_line(facts: Facts, own: list[Requirement]) -> Finding:
    wanted = [each for each in own if _applies(each, "")]
    problems = _problems(facts, wanted)
    if problems:
        return fails(
            "packages",
            f"not as zhongjing asks for: {_listed(problems)}",
            command.MISSING_PACKAGE,
            "pip install --upgrade zhongjing",
        )
    return fine("packages", f"{len(wanted)} packages of the command line are within their ranges")


def _training(facts: Facts, own: list[Requirement], *, local: bool) -> Finding:
    wanted = [each for each in own if _applies(each, TRAIN) and not _applies(each, "")]
    missing = [each.name for each in wanted if normalised(each.name) not in facts.installed]
    if missing:
        what = "is not installed" if len(missing) == len(wanted) else f"lacks {_listed(missing)}"
        return lacks(
            "packages train",
            f"the extra [{TRAIN}] {what}: runs on this machine, chat and data inspect need it",
            command.MISSING_PACKAGE,
            "pip install 'zhongjing[train]'",
            serious=local,
        )
    problems = _problems(facts, wanted)
    if problems:
        return lacks(
            "packages train",
            f"not as zhongjing asks for: {_listed(problems)}",
            machine.UNTESTED_PACKAGES,
            "pip install --upgrade 'zhongjing[train]'",
            serious=local,
        )
    contradictions = _contradictions(facts, own)
    if contradictions:
        return warn(
            "packages train",
            f"packages contradict each other: {_listed(contradictions)}",
            machine.UNTESTED_PACKAGES,
        )
    return fine("packages train", f"{len(wanted)} packages of the extra [{TRAIN}] are within their ranges")


def _tested(facts: Facts, pins: Mapping[str, str]) -> Finding:
    needed = [name for name in _closure(facts) if name in pins]
    others = [
        f"{name} {facts.installed[name].version} (tested: {pins[name]})"
        for name in needed
        if not _within(facts.installed[name].version, f"=={pins[name]}")
    ]
    if others:
        return warn(
            "packages tested",
            f"{len(others)} of {len(needed)} are not the tested version: {_listed(others)}",
            machine.UNTESTED_PACKAGES,
            "pip install --constraint constraints.txt --editable '.[train]' in the folder of the checkout",
        )
    return fine("packages tested", f"{len(needed)} packages have the versions of constraints.txt")


def _problems(facts: Facts, wanted: Iterable[Requirement]) -> list[str]:
    found = []
    for each in wanted:
        there = facts.installed.get(normalised(each.name))
        if there is None:
            found.append(f"{each.name} is missing")
        elif not _within(there.version, str(each.specifier)):
            found.append(f"{each.name} {there.version} (asked for: {each.specifier})")
    return found


def _contradictions(facts: Facts, own: list[Requirement]) -> list[str]:
    """What the packages that zhongjing needs miss of each other, as ``pip check`` would tell."""
    found = []
    for name, extras in _closure(facts).items():
        if name == NAME:
            continue
        for text in facts.installed[name].requires:
            each = _parsed(text)
            if any(_applies(each, extra) for extra in ("", *extras)):
                found += [f"{name} needs {each.name}: {said}" for said in _problems(facts, [each])]
    return found


def _closure(facts: Facts) -> dict[str, set[str]]:
    """Installed packages that zhongjing[train] needs, and itself, with the extras that are asked of them."""
    reached: dict[str, set[str]] = {NAME: {TRAIN}}
    waiting = [NAME]
    while waiting:
        name = waiting.pop()
        for text in facts.installed[name].requires:
            each = _parsed(text)
            if not any(_applies(each, extra) for extra in ("", *reached[name])):
                continue
            target = normalised(each.name)
            if target not in facts.installed:
                continue
            extras = reached.get(target)
            if extras is None or not each.extras <= extras:
                reached[target] = (extras or set()) | each.extras
                waiting.append(target)
    return reached


def _parsed(text: str) -> Requirement:
    from packaging.requirements import Requirement

    return Requirement(text)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _within(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
