"""Quantities as Kubernetes writes them: ``512Mi``, ``80Gi``, ``1.5G``."""

from __future__ import annotations

import re

PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
_PARTS = re.compile(r"([0-9.]+)([A-Za-z]*)")
_FACTORS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), start=1)},
}


def to_bytes(quantity: str) -> int:
    """Bytes of a quantity that matches :data:`PATTERN`; a part of a byte counts as a whole one."""
    found = _PARTS.fullmatch(quantity)
    assert found is not None, quantity
    return -int(-float(found[1]) * _FACTORS[found[2]] // 1)


def from_bytes(number: int) -> str:
    """The largest unit that keeps the number above 1, one decimal: ``23.4Gi``. For messages."""
    for unit in ("Pi", "Ti", "Gi", "Mi", "Ki"):
        if number >= _FACTORS[unit]:
            return f"{number / _FACTORS[unit]:.1f}{unit}"
    return str(number)
