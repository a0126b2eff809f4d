"""What packed rows are worth: tokens a CPU-second, padding, the largest micro-batch, against padded rows.

::

    ZHONGJING_DATA=<folder with the published samples> python benchmarks/packing.py

One thread, fp32, a Llama of 7.36M parameters, forward, backward and AdamW, real dialogues and texts. Three
ways of the same optimizer steps, in turn in one process; all give the same loss, which is checked:

- ``padded``: what a trainer without packing does. Micro-batches of ``microBatchSize`` samples, neighbours in
  length; every segment a row, padded to the longest; transformers' SDPA.
- ``same``: the micro-batches of ``packed``, their segments as padded rows.
- ``packed``: what the stages do.

Prints a line for each way and the ratios: process time, the best of the repeats, for a busy neighbour only
ever adds to it.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from zhongjing.config.sources import Source, TinyBase
from zhongjing.config.stages import Lora, Stage
from zhongjing.data.batches import collate, partition
from zhongjing.data.chat import Encoded
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.packing import WindowPacker
from zhongjing.data.readers import read_object
from zhongjing.data.records import Record, Rejected
from zhongjing.data.samples import Sample
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.data.tokenizer_folder import load_tokenizer
from zhongjing.model.adapters import add_lora
from zhongjing.model.base import load_base, make_tiny_base
from zhongjing.model.causal import backbone, linear_cross_entropy, output_layer, target_losses

BASE = TinyBase.model_validate(
    {
        "hiddenSize": 256,
        "intermediateSize": 688,
        "layers": 4,
        "heads": 4,
        "kvHeads": 4,
        "vocabularySize": 8192,
        "maxPositions": 4096,
    }
)
LORA = Lora.model_validate({"rank": 16, "alpha": 32.0, "dropout": 0.0})
MICRO_BATCH = 4
# Characters of the paper's Table 1 by kind: questions and answers, records, books and encyclopedia, graphs.
# Health records are not published: consultations stand for them.
TABLE_1 = {
    "medical_qa_corpus.jsonl": 0.29,
    "CMtMedQA_sample.json": 0.26,
    "toyhom_internal_medicine_gb18030.csv": 0.29,
    "fever_textbook.txt": 0.12,
    "medical_kg/disease.txt": 0.04,
}

Steps = list[list[list[Sample]]]  # optimizer steps of micro-batches of samples


@dataclass(frozen=True)
class Figures:
    """One way's figures over all steps."""

    seconds: float
    loss: float
    computed: int
    largest: int


def records(path: Path, kind: str) -> Iterator[Record]:
    """Records of a file; ``kind`` is text or dialogue."""
    source = Source.model_validate({"name": "file", "uri": str(path), "kind": kind})
    for record in read_object(str(path), source, section_characters=2000):
        if not isinstance(record, Rejected):
            yield record


def dialogues(data: Path, encoder: RecordEncoder, count: int) -> list[Sample]:
    """The first dialogues of the multi-turn file in an order of seed 0."""
    read = list(records(data / "CMtMedQA_sample.json", "dialogue"))
    random.Random(0).shuffle(read)
    encoder.configure(Stage.SFT, 1024, None)
    found = [encoded for encoded in encoder.encode(read[: 2 * count]) if isinstance(encoded, Encoded)]
    return [Sample(index, encoded.segments) for index, encoded in enumerate(found[:count])]


def windows(data: Path, encoder: RecordEncoder, scratch: Path, length: int, count: int) -> list[Sample]:
    """Windows of pretraining from a mixture like the paper's Table 1."""
    encoder.configure(Stage.PRETRAIN, length, None)
    # More than is needed, for windows are packed in a mixed order.
    characters = 3 * length * count
    chosen: list[Record] = []
    for name, share in TABLE_1.items():
        kind = "text" if name.endswith(".txt") else "dialogue"
        left = share * characters
        for record in records(data / name, kind):
            chosen.append(record)
            left -= len(getattr(record, "text", "")) or sum(
                len(turn.content) for turn in getattr(record, "turns", ())
            )
            if left <= 0:
                break
    random.Random(0).shuffle(chosen)
    pieces = WindowPacker(scratch / "pieces", length)
    for encoded in encoder.encode(chosen):
        assert isinstance(encoded, Encoded)
        assert encoded.document is not None
        pieces.append(encoded.document)
    return [Sample(index, segments) for index, segments in enumerate(islice(pieces.windows(), count))]


