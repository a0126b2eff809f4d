"""GPUs by name: usable memory and peak speed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError

GIB = 2**30
USABLE = 0.975
"""Part of a GPU's nominal memory that a process gets: the driver and the CUDA context keep the rest."""
DEFAULT_UTILISATION = 0.4
"""Part of the peak speed that training reaches where no throughput is given."""

# Dense fp16/bf16 peaks of the vendor's data sheets, in FLOP/s.
_PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "A800": 312e12, "H800": 989e12, "L40S": 362e12}
_MEMORY = {"H100": 80, "H200": 141, "L40S": 48}
_FORM = re.compile(r"(?:(?P<count>\d+)[xX])?(?P<name>[A-Za-z][A-Za-z0-9]*)(?:-(?P<memory>\d+)G[Bi]?B?)?")


def size_text(size: int) -> str:
    """Bytes as text: ``812 MiB``, ``13.5 GiB``."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind; bytes that one has for a process; FLOP/s of one, None if not known."""

    count: int
    name: str
    usable: int
    peak: float | None


def parse_gpus(text: str) -> Gpus:
    """``4xA100-80G``: count, name, memory in GB. The memory may be left out where the name tells it.

    Raises:
        ConfigError: it is none of that.
    """
    found = _FORM.fullmatch(text)
    name = found["name"].upper() if found else ""
    memory = int(found["memory"]) if found and found["memory"] else _MEMORY.get(name)
    count = int(found["count"] or 1) if found else 0
    if not memory or count < 1:
        raise ConfigError(
            f"{text!r} names no GPUs",
            code=INVALID_OPTION,
            where="--gpus",
            remedy="write count, name and memory: 4xA100-80G",
        )
    return Gpus(count, name, int(memory * GIB * USABLE), _PEAKS.get(name))


def gpus_of(count: int, memory: int, name: str = "GPU") -> Gpus:
    """GPUs of so many bytes each, as the driver counts them; their speed is not known."""
    return Gpus(count, name, int(memory * USABLE), None)
