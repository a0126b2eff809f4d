"""Exposure against copies and epochs on a small model, and how often a model that saw none is caught.

Run: ``python -m benchmarks.canaries CORPUS.jsonl``; the values of each record are joined to a text.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import TinyBase
from zhongjing.config.stages import Stage
from zhongjing.data.batches import collate
from zhongjing.data.canaries import copies
from zhongjing.data.chat import Encoded
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.records import Position, Record, TextRecord
from zhongjing.data.samples import Sample, Segment
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.model.base import load_base, make_tiny_base
from zhongjing.model.causal import hidden_states, output_layer, target_losses
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.train.exposure import Reader, measure

TEXTS, CHARACTERS, BATCH, SEEDS = 150, 120, 8, 40
EPOCHS = (1, 3, 10, 30)


def document(seed: int) -> TrainingPipeline:
    """One source with 4 canaries for each of 1, 4 and 16 copies."""
    canaries = {"count": 4, "repeats": [1, 4, 16], "seed": seed}
    spec = {
        "base": {"tiny": {}},
        "sources": [{"name": "books", "uri": "s3://b/books", "kind": "text", "canaries": canaries}],
        "stages": {"pretrain": {"data": [{"source": "books"}], "maxLength": 512}},
    }
    fields = {"apiVersion": "training.zhongjing.dev/v1alpha1", "kind": "TrainingPipeline"}
    return TrainingPipeline.model_validate({**fields, "metadata": {"name": "a"}, "spec": spec})


class Trial:
    """A small model trained on texts, with the canaries of a seed among them or without any."""

    def __init__(self, folder: Path, texts: list[str], seed: int | None) -> None:
        self.encoder = RecordEncoder(load_tokenizer(folder))
        self.encoder.configure(Stage.PRETRAIN, 512, None)
        self.model = load_base(folder, dtype=torch.float32)
        records: list[Record] = [TextRecord(text, Position("books", "", 0)) for text in texts]
        if seed is not None:
            records += copies(document(seed).spec.sources[0])
        made = [one for one in self.encoder.encode(records) if isinstance(one, Encoded)]
        self.segments = [Segment.of_document(one.document) for one in made if one.document is not None]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)

    def epoch(self) -> float:
        """Mean loss of one pass."""
        self.model.train()
        losses = tokens = 0.0
        for part in torch.randperm(len(self.segments)).split(BATCH):
            batch = collate([Sample(i, (self.segments[i],)) for i in part.tolist()])
            total, count = target_losses(self.model, batch)
            (total / count).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses, tokens = losses + float(total.detach()), tokens + count
        return losses / tokens

    def measure(self, seed: int) -> tuple[dict[str, Any], list[str]]:
        """As a stage does at its end."""
        self.model.eval()
        reader = Reader(lambda row: hidden_states(self.model, row), output_layer(self.model))
        shared = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "budget": 16384}
        return measure(reader, document(seed), Stage.PRETRAIN, self.encoder, **shared)  # type: ignore[arg-type]


def main(corpus: str) -> None:
    """Prints two tables."""
    torch.manual_seed(0)
    lines = Path(corpus).read_text(encoding="utf-8").splitlines()
    texts = ["".join(map(str, json.loads(line).values()))[:CHARACTERS] for line in lines[:TEXTS]]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        size = {"hidden_size": 96, "intermediate_size": 192, "layers": 2, "heads": 4, "kv_heads": 4}
        make_tiny_base(
            base, TinyBase(**size, vocabulary_size=2000, max_positions=512), texts, 0, CHATML_TEMPLATE
        )
        trial = Trial(base, texts, 0)
        print("epochs  loss  copies  by rank  exposure  chance   extracted  warned", flush=True)
        for epoch in range(1, EPOCHS[-1] + 1):
            loss = trial.epoch()
            if epoch not in EPOCHS:
                continue
            said, warnings = trial.measure(0)
            for group in said["exposure"]["sources"][0]["groups"]:
                warned = any(f"planted {group['repeats']} times" in each for each in warnings) or (
                    group["repeats"] == 1 and any("planted once" in each for each in warnings)
                )
                print(
                    f"{epoch:6d} {loss:5.2f} {group['repeats']:7d} {group['byRank']:8.2f} "
                    f"{group['exposure']:9.2f} {group['chance']:7.1g} {group['extracted']:6d} of "
                    f"{group['canaries']}  {'yes' if warned else 'no'}",
                    flush=True,
                )
        apart = Trial(base, texts, None)
        for _ in range(3):
            apart.epoch()
        groups, warned_seeds = [], 0
        for seed in range(100, 100 + SEEDS):
            said, warnings = apart.measure(seed)
            warned_seeds += bool(warnings)
            groups += said["exposure"]["sources"][0]["groups"]
        number = len(groups)
        print(
            f"never seen: {number} groups of 4; mean by rank "
            f"{sum(g['byRank'] for g in groups) / number:.2f}, mean exposure "
            f"{sum(g['exposure'] for g in groups) / number:.2f}, largest mean "
            f"{max(g['exposure'] for g in groups):.2f}, chance < 0.05 in "
            f"{sum(g['chance'] < 0.05 for g in groups)}, warned {warned_seeds} of {SEEDS} seeds",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