def by_count(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Micro-batches of so many samples, neighbours in length."""
    ordered = sorted(samples, key=lambda sample: -sample.tokens)
    return [ordered[start : start + MICRO_BATCH] for start in range(0, len(ordered), MICRO_BATCH)]


def by_tokens(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Micro-batches as the stages partition them."""
    (batches,) = partition([sample.tokens for sample in samples], 1, budget)
    return [[samples[position] for position in batch] for batch in batches]


def padded_loss(model: Any, samples: Sequence[Sample]) -> tuple[torch.Tensor, int]:
    """Sum of the losses with every segment in a row of its own, and the tokens that were computed."""
    segments = [segment for sample in samples for segment in sample.segments]
    width = max(len(segment.ids) for segment in segments)
    ids = np.zeros((len(segments), width), dtype=np.int64)
    targets = np.zeros((len(segments), width), dtype=np.bool_)
    for row, segment in enumerate(segments):
        ids[row, : len(segment.ids)] = segment.ids
        targets[row, : len(segment.ids)] = segment.target
    input_ids = torch.from_numpy(ids)
    # Padding to the right needs no mask: SDPA's causal kernel, the fastest.
    hidden = backbone(model)(input_ids=input_ids, use_cache=False).last_hidden_state
    places = torch.from_numpy(targets).flatten().nonzero().flatten()
    before = hidden.flatten(0, 1)[places - 1]
    return linear_cross_entropy(before, output_layer(model), input_ids.flatten()[places]), ids.size


def packed_loss(model: Any, samples: Sequence[Sample]) -> tuple[torch.Tensor, int]:
    """The same by a packed row."""
    batch = collate(samples)
    return target_losses(model, batch)[0], batch.tokens


def run(
    model: Any, steps: Steps, loss_of: Callable[[Any, Sequence[Sample]], tuple[torch.Tensor, int]]
) -> Figures:
    """Trains for the steps, from wherever the model is; its weights are put back."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=7e-5, fused=True)
    total, computed, largest = 0.0, 0, 0
    started = time.process_time()
    for step in steps:
        denominator = sum(sample.targets for batch in step for sample in batch)
        for batch in step:
            loss, tokens = loss_of(model, batch)
            (loss / denominator).backward()
            total += float(loss.detach())
            computed += tokens
            largest = max(largest, tokens)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - started
    with torch.no_grad():
        for parameter, old in zip(trained, before, strict=True):
            parameter.copy_(old)
    return Figures(seconds, total, computed, largest)


def compare(
    name: str, folder: Path, steps: Sequence[Sequence[Sample]], budget: int, *, lora: bool, repeats: int
) -> None:
    """Runs the three ways in turn and prints their figures."""
    plain: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="sdpa", dtype=torch.float32
    )
    ours: Any = load_base(folder, dtype=torch.float32)
    if lora:
        plain, ours = (add_lora(model, LORA, "default", 0) for model in (plain, ours))
    plain.train()
    ours.train()
    counted, filled = [by_count(step) for step in steps], [by_tokens(step, budget) for step in steps]
    ways: dict[str, Callable[[], Figures]] = {
        "padded": lambda: run(plain, counted, padded_loss),
        "same": lambda: run(plain, filled, padded_loss),
        "packed": lambda: run(ours, filled, packed_loss),
    }
    tokens = sum(sample.tokens for step in steps for sample in step)
    segments = sum(len(sample.segments) for step in steps for sample in step)
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, measure in ways.items():
            found[way].append(measure())
    packed = found["packed"][0]
    print(f"\n{name}: {tokens} tokens in {segments} segments, budget of a micro-batch {budget} tokens")
    print(
        f"{'way':<8} {'tokens/CPU-s':>12} {'padding':>8} {'computed x':>10} {'largest':>9} {'packed is':>10}"
    )
    speed = {way: tokens / min(one.seconds for one in runs) for way, runs in found.items()}
    for way, runs in found.items():
        one = runs[0]
        assert abs(one.loss / packed.loss - 1) < 1e-4, "the ways must agree on the loss"
        print(
            f"{way:<8} {speed[way]:>12.0f} {1 - tokens / one.computed:>8.1%} {one.computed / tokens:>10.2f} "
            f"{one.largest:>9} {speed['packed'] / speed[way]:>9.2f}x"
        )
    assert packed.largest <= budget


def texts(found: Iterable[Record]) -> Iterator[str]:
    """Their text, for the tokenizer."""
    for record in found:
        yield getattr(record, "text", "") or "\n".join(turn.content for turn in getattr(record, "turns", ()))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Packed rows against padded ones.")
    parser.add_argument("--dialogues", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["ZHONGJING_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        corpus = [*texts(records(data / "CMtMedQA_sample.json", "dialogue"))]
        corpus += texts(islice(records(data / "medical_qa_corpus.jsonl", "dialogue"), 3000))
        make_tiny_base(folder, BASE, corpus, 0, CHATML_TEMPLATE)
        encoder = RecordEncoder(load_tokenizer(folder))
        chats = dialogues(data, encoder, arguments.dialogues)
        steps = [chats[start : start + 2 * MICRO_BATCH] for start in range(0, len(chats), 2 * MICRO_BATCH)]
        for name, lora in (("sft full", False), ("sft lora", True)):
            compare(name, folder, steps, MICRO_BATCH * 1024, lora=lora, repeats=arguments.repeats)
        found = windows(data, encoder, Path(scratch), arguments.window, arguments.windows)
        compare(
            "pretrain full, a mixture like Table 1",
            folder,
            [found],
            MICRO_BATCH * arguments.window,
            lora=False,
            repeats=2,
        )


if __name__ == "__main__":
    main()
