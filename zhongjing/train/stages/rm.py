"""The reward model (paper, section 3): K ranked answers of a prompt share a micro-batch.

It starts from the pretrained base, never from SFT. Started by ``jobs/rm.py``; alone:
``run_loop(RmProgram(settings, inputs), settings, context, seed=0)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from zhongjing.config.stages import RmSettings
from zhongjing.data.samples import MicroBatch
from zhongjing.model.adapters import base_of
from zhongjing.model.causal import segment_ends_hidden
from zhongjing.model.export import copy_tokenizer
from zhongjing.model.reward import build_reward_model, head_rewards, head_weight, save_reward_model
from zhongjing.train.batch_loader import sum_over_ranks
from zhongjing.train.losses import pair_counts, pair_fractions, ranking_loss
from zhongjing.train.parameters import enable_gradient_checkpointing
from zhongjing.train.precision import dtype_of
from zhongjing.train.quality_warnings import effective_trials, reward_warnings, wilson
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import MicroLoss
from zhongjing.train.stages.supervised import SupervisedProgram


class RankingObjective(nn.Module):
    """Sum over a micro-batch's prompts of the mean ranking loss of their pairs."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def rewards(self, batch: MicroBatch) -> torch.Tensor:
        """Reward of each segment, fp32 [S]: the head at its last token."""
        return head_rewards(segment_ends_hidden(self.model, batch.row), head_weight(self.model))

    def forward(self, batch: MicroBatch) -> MicroLoss:
        """Loss of ``batch``; ``accuracy`` is the share of a prompt's pairs in the right order, summed."""
        rewards = self.rewards(batch)
        prompts = len(batch.sample_indices)
        if batch.is_dummy:
            return MicroLoss(rewards.sum() * 0.0, {"accuracy": rewards.detach().sum() * 0.0})
        owners, ranks = batch.segment_samples, batch.segment_ranks
        with torch.no_grad():
            accuracy = pair_fractions(rewards, owners, ranks, prompts).sum()
        return MicroLoss(ranking_loss(rewards, owners, ranks, prompts), {"accuracy": accuracy})


class RmProgram(SupervisedProgram):
    """The reward model as a stage. The step's loss is a mean over prompts.

    The best checkpoint is that of the lowest held-out loss: pair accuracy moves in steps of one pair, and on
    a few hundred pairs its best value is luck. It is reported beside the loss.

    Args:
        settings: of the stage.
        inputs: what it is made from; samples have ``ranks``, and are held out by prompt.
    """

    def __init__(self, settings: RmSettings, inputs: StageInputs) -> None:
        self.model = build_reward_model(
            inputs.base,
            settings.lora,
            inputs.seed,
            dtype_of(settings, inputs.device),
            quantization=settings.quantization,
            device=inputs.device,
        )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(base_of(self.model))
        self.objective = RankingObjective(self.model)
        super().__init__(settings, inputs, self.objective)

    def _denominator(self, indices: Sequence[int]) -> float:
        return float(len(indices))

    def _metrics(self, batches: Iterator[MicroBatch]) -> dict[str, float]:
        """Metrics of rankings.

        ``loss`` (mean of prompts), ``accuracy`` of ``pairs`` with the 95 % interval ``accuracy_low`` to
        ``accuracy_high``, ``longer_accuracy`` of the rule that the longer answer wins, ``reward_mean``,
        ``reward_std``.
        """
        device = self._inputs.device
        sums = torch.zeros(10, dtype=torch.float64, device=device)
        answers = prompts = 0
        with torch.no_grad():
            for batch in batches:
                rewards = self.objective.rewards(batch)
                owners, ranks = batch.segment_samples, batch.segment_ranks
                count = len(batch.sample_indices)
                lengths = torch.tensor(batch.row.lengths, device=device, dtype=torch.float32)
                right, pairs = (each.double() for each in pair_counts(rewards, owners, ranks, count))
                longer, _ = pair_counts(lengths, owners, ranks, count)
                sums += torch.stack(
                    [
                        ranking_loss(rewards, owners, ranks, count).double(),
                        rewards.double().sum(),
                        rewards.double().square().sum(),
                        right.sum(),
                        pairs.sum(),
                        right.square().sum(),
                        (right * pairs).sum(),
                        pairs.square().sum(),
                        (pairs > 0).sum().double(),
                        longer.sum().double(),
                    ]
                )
                answers += len(batch.row.lengths)
                prompts += count
        loss, total, squares, *counted, answered, asked = sum_over_ranks([*sums, answers, prompts], device)
        mean = total / answered
        return {
            "loss": loss / asked,
            **_accuracy(*counted),
            "reward_mean": mean,
            "reward_std": math.sqrt(max(squares / answered - mean * mean, 0.0)),
        }

    def warnings(self, best: Mapping[str, float]) -> list[str]:
        """Whether the best checkpoint so far ranks better than chance, and than length does."""
        return reward_warnings(best)

    def finish(self, folder: Path, best: Mapping[str, float]) -> dict[str, Any]:
        """Writes adapter and head; returns the best checkpoint's held-out reward mean and deviation."""
        return {
            "rewardMean": best.get("reward_mean"),
            "rewardStd": best.get("reward_std"),
            **super().finish(folder, best),
        }

    def _write(self, folder: Path) -> None:
        save_reward_model(self.model, folder, self._inputs.base_reference)
        copy_tokenizer(self._inputs.tokenizer, folder)


def _accuracy(  # noqa: PLR0917
    right: float,
    pairs: float,
    right_squares: float,
    products: float,
    pair_squares: float,
    prompts: float,
    longer: float,
) -> dict[str, float]:
    """Accuracy over pairs with its interval, from sums over prompts."""
    if not pairs:
        return {"accuracy": math.nan}
    share = right / pairs
    low, high = wilson(
        share, effective_trials(right, pairs, (right_squares, products, pair_squares), prompts)
    )
    return {
        "accuracy": share,
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_accuracy": longer / pairs,
        "pairs": pairs,
    }
