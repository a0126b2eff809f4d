"""The reward model (paper, section 3): K ranked answers of a prompt share a micro-batch.

It starts from the pretrained base, never from SFT. Started by ``jobs/rm.py``; alone:
``run_loop(RmProgram(...), settings, context, seed=0)``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from zhongjing.config.stages import RmSettings
from zhongjing.data.samples import MicroBatch, SampleSet
from zhongjing.model.adapters import base_of
from zhongjing.model.causal import segment_ends_hidden
from zhongjing.model.export import copy_tokenizer
from zhongjing.model.reward import build_reward_model, head_rewards, head_weight, save_reward_model
from zhongjing.train.batch_loader import BatchLoader, HeldOut, sum_over_ranks
from zhongjing.train.losses import pair_counts, pair_fractions, ranking_loss
from zhongjing.train.parameters import adamw_groups, enable_gradient_checkpointing
from zhongjing.train.precision import dtype_of
from zhongjing.train.quality_warnings import effective_trials, reward_warnings, wilson
from zhongjing.train.stages.program import MicroLoss, StepBatches


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


class RmProgram:
    """The reward model as a stage. The step's loss is a mean over prompts.

    The best checkpoint is that of the lowest held-out loss: pair accuracy moves in steps of one pair, and on
    a few hundred pairs its best value is luck. It is reported beside the loss.

    Args:
        settings: of the stage.
        base_folder: full model in Hugging Face format.
        base_reference: URI or path by which the adapter refers to that model.
        tokenizer_folder: tokenizer with the chat template in use; copied beside the result.
        train: training split, samples with ``ranks``.
        validation: held-out split, by prompt.
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        seed: of sample order, adapter and head.
    """

    best_metric = "loss"
    best_is_lower = True
    checkpoint_whenever_possible = False

    def __init__(
        self,
        settings: RmSettings,
        base_folder: Path,
        *,
        base_reference: str,
        tokenizer_folder: Path,
        train: SampleSet,
        validation: SampleSet,
        rank: int,
        world_size: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self._settings = settings
        self._base_reference = base_reference
        self._tokenizer_folder = tokenizer_folder
        self._device = device
        self.model = build_reward_model(
            base_folder,
            settings.lora,
            seed,
            dtype_of(settings, device),
            quantization=settings.quantization,
            device=device,
        )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(base_of(self.model))
        self.objective = RankingObjective(self.model)
        self.module: nn.Module = self.objective
        self.loader = BatchLoader(
            train,
            settings,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
            denominator=lambda indices: float(len(indices)),
        )
        self.held_out = HeldOut(validation, settings, rank=rank, world_size=world_size)
        self.total_steps = self.loader.total_steps
        self._trained = False
        self._best: dict[str, float] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW groups of adapter and head."""
        return adamw_groups(self.module, self._settings.weight_decay)

    def step_batches(self, step: int) -> StepBatches:
        """Micro-batches of optimizer step ``step``."""
        self._trained = True
        return self.loader.step_batches(step)

    def can_checkpoint(self, step: int) -> bool:
        """A checkpoint may be taken after any step."""
        return True

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics.

        ``loss`` (mean of prompts), ``accuracy`` of ``pairs`` with the 95 % interval ``accuracy_low`` to
        ``accuracy_high``, ``longer_accuracy`` of the rule that the longer answer wins, ``reward_mean``,
        ``reward_std``.
        """
        metrics = self._measure(self.held_out)
        # The same choice as the loop makes; the evaluation before the first step is no candidate.
        if self._trained and metrics and metrics["loss"] < self._best.get("loss", math.inf):
            self._best = metrics
        return metrics

    def measure(self, samples: SampleSet) -> dict[str, float]:
        """The same of another split."""
        return self._measure(self.held_out.over(samples))

    def _measure(self, held_out: HeldOut) -> dict[str, float]:
        if len(held_out) == 0:
            return {}
        sums = torch.zeros(10, dtype=torch.float64, device=self._device)
        answers = prompts = 0
        with torch.no_grad():
            for batch in held_out.batches():
                moved = batch.to(self._device)
                rewards = self.objective.rewards(moved)
                owners, ranks = moved.segment_samples, moved.segment_ranks
                count = len(batch.sample_indices)
                lengths = torch.tensor(batch.row.lengths, device=self._device, dtype=torch.float32)
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
        loss, total, squares, *counted, answered, asked = sum_over_ranks(
            [*sums, answers, prompts], self._device
        )
        mean = total / answered
        return {
            "loss": loss / asked,
            **_accuracy(*counted),
            "reward_mean": mean,
            "reward_std": math.sqrt(max(squares / answered - mean * mean, 0.0)),
        }

    def warnings(self) -> list[str]:
        """Whether the best checkpoint so far ranks better than chance, and than length does."""
        return reward_warnings(self._best)

    def finish(self, folder: Path) -> dict[str, Any]:
        """Writes adapter and head; returns the best checkpoint's held-out reward mean and deviation."""
        save_reward_model(self.model, folder, self._base_reference)
        copy_tokenizer(self._tokenizer_folder, folder)
        return {
            "rewardMean": self._best.get("reward_mean"),
            "rewardStd": self._best.get("reward_std"),
            "epochSamples": self.loader.order.contributions,
            "samplesOverBudget": self.loader.over_budget,
        }

    def state_dict(self) -> dict[str, Any]:
        """The best held-out metrics so far."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self._best = dict(state["best"])


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
