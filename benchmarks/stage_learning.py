"""Did every stage learn? Held-out figures of a finished run beside what knows nothing.

::

    python benchmarks/stage_learning.py tiny --workdir ./zhongjing-runs

Prints for each stage the held-out metric before and after, their ratio, and the figure on test data; for
pretraining also the entropy of a unigram model of the training tokens on the same held-out tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from zhongjing.backends.local.session import LocalSession
from zhongjing.config.stages import Stage
from zhongjing.data.tokens import TokenSplit, open_split
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.objects import ObjectStore

_SHOWN = {
    Stage.PRETRAIN: ("loss",),
    Stage.SFT: ("loss",),
    Stage.RM: ("loss", "accuracy"),
    Stage.PPO: ("objective", "reward", "kl", "eos_share", "response_length"),
}


def target_counts(split: TokenSplit, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each token is a target, int64 [rows]."""
    counts = np.zeros(rows, np.int64)
    for start in range(0, len(split), 256):
        for sample in split.fetch(range(start, min(start + 256, len(split)))):
            for segment in sample.segments:
                counts += np.bincount(segment.ids[segment.target], minlength=rows)
    return counts


def unigram_entropy(store: ObjectStore, manifest: StageManifest) -> float:
    """Nats per held-out target under the training targets' frequencies, one added to each."""
    cache = str(manifest.extra["tokenCache"])
    train, held_out = open_split(store, cache, "train"), open_split(store, cache, "validation")
    rows = 1 << 17  # more than any vocabulary here
    known = target_counts(train, rows)
    wanted = target_counts(held_out, rows)
    seen = int(np.flatnonzero(known + wanted).max()) + 1
    logs = np.log((known[:seen] + 1) / (known.sum() + seen))
    return float(-(wanted[:seen] * logs).sum() / wanted.sum())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Held-out figures of a finished run.")
    parser.add_argument("pipeline")
    parser.add_argument("--workdir", type=Path, default=Path("zhongjing-runs"))
    arguments = parser.parse_args()
    print(f"{'stage':<9} {'metric':<16} {'before':>8} {'after':>8} {'ratio':>6} {'test':>8}  beside")
    with LocalSession.open(arguments.workdir, start=True) as session:
        for stage, names in _SHOWN.items():
            manifest = session.manifest(arguments.pipeline, stage)
            if manifest is None:
                continue
            for name in names:
                before, after = manifest.metrics_before.get(name), manifest.metrics.get(name)
                if before is None or after is None:
                    continue
                test = manifest.test_metrics.get(name, float("nan"))
                beside = ""
                if stage is Stage.PRETRAIN:
                    beside = f"unigram {unigram_entropy(session.store, manifest):.3f}"
                ratio = f"{after / before:.2f}" if before else "-"
                print(f"{stage:<9} {name:<16} {before:>8.4f} {after:>8.4f} {ratio:>6} {test:>8.4f}  {beside}")


if __name__ == "__main__":
    main()
