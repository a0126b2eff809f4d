"""Memory that merging and measuring a published delta takes, beside the size of the model.

Run: ``python -m benchmarks.merge_memory [hidden] [layers]``. A delta by Fengshenbang-LM's rule and its root,
both in shards of ``.bin``, are made (with the defaults a model of 1.1 GB in fp16) and merged in a fresh
process. Private memory (RssAnon of /proc/self/status, looked at every two milliseconds) is what no file
backs; mapped pages of files are the kernel's to give back. Returns 1 if more than 0.5 GB were taken beside
what the process held before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from tests.memory_support import PeakWatch, private_bytes
from tests.published_bases import train_sentencepiece, write_bin, write_llama_tokenizer
from zhongjing.data.example.generate import generate
from zhongjing.model.base import skeleton
from zhongjing.model.delta import SENTENCES, merge_delta
from zhongjing.model.tokenizer import load_tokenizer

BAR = 0.5e9
ROOT_ROWS, ROWS, TOKENS = 32000, 32064, 800
SHARDS = 4


def make(folder: Path, hidden: int, layers: int) -> int:
    """A delta and its root; returns the bytes of what comes out.

    Weights are random and small, so that what the model says is the frequency of tokens, which one channel of
    its embedding and of its output layer hold: it reads well enough to pass.
    """
    model = train_sentencepiece([*generate(0, 0.2).textbook.splitlines(), *SENTENCES * 20], TOKENS)
    for part in ("delta", "root"):
        write_llama_tokenizer(folder / part, model)
    ids = load_tokenizer(folder / "root")(" ".join(SENTENCES))["input_ids"]
    size = 0
    for part, rows in (("root", ROOT_ROWS), ("delta", ROWS)):
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
        )
        write_bin(folder / part, {}, config, shards=1)
        tensors = {}
        for name, shape in skeleton(folder / part).state_dict().items():
            tensor = torch.ones(shape.shape) if "norm" in name else 1e-3 * torch.randn(shape.shape)
            if "embed_tokens" in name:
                tensor[:, 0] = 1.0
            if "lm_head" in name:
                tensor[ids, 0] = 1.0
            if part == "delta" and "norm" in name:
                tensor.zero_()
            tensors[name] = tensor.half()
        size = sum(tensor.nbytes for tensor in tensors.values())
        (folder / part / "pytorch_model.bin").unlink()
        write_bin(folder / part, tensors, config, shards=SHARDS)
    return size


def measure(folder: Path) -> None:
    """Merges, and prints what it took."""
    begin, start = private_bytes(), time.monotonic()
    with PeakWatch() as watch:
        merge = merge_delta(folder / "delta", folder / "root", folder / "out", "fengshen")
    found = {"private": watch.peak - begin, "seconds": time.monotonic() - start}
    print(json.dumps({**found, "perplexity": merge.perplexity}))


def main(hidden: int = 1536, layers: int = 16) -> int:
    """Prints the figures; returns 1 if the bar is missed."""
    with tempfile.TemporaryDirectory() as name:
        size = make(Path(name), hidden, layers)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.merge_memory", name], stdout=subprocess.PIPE, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"model {size / 1e9:.2f} GB, private {found['private'] / 1e9:.2f} GB, {found['seconds']:.0f} s")
        return int(found["private"] > BAR)


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].isdigit():
        measure(Path(sys.argv[1]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
