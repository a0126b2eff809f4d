"""Continued pretraining and SFT (paper, section 3): next-token loss over targets, full or LoRA.

Pretraining reads windows of medical text, all of whose tokens are targets. SFT reads dialogues; every
assistant turn is a target in one pass.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from zhongjing.config.stages import PretrainSettings, SftSettings
from zhongjing.data.samples import MicroBatch, SampleSet
from zhongjing.model.adapters import add_lora, base_of, save_adapter
from zhongjing.model.base import load_base
from zhongjing.model.causal import target_losses
from zhongjing.model.export import finish_adapter_folder, merge_adapter, write_full_model
from zhongjing.train.batch_loader import BatchLoader, HeldOut, sum_over_ranks
from zhongjing.train.parameters import adamw_groups, enable_gradient_checkpointing
from zhongjing.train.precision import dtype_of
from zhongjing.train.stages.program import MicroLoss, StepBatches


class CausalObjective(nn.Module):
    """Sum of the negative log-likelihood over a micro-batch's targets."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> MicroLoss:
        """Loss of ``batch``, a sum over its targets."""
        total, _ = target_losses(self.model, batch)
        return MicroLoss(total)


class CausalProgram:
    """A :class:`zhongjing.train.stages.program.StageProgram` of next-token prediction.

    Args:
        settings: of the stage.
        base_folder: full model in Hugging Face format.
        base_reference: URI or path by which an adapter refers to that model.
        tokenizer_folder: tokenizer with the chat template in use; copied beside the result.
        train: training split.
        validation: held-out split.
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        seed: of sample order and adapter.
    """

    best_metric = "loss"
    best_is_lower = True
    checkpoint_whenever_possible = False

    def __init__(
        self,
        settings: PretrainSettings | SftSettings,
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
        self._base_folder = base_folder
        self._base_reference = base_reference
        self._tokenizer_folder = tokenizer_folder
        self._device = device
        # SFT drops out in its adapter (lora.dropout); full tuning of a pretrained model goes without.
        dropout = settings.dropout if isinstance(settings, PretrainSettings) else 0.0
        base = load_base(
            base_folder,
            dtype=dtype_of(settings, device),
            attention_dropout=dropout,
            quantization=settings.quantization if isinstance(settings, SftSettings) else "none",
            device=device,
        )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(base)
        self.model: PreTrainedModel | PeftModel = base
        if settings.tuning == "lora":
            self.model = add_lora(base, settings.lora, "default", seed)
        self.module: nn.Module = CausalObjective(self.model)
        self.loader = BatchLoader(
            train,
            settings,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
            denominator=self._targets,
        )
        self.held_out = HeldOut(validation, settings, rank=rank, world_size=world_size)
        self.total_steps = self.loader.total_steps

    def _targets(self, indices: Sequence[int]) -> float:
        return float(self.loader.train.targets[list(indices)].sum())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW groups of the trainable parameters."""
        return adamw_groups(self.module, self._settings.weight_decay)

    def step_batches(self, step: int) -> StepBatches:
        """Micro-batches of optimizer step ``step``; the loss is divided by the step's target tokens."""
        return self.loader.step_batches(step)

    def can_checkpoint(self, step: int) -> bool:
        """A checkpoint may be taken after any step."""
        return True

    def evaluate(self) -> dict[str, float]:
        """``loss`` (nats per target token) and ``perplexity`` of the held-out samples; empty without any."""
        return self._measure(self.held_out)

    def measure(self, samples: SampleSet) -> dict[str, float]:
        """The same of another split."""
        return self._measure(self.held_out.over(samples))

    def _measure(self, held_out: HeldOut) -> dict[str, float]:
        if len(held_out) == 0:
            return {}
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        count = 0
        with torch.no_grad():
            for batch in held_out.batches():
                loss, targets = target_losses(self.model, batch.to(self._device))
                total += loss
                count += targets
        loss_sum, target_sum = sum_over_ranks([total, count], self._device)
        mean = loss_sum / target_sum if target_sum else math.nan
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}

    def warnings(self) -> list[str]:
        """None: a loss says itself how good it is."""
        return []

    def finish(self, folder: Path) -> dict[str, Any]:
        """Writes the full model, or the adapter with a reference to its base."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder, self._base_reference)
            finish_adapter_folder(folder, self._tokenizer_folder)
        else:
            write_full_model(base_of(self.model), folder, self._tokenizer_folder)
        return {"epochSamples": self.loader.order.contributions, "samplesOverBudget": self.loader.over_budget}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step is a pure function of (seed, step)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""


class PretrainProgram(CausalProgram):
    """Continued pretraining, all parameters by default, with dropout on the attention probabilities."""

    def finish(self, folder: Path) -> dict[str, Any]:
        """Writes a full model, whatever was tuned: the stages after it put adapters of their own upon it."""
        if not isinstance(self.model, PeftModel):
            return super().finish(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            extra = super().finish(Path(scratch))
            merge_adapter(self._base_folder, Path(scratch), folder)
        return extra


class SftProgram(CausalProgram):
    """Supervised fine-tuning. Dropout is the adapter's (``lora.dropout``); full tuning has none."""
