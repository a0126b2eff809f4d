"""Models that are published as a difference: merged once, and measured before anything is trained on them.

Two rules are in use, and a merge by the wrong one gives a model that loads and talks nonsense:

``fengshen``  IDEA-CCNL's Ziya (Fengshenbang-LM, ``fengshen/utils/make_delta.py`` and ``apply_delta.py``):
              ``embed_tokens``, ``lm_head`` and ``inv_freq`` stand whole, everything else is a difference.
``fastchat``  LMSYS' Vicuna (FastChat, ``fastchat/model/make_delta.py`` and ``apply_delta.py``): every tensor
              is a difference; embedding rows that the root does not have stand whole.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zhongjing.codes import model as codes
from zhongjing.config.sources import DeltaRule
from zhongjing.data.samples import PackedRow
from zhongjing.errors import DataError
from zhongjing.model.attention import packed_arguments
from zhongjing.model.base import load_base, load_config, write_generation_config
from zhongjing.model.config_file import write_config
from zhongjing.model.tokenizer import TOKENIZER_FILES, load_tokenizer, padding_id
from zhongjing.model.weights import WeightReader, WeightWriter
from zhongjing.storage.heartbeat import beat

MERGE_FILE = "merge.json"
"""What was merged and how well it reads, beside the merged weights."""

# Buffers that old checkpoints carry and no model reads any more.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
# The only tensors that the two rules treat differently, by the part of the name that the publishers test.
_VOCABULARY_TENSORS = ("embed_tokens.weight", "lm_head.weight")
# A language model is far below uniform guessing (1 in nats over ln V) on plain sentences, a tiny one too.
_MOST_OF_UNIFORM = 0.8
_BLOCK_NUMBERS = 1 << 22
# Plain Chinese that any Chinese or multilingual model reads with ease.
SENTENCES = (
    "今天天气很好，我和家人一起去公园散步，看到了很多盛开的花。",
    "感冒的时候应该多喝水，注意休息，如果发烧不退要及时去医院看医生。",
    "高血压患者需要按时服药，饮食要清淡，少吃盐，并且定期测量血压。",
    "医生告诉病人，这种药每天吃三次，每次一片，饭后服用。",
    "中国是世界上人口众多的国家之一，有着悠久的历史和文化。",
)


@dataclass(frozen=True)
class Merge:
    """How a merged model reads the built-in sentences."""

    rule: DeltaRule
    perplexity: float  # a token


def merge_delta(
    delta_folder: Path,
    root_folder: Path,
    out_folder: Path,
    rule: DeltaRule,
    report: Callable[[float], None] = lambda fraction: None,
) -> Merge:
    """Adds a published difference to its root, tensor by tensor, and measures what comes out.

    The sum is taken in fp32 and stored in the delta's number format. Config and tokenizer are the delta's.
    Files are mapped, those of ``.bin`` too: what is held in memory of its own is the largest tensor, while
    merging and while measuring.

    Args:
        delta_folder: the published difference, in Hugging Face format.
        root_folder: the model that it was taken from, in Hugging Face format.
        out_folder: where the merged model is written.
        rule: by which it was published.
        report: is told how much of the tensors is merged, 0 to 1.

    Raises:
        DataError: a tensor is missing on one side or has another shape (the message names it), the delta has
            no config or tokenizer, or the merged model cannot read: the rule, the root or the delta is not
            the one that was published.
    """
    load_config(delta_folder)
    load_tokenizer(delta_folder)  # what it lacks is found before hours of merging
    with WeightReader(delta_folder) as delta, WeightReader(root_folder) as root:
        ours = {name for name in delta if not name.endswith(_IGNORED_SUFFIXES)}
        theirs = {name for name in root if not name.endswith(_IGNORED_SUFFIXES)}
        for missing, folder in ((ours - theirs, root_folder), (theirs - ours, delta_folder)):
            if missing:
                raise DataError(
                    f"tensor {min(missing)} is not in this model ({len(missing)} missing)",
                    code=codes.DELTA_MISMATCH,
                    where=str(folder),
                )
        writer = WeightWriter(out_folder)
        dtype = torch.float32
        for done, name in enumerate(name for name in delta if name in ours):
            report(done / len(ours))
            tensor, origin = delta.get(name), root.get(name)
            if name.endswith(_VOCABULARY_TENSORS):
                _check_rule(name, tensor, origin, rule)
            if rule == "fastchat" or not name.endswith(_VOCABULARY_TENSORS):
                tensor = _sum(name, tensor, origin, root_folder)
            dtype = tensor.dtype
            writer.add(name, tensor)
            beat()
        writer.finish()
    for path in sorted(delta_folder.iterdir()):
        if path.name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
            shutil.copyfile(path, out_folder / path.name)
    _patch_config(out_folder, dtype)
    write_generation_config(out_folder)
    merge = _measure(out_folder, rule, dtype)
    (out_folder / MERGE_FILE).write_text(json.dumps(asdict(merge), indent=2) + "\n", encoding="utf-8")
    return merge


def _sum(name: str, delta: torch.Tensor, root: torch.Tensor, root_folder: Path) -> torch.Tensor:
    longer = (
        name.endswith(_VOCABULARY_TENSORS)
        and delta.shape[1:] == root.shape[1:]
        and delta.shape[0] > root.shape[0]
    )
    if delta.shape != root.shape and not longer:
        raise DataError(
            f"tensor {name} is {tuple(root.shape)} in the root, {tuple(delta.shape)} in the delta",
            code=codes.DELTA_MISMATCH,
            where=str(root_folder),
        )
    total = torch.empty_like(delta)
    for rows in _blocks(delta):
        part = delta[rows].to(torch.float32, copy=True)
        below = root[rows]
        part[: len(below)] += below.to(torch.float32)
        total[rows] = part
    return total


def _blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Rows of a tensor, so many at a time that a copy in fp32 is small."""
    step = max(1, _BLOCK_NUMBERS // max(1, tensor[:1].numel()))
    for start in range(0, len(tensor), step):
        yield slice(start, min(start + step, len(tensor)))


def _patch_config(folder: Path, dtype: torch.dtype) -> None:
    """Makes the merged model's config say what it is: its number format, and a padding token."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["pad_token_id"] = padding_id(load_tokenizer(folder))
    write_config(folder, config)


def _check_rule(name: str, delta: torch.Tensor, root: torch.Tensor, rule: DeltaRule) -> None:
    """Finds a vocabulary tensor that is published by the other rule.

    A merge by the wrong rule doubles rows or leaves them out, and perplexity need not show the first: a model
    whose scores are too flat reads better with them doubled. What tells is the slope of the delta's rows on
    the root's: about 1 where they stand whole (the model was trained from the root), about 0 in a difference.

    Raises:
        DataError: the tensor contradicts ``rule``.
    """
    if delta.shape[1:] != root.shape[1:]:
        return
    shared = min(len(delta), len(root))
    ours_square = product = square = 0.0
    for rows in _blocks(root[:shared]):
        ours, theirs = delta[rows].float(), root[rows].float()
        ours_square += float(ours.square().sum())
        product += float((ours * theirs).sum())
        square += float(theirs.square().sum())
    square = square or 1.0
    slope = product / square
    # New rows of another scale belong to a vocabulary that was made anew: they stand whole.
    small = ours_square < 0.25 * square
    seen: DeltaRule | None = "fengshen" if slope > 0.5 else "fastchat" if small else None
    if seen not in (None, rule):
        how = "whole" if seen == "fengshen" else "as a difference"
        raise DataError(
            f"{name} of the delta is stored {how} (slope {slope:.2f} on the root's), which is rule {seen}, "
            f"not {rule}",
            code=codes.DELTA_MISMATCH,
            where="spec.base.deltaRule",
            remedy=f"set base.deltaRule: {seen}",
        )


def _measure(folder: Path, rule: DeltaRule, dtype: torch.dtype) -> Merge:
    """Perplexity of the merged model.

    Raises:
        DataError: the model guesses.
    """
    # In the number format of its files a model stays mapped to them (load_weights).
    model = load_base(folder, dtype=dtype)
    nats = _mean_nats(model, load_tokenizer(folder))
    uniform = math.log(int(model.config.vocab_size))
    if not nats <= _MOST_OF_UNIFORM * uniform:
        raise DataError(
            f"the merged model cannot read: perplexity {math.exp(min(nats, 700.0)):.4g} a token on plain "
            f"Chinese; at most {math.exp(_MOST_OF_UNIFORM * uniform):.4g} is taken, guessing among "
            f"{model.config.vocab_size} tokens has that many",
            code=codes.DELTA_MISMATCH,
            where="spec.base",
            remedy="base.root must be the very model that base.delta was published for, and base.deltaRule "
            "its publisher's rule",
        )
    return Merge(rule, math.exp(nats))


@torch.no_grad()
def _mean_nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean negative log-likelihood a token over the built-in sentences; infinite where it is no number.

    The sentences are one packed row: every weight is read from its file once.
    """
    for module in model.modules():
        module.register_forward_hook(lambda *_: beat())
    row = PackedRow.of([np.array(tokenizer(sentence)["input_ids"]) for sentence in SENTENCES])
    scores = model(input_ids=row.input_ids, use_cache=False, **packed_arguments(row)).logits[0]
    nats = functional.cross_entropy(scores[:-1].float(), row.input_ids[0, 1:], reduction="none")
    within = torch.ones(row.tokens, dtype=torch.bool)
    within[row.ends] = False  # what follows belongs to the next sentence
    mean = float(nats[within[:-1]].mean())
    return mean if math.isfinite(mean) else math.inf
