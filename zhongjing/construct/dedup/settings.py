"""What decides which records are taken for duplicates or leaks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.data.leaks import LEAST, RUN
from zhongjing.errors import ConfigError

PERMUTATIONS = 128
"""Values of a signature. The estimate of a similarity of 0.8 is off by 0.035 (one standard deviation)."""
LENGTH = 5
"""Characters of a run for near duplicates."""
SEED = 42
_FOUND = 0.995  # of pairs that are exactly as similar as the threshold, so many are to be compared


@dataclass(frozen=True)
class DedupSettings:
    """How alike is too alike.

    Attributes:
        threshold: Jaccard similarity of the sets of runs, from which on the later record is left out.
        overlap: fraction of a test passage's runs that a record may not have.
    """

    threshold: float = 0.8
    overlap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("threshold", "overlap"):
            value = getattr(self, name)
            if not 0.3 <= value <= 1:
                raise ConfigError(
                    f"{name} is a fraction from 0.3 to 1, not {value:g}",
                    code=INVALID_OPTION,
                    where=f"--{name}",
                )

    @cached_property
    def rows(self) -> int:
        """Values of a signature in a band: as many as still bring pairs at the threshold together."""
        fitting = [
            rows
            for rows in range(1, PERMUTATIONS + 1)
            if 1 - (1 - self.threshold**rows) ** (PERMUTATIONS // rows) >= _FOUND
        ]
        return max(fitting)

    @property
    def bands(self) -> int:
        """Bands of a signature; records with an equal band are compared."""
        return PERMUTATIONS // self.rows

    def parameters(self) -> dict[str, object]:
        """All that decides, as JSON."""
        return {
            "threshold": self.threshold,
            "length": LENGTH,
            "permutations": PERMUTATIONS,
            "seed": SEED,
            "overlap": self.overlap,
            "run": RUN,
            "least": LEAST,
        }
