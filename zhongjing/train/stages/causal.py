"""Continued pretraining and SFT (paper, section 3): next-token loss over targets, full or LoRA.

Pretraining reads windows of medical text, all of whose tokens are targets. SFT reads dialogues; every
assistant turn is a target in one pass. Started by ``jobs/pretrain.py`` and ``jobs/sft.py``; alone:
``run_loop(SftProgram(settings, inputs), settings, context, seed=0)``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from zhongjing.config.stages import PretrainSettings, SftSettings
from zhongjing.data.samples import MicroBatch
from zhongjing.model.adapters import add_lora, base_of, save_adapter
from zhongjing.model.base import load_base
from zhongjing.model.causal import target_losses
from zhongjing.model.export import finish_adapter_folder, merge_adapter, write_full_model
from zhongjing.train.batch_loader import sum_over_ranks
from zhongjing.train.parameters import enable_gradient_checkpointing
from zhongjing.train.precision import dtype_of
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import MicroLoss
from zhongjing.train.stages.supervised import SupervisedProgram


class CausalObjective(nn.Module):
    """Sum of the negative log-likelihood over a micro-batch's targets."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> MicroLoss:
        """Loss of ``batch``, a sum over its targets."""
        total, _ = target_losses(self.model, batch)
        return MicroLoss(total)


class CausalProgram(SupervisedProgram):
    """Next-token prediction. The step's loss is divided by its target tokens.

    Args:
        settings: of the stage.
        inputs: what it is made from.
    """

    def __init__(self, settings: PretrainSettings | SftSettings, inputs: StageInputs) -> None:
        # SFT drops out in its adapter (lora.dropout); full tuning of a pretrained model goes without.
        dropout = settings.dropout if isinstance(settings, PretrainSettings) else 0.0
        base = load_base(
            inputs.base,
            dtype=dtype_of(settings, inputs.device),
            attention_dropout=dropout,
            quantization=settings.quantization if isinstance(settings, SftSettings) else "none",
            device=inputs.device,
        )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(base)
        self.model: PreTrainedModel | PeftModel = base
        if settings.tuning == "lora":
            self.model = add_lora(base, settings.lora, "default", inputs.seed)
        super().__init__(settings, inputs, CausalObjective(self.model))

    def _denominator(self, indices: Sequence[int]) -> float:
        return float(self._inputs.train.targets[list(indices)].sum())

    def _metrics(self, batches: Iterator[MicroBatch]) -> dict[str, float]:
        """``loss`` (nats per target token) and ``perplexity``."""
        total = torch.zeros((), dtype=torch.float64, device=self._inputs.device)
        count = 0
        with torch.no_grad():
            for batch in batches:
                loss, targets = target_losses(self.model, batch)
                total += loss
                count += targets
        loss_sum, target_sum = sum_over_ranks([total, count], self._inputs.device)
        mean = loss_sum / target_sum if target_sum else math.nan
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}

    def _write(self, folder: Path) -> None:
        """Writes the full model, or the adapter with a reference to its base."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder, self._inputs.base_reference)
            finish_adapter_folder(folder, self._inputs.tokenizer)
        else:
            write_full_model(base_of(self.model), folder, self._inputs.tokenizer)


class PretrainProgram(CausalProgram):
    """Continued pretraining, all parameters by default, with dropout on the attention probabilities."""

    def _write(self, folder: Path) -> None:
        """Writes a full model, whatever was tuned: the stages after it put adapters of their own upon it."""
        if not isinstance(self.model, PeftModel):
            super()._write(folder)
            return
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            super()._write(Path(scratch))
            merge_adapter(self._inputs.base, Path(scratch), folder)


class SftProgram(CausalProgram):
    """Supervised fine-tuning. Dropout is the adapter's (``lora.dropout``); full tuning has none."""
