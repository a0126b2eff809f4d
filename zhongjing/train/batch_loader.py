"""From a sample set to the micro-batches of every optimizer step: order, partition, reading ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from zhongjing.codes import data as codes
from zhongjing.config.stages import AnySettings
from zhongjing.data.batches import collate, fetch_step, partition
from zhongjing.data.order import SampleOrder, mixture_of, permutation
from zhongjing.data.samples import MicroBatch, SampleSet
from zhongjing.errors import DataError
from zhongjing.storage.heartbeat import beat
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import StepBatches

# Held-out samples that are partitioned at a time: bounds memory, and leaves lengths enough to sort.
_EVALUATION_BLOCK = 64


class BatchLoader:
    """Micro-batches of every optimizer step over a training split.

    Step ``s`` takes samples ``s * globalBatchSize`` and so on of the infinite order: a pure function of
    (seed, step), whatever the number of workers. The last step takes what is left of ``epochs``. While a step
    trains, a thread reads the next one.

    Args:
        settings: of the stage.
        inputs: training split, seed of the order, rank; batches for a GPU are page-locked.
        denominator: what the step's loss is divided by, from the indices of its samples.

    Attributes:
        budget: most tokens of a micro-batch.
        over_budget: samples that alone are longer; each gets a micro-batch of its own.
    """

    def __init__(
        self, settings: AnySettings, inputs: StageInputs, denominator: Callable[[Sequence[int]], float]
    ) -> None:
        train = inputs.train
        if len(train) == 0:
            raise DataError(
                "no training samples are left",
                code=codes.NO_GOOD_RECORD,
                where="data",
                remedy="add sources, or lower validationFraction; see the counts of what was filtered",
            )
        weights, repeats = mixture_of(settings)
        self.order = SampleOrder(train.groups, train.group_names, inputs.seed, weights, repeats)
        self._train = train
        self._settings = settings
        self._rank, self._world_size = inputs.rank, inputs.world_size
        self._pin = inputs.device.type == "cuda"
        self._denominator = denominator
        self.budget = settings.token_budget
        self.over_budget = int((train.tokens > self.budget).sum())
        self._samples = max(1, round(settings.epochs * self.order.epoch_size))
        steps = math.ceil(self._samples / settings.global_batch_size)
        self.total_steps = min(steps, settings.max_steps) if settings.max_steps else steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[int, Future[StepBatches]] | None = None

    def step_batches(self, step: int) -> StepBatches:
        """The micro-batches of optimizer step ``step``; begins to read the next one."""
        ahead, self._ahead = self._ahead, None
        batches = ahead[1].result() if ahead is not None and ahead[0] == step else self._build(step)
        if step + 1 < self.total_steps:
            self._ahead = (step + 1, self._thread.submit(self._build, step + 1))
        return batches

    def _build(self, step: int) -> StepBatches:
        size = self._settings.global_batch_size
        start = step * size
        indices = self.order.indices(start, min(size, self._samples - start))
        batches = fetch_step(self._train, indices.tolist(), self._rank, self._world_size, self.budget)
        return StepBatches(
            micro_batches=[batch.pinned() for batch in batches] if self._pin else batches,
            denominator=self._denominator(indices.tolist()),
            samples=len(indices),
            tokens=int(self._train.tokens[indices].sum()),
            over_budget=int((self._train.tokens[indices] > self.budget).sum()),
            epoch=self.order.epoch_of(start + len(indices)),
        )


def held_out_batches(samples: SampleSet, settings: AnySettings, inputs: StageInputs) -> Iterator[MicroBatch]:
    """This rank's micro-batches of what is evaluated of a split, on its device; the same at every evaluation.

    There are no dummy batches, for evaluation communicates only at its end.
    """
    count = min(len(samples), settings.max_evaluation_samples)
    # One choice for all runs of a pipeline, independent of their seeds: figures stay comparable.
    indices = np.sort(permutation(len(samples), 0)[:count])
    block = _EVALUATION_BLOCK * inputs.world_size
    for start in range(0, count, block):
        chosen = indices[start : start + block]
        batches = partition(samples.tokens[chosen].tolist(), inputs.world_size, settings.token_budget)
        for positions in batches[inputs.rank]:
            if positions:
                beat(start / count)
                yield collate(samples.fetch([int(chosen[at]) for at in positions])).to(inputs.device)


def sum_over_ranks(values: Sequence[Any], device: torch.device) -> list[float]:
    """Sums numbers or scalar tensors over the ranks; the host waits once."""
    packed = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(packed)
    total: list[float] = packed.tolist()
    return total
