"""Processor cores and what else keeps them busy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from zhongjing.backends.local.cgroups import read_limits
from zhongjing.cli.diagnosis.finding import Finding, fine, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine

NEEDED = 2  # cores: the tiny pipeline has two workers


@dataclass(frozen=True, slots=True)
class Facts:
    """Cores of the machine, of this process (affinity), of the container, and the load of a minute."""

    machine: int
    usable: int
    quota: float | None
    load: float


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this machine."""
    yield judge(gather())


def gather() -> Facts:
    """Counts cores."""
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return Facts(count, usable, read_limits().cpus, os.getloadavg()[0])


def judge(facts: Facts) -> Finding:
    """Enough cores, and not too busy."""
    cores = min(facts.usable, facts.quota or facts.usable)
    about = f"{cores:g} cores"
    if facts.quota is not None and facts.quota < facts.usable:
        about += f" by the container's limit, of {facts.machine}"
    elif facts.usable < facts.machine:
        about += f" by the process's affinity, of {facts.machine}"
    about += f", load {facts.load:.1f}"
    if cores < NEEDED:
        return warn("cores", f"{about}; the tiny pipeline's {NEEDED} workers take turns", machine.FEW_CORES)
    # The load counts the whole machine's programs, not only the container's.
    if facts.load > 2 * facts.machine:
        return warn("cores", f"{about}: other programs keep them busy", machine.FEW_CORES)
    return fine("cores", about)
