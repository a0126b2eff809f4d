"""What pretraining, SFT and the reward model share: a fixed order of samples, no state but weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zhongjing.config.stages import PretrainSettings, RmSettings, SftSettings
from zhongjing.data.samples import MicroBatch, SampleSet
from zhongjing.train.batch_loader import BatchLoader, held_out_batches
from zhongjing.train.parameters import adamw_groups
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import StepBatches


class SupervisedProgram:
    """A :class:`~zhongjing.train.stages.program.StageProgram` but for its module, metrics and result.

    Args:
        settings: of the stage.
        inputs: what it is made from.
        module: what is trained; ``forward`` gives the loss.
    """

    best_metric = "loss"
    best_is_lower = True
    checkpoint_whenever_possible = False

    def __init__(
        self, settings: PretrainSettings | SftSettings | RmSettings, inputs: StageInputs, module: nn.Module
    ) -> None:
        self._settings = settings
        self._inputs = inputs
        self.module = module
        self.loader = BatchLoader(settings, inputs, self._denominator)
        self.total_steps = self.loader.total_steps

    def _denominator(self, indices: Sequence[int]) -> float:
        """What the loss of a step over these samples is divided by."""
        raise NotImplementedError

    def _metrics(self, batches: Iterator[MicroBatch]) -> dict[str, float]:
        """Metrics over micro-batches on this rank's device and all other ranks'."""
        raise NotImplementedError

    def _write(self, folder: Path) -> None:
        """Writes the model folder."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW groups of the trainable parameters."""
        return adamw_groups(self.module, self._settings.weight_decay)

    def step_batches(self, step: int) -> StepBatches:
        """Micro-batches of optimizer step ``step``."""
        return self.loader.step_batches(step)

    def can_checkpoint(self, step: int) -> bool:
        """A checkpoint may be taken after any step."""
        return True

    def evaluate(self, samples: SampleSet | None = None) -> dict[str, float]:
        """Metrics of the held-out split, or of ``samples``; empty without any."""
        samples = self._inputs.validation if samples is None else samples
        return self._metrics(held_out_batches(samples, self._settings, self._inputs)) if len(samples) else {}

    def warnings(self, best: Mapping[str, float]) -> list[str]:
        """None: a loss says itself how good it is."""
        return []

    def finish(self, folder: Path, best: Mapping[str, float]) -> dict[str, Any]:
        """Writes the model folder; returns what the manifest says of the samples."""
        self._write(folder)
        return {"epochSamples": self.loader.order.contributions, "samplesOverBudget": self.loader.over_budget}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step is a pure function of (seed, step)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; earlier releases kept the reward model's best metrics here."""
