"""Peak memory of one worker by role, from the model's shape and the stage's settings.

ZeRO-2 keeps the whole model on every worker and a share of gradients, masters and moments. What comes on top
differs by phase of a step, and the largest phase counts:

- *loss*: all activations that the backward pass needs, and the logits of a chunk;
- *backward begins*: all activations, the gradients of logits and output layer, of one block;
- *backward ends*: no activations any more, the gradients of this micro-batch twice: in DeepSpeed's bucket
  and in the partition that it is copied to;
- *step*: a flat copy of one parameter group's gradient, in 16 bits also its cast to fp32;
- *rollout* (PPO): the key-value cache.

A GPU takes a bucket when it is allocated, a CPU when it is written: there the two ends of the backward pass
are two phases, on a GPU they are one. Sources: zhongjing.train.engine, zhongjing.model.causal,
zhongjing.model.attention, DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py), transformers' Llama, Qwen2 and
Qwen3. benchmarks/plan_memory.py holds the sums against measured peaks on a CPU; a GPU's were not measured.

Constants that are not arithmetic stand at the top. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, RmSettings, SftSettings
from zhongjing.planning.hardware import GIB
from zhongjing.planning.row_size import FREE_FRACTION, MOST_ROWS, RowSize
from zhongjing.planning.shape import Shape

LOSS_CHUNK_TOKENS = 1024
"""Target tokens whose logits exist at a time (zhongjing.model.causal)."""
SMALLEST_BUCKET, LARGEST_BUCKET = 1_000_000, 200_000_000
"""Elements of the reduce bucket (zhongjing.train.engine)."""
OVERLAP_FROM = 100_000_000
"""Trained parameters from which a GPU has two buckets, to communicate beside the backward pass (likewise)."""
SPLIT_FROM = 1_000_000_000
"""Trained parameters above which they are in several groups (zhongjing.train.parameters)."""
LARGEST_GROUP = 1 / 8
"""Part of the parameters in the largest of at least eight parameter groups (zhongjing.train.parameters)."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Bytes a parameter in nf4 with double quantization (Dettmers et al. 2023)."""
PROCESS_BYTES = {"gpu": 4 * GIB, "cpu": 500 * 2**20}
"""Host memory of a worker before it has a model: interpreter, torch, transformers, DeepSpeed (measured on a
CPU) and, on a GPU, CUDA's libraries (estimated)."""
STAGING_BYTES = 64 * 2**20
"""Pinned memory between a GPU and the file of a checkpoint (zhongjing.train.snapshot)."""

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
_ADAPTERS = 7  # linear layers of a block


@dataclass(frozen=True)
class Memory:
    """What one worker takes at its peak: on its GPU (or, without one, of the host) by role; on the host."""

    device: Mapping[str, int]
    host: int
    on_gpu: bool

    @property
    def peak(self) -> int:
        """Bytes of the device at the peak."""
        return sum(self.device.values())


def trained_parameters(shape: Shape, settings: AnySettings) -> int:
    """Parameters that the optimizer moves; of PPO those of policy and critic."""
    if isinstance(settings, (PretrainSettings, SftSettings)) and settings.tuning == "full":
        return shape.parameters
    adapter = shape.adapter_parameters(settings.lora.rank)
    if isinstance(settings, PpoSettings):
        return 2 * adapter + shape.hidden
    return adapter + (shape.hidden if isinstance(settings, RmSettings) else 0)


def width_of(settings: AnySettings) -> int:
    """Bytes of a weight; ``auto`` is a format of 16 bits on every GPU, and fp32 on CPUs."""
    if settings.precision == "auto":
        return 2 if settings.resources.gpus else 4
    return _WIDTHS[settings.precision]


def plan_memory(shape: Shape, settings: AnySettings, limit: int | None = None) -> Memory:
    """Peak memory of one worker of a stage.

    Args:
        shape: of the base.
        settings: of the stage.
        limit: bytes that the device has. Rollouts without ``rollout.cacheGiB`` take a part of what is free of
            them; none: as much as the rows of one rollout need.
    """
    plan = _Plan(shape, settings)
    held = plan.held()
    phases = plan.phases()
    if isinstance(settings, PpoSettings):
        free = None if limit is None else limit - sum(held.values())
        phases.append(plan.rollout(settings, free))
    device = held | max(phases, key=lambda phase: sum(phase.values()))
    if not plan.on_gpu:
        return Memory(device, PROCESS_BYTES["cpu"] + sum(device.values()), on_gpu=False)
    host = PROCESS_BYTES["gpu"] + STAGING_BYTES + max(plan.loading(), plan.offloaded())
    return Memory(device, host, on_gpu=True)


class _Plan:
    """The terms of one worker's memory."""

    def __init__(self, shape: Shape, settings: AnySettings) -> None:
        self.shape = shape
        self.settings = settings
        self.width = width_of(settings)
        self.on_gpu = settings.resources.gpus > 0
        self.trained = trained_parameters(shape, settings)
        self.full = self.trained == shape.parameters
        self.share = math.ceil(self.trained / settings.workers)
        self.offload = settings.optimizer.offload == "cpu"
        # A longer sample is alone in its micro-batch.
        longest = settings.max_length
        if isinstance(settings, PpoSettings):
            longest = settings.longest_prompt + settings.max_new_tokens
        self.tokens = max(settings.token_budget, longest)
        # bf16 accumulates in one fp32 buffer; the others keep what was summed beside the current gradient.
        self.in_place = settings.precision == "bf16" or (settings.precision == "auto" and self.width == 2)
        # Of rankings nothing tells how many answers a prompt has.
        enough = self.tokens * settings.workers >= settings.global_batch_size * longest
        self.one_pass = enough and not isinstance(settings, RmSettings)
        self.bucket = min(max(self.trained, SMALLEST_BUCKET), LARGEST_BUCKET)

    # -- what is there all the time

    def held(self) -> dict[str, int]:
        """Weights, adapters, accumulated gradients, optimizer."""
        on_device = not (self.offload and self.on_gpu)
        gradients = 0
        if self.in_place:
            gradients = 4 * self.share
        elif not self.one_pass and not self.offload:
            gradients = self.width * self.share
        optimizer = 12 * self.share
        if self.offload:
            optimizer = self.offloaded() if on_device else 0
        return {
            "weights": self._weights(),
            "adapters": 0 if self.full else self._adapters(),
            "gradients": gradients,
            "optimizer": optimizer,
        }

    def _weights(self) -> int:
        shape, settings = self.shape, self.settings
        parameters = shape.parameters
        if isinstance(settings, RmSettings) and not shape.tied:
            parameters -= shape.vocabulary * shape.hidden  # a classifier has no output layer
        if isinstance(settings, PretrainSettings) or settings.quantization == "none":
            return self.width * parameters
        linear = shape.linear_parameters
        return self.width * (parameters - linear) + math.ceil(NF4_BYTES * linear)

    def _adapters(self) -> int:
        # PPO holds four: policy, the frozen SFT adapter, critic and reward.
        roles = 4 if isinstance(self.settings, PpoSettings) else 1
        adapter = self.shape.adapter_parameters(self.settings.lora.rank)
        return self.width * roles * (adapter + self.shape.hidden)

    # -- phases of a step

    def phases(self) -> list[dict[str, int]]:
        """What comes on top in each phase of a step."""
        kept, recomputed = self.activations()
        forward, backward = self._loss()
        buckets = self._buckets()
        current = 0 if self.in_place or self.offload else self.width * self.share
        running = {"activations": kept + recomputed + self._running(), "loss": backward}
        ends = {"buckets": buckets, "gradients of the micro-batch": current}
        if self.offload:
            # A gradient on its way to the host: what was summed comes back, then its cast.
            ends["gradients of the micro-batch"] = (self.width + 4) * self._largest()
        phases = [{"activations": kept, "loss": forward}]
        phases += [running | ends] if self.on_gpu else [running, ends]
        step = 0
        if not self.in_place and not self.offload:
            group = LARGEST_GROUP if self.trained > SPLIT_FROM else 1
            flat = self.width + (4 if self.width == 2 else 0)
            # Of a single micro-batch its own gradient is what the step is made of.
            step = math.ceil(flat * self.share * group) + (self.width * self.share if self.one_pass else 0)
        return [*phases, {"fp32 cast at the step": step}]

    def _buckets(self) -> int:
        count = 1
        if self.settings.workers > 1:
            count += 1  # what is reduced is a copy
            if self.on_gpu and self.trained >= OVERLAP_FROM:
                count += 1
        return count * self.width * self.bucket

    def _largest(self) -> int:
        """Elements of the largest trained parameter."""
        shape = self.shape
        if self.full:
            return shape.hidden * max(shape.vocabulary, shape.intermediate)
        return self.settings.lora.rank * max(shape.hidden, shape.attention, shape.intermediate)

    def activations(self) -> tuple[int, int]:
        """Kept for the backward pass, and what it computes again: nothing, or one block."""
        shape, width = self.shape, self.width
        # PPO has policy and critic in one pass, one behind the other.
        tokens = (2 if isinstance(self.settings, PpoSettings) else 1) * self.tokens
        block, recomputed = self._of_block(), 0.0
        if self.settings.gradient_checkpointing:
            block, recomputed = float(width * shape.hidden), block
        around = self._of_norm(shape.hidden) + width * shape.hidden
        return math.ceil(tokens * (shape.layers * block + around)), math.ceil(tokens * recomputed)

    def _of_norm(self, channels: int) -> float:
        """Bytes a token of an RMS norm without its output: its input in fp32, trained also the normalised."""
        return (4 + (self.width if self.full else 0)) * channels

    def _of_block(self) -> float:
        """Bytes a token that one block keeps."""
        shape, settings, width = self.shape, self.settings, self.width
        h, i, a, kv = shape.hidden, shape.intermediate, shape.attention, shape.kv
        dropout = 0.0 if self.full else settings.lora.dropout
        drawn = settings.dropout if isinstance(settings, PretrainSettings) else 0.0
        bytes_ = 2 * self._of_norm(h) + (self._of_norm(a + kv) if shape.qk_norms else 0)
        # Queries, keys, values and what attention gives; by segment that is put together once more.
        by_segment = not self.on_gpu or width == 4 or drawn > 0
        if drawn > 0 and not self.on_gpu:
            # No fused kernel of a CPU draws dropout. All in fp32 and of as many heads as queries have:
            # queries, keys, values; shares, draws and their product, of all pairs of tokens.
            bytes_ += 12 * a + 12 * shape.heads * settings.max_length
        else:
            bytes_ += width * (2 * a + 2 * kv) + 4 * shape.heads
        # Gate, up, the gate's activation.
        bytes_ += width * 3 * i
        # Inputs of the seven layers, shared by those that have the same: for weights, or for adapters.
        if dropout == 0:
            bytes_ += width * (2 * h + (a if by_segment else 0) + i)
        else:
            # Each adapter has its own dropped copy, and a mask: on a GPU bytes, on a CPU numbers.
            bytes_ += (width + (1 if self.on_gpu else width)) * (5 * h + a + i)
        if not self.full:
            bytes_ += width * _ADAPTERS * settings.lora.rank
        return bytes_

    def _running(self) -> int:
        """Gradients inside the block whose backward pass runs; of nf4 also a layer's weights."""
        shape, settings = self.shape, self.settings
        quantized = not isinstance(settings, PretrainSettings) and settings.quantization != "none"
        layer = self.width * shape.hidden * shape.intermediate if quantized else 0
        return self.width * self.tokens * (shape.hidden + shape.intermediate) + layer

    def _loss(self) -> tuple[int, int]:
        """Bytes of the loss as it is computed, and as its backward pass begins."""
        shape, settings, width = self.shape, self.settings, self.width
        if isinstance(settings, RmSettings):
            return 0, 0  # a number a segment
        if isinstance(settings, PpoSettings):
            longest = settings.longest_prompt + settings.max_new_tokens
            targets = math.ceil(self.tokens * settings.max_new_tokens / longest)
            chunk = 4 * min(LOSS_CHUNK_TOKENS, targets) * shape.vocabulary
            return 2 * chunk, 3 * chunk
        chunk = 4 * min(LOSS_CHUNK_TOKENS, self.tokens) * shape.vocabulary
        hidden = width * self.tokens * shape.hidden
        layer = shape.vocabulary * shape.hidden if self.full else 0
        if width == 4:
            # Gradients are made beside the loss, and multiplied by what comes from above.
            return 2 * chunk + 4 * layer + hidden, 8 * layer + 2 * hidden
        # Logits in 16 bits, as fp32, and the shares; in backward again, with the layer's gradient in fp32.
        logits = chunk // 2 + 2 * chunk
        return logits, max(logits + 4 * layer, 6 * layer) + hidden

    # -- rollouts and the host

    def rollout(self, settings: PpoSettings, free: int | None) -> dict[str, int]:
        """Generation of ``rollout.cacheGiB`` or, of ``free`` bytes, of its part; one row at least."""
        row = RowSize.of(self.shape, self.width)
        prompt, new = settings.longest_prompt, settings.max_new_tokens
        rows = settings.global_batch_size
        if settings.rollout.cache_gib is not None:
            budget = int(settings.rollout.cache_gib * GIB)
        elif free is not None:
            budget = int(FREE_FRACTION * max(free, 0))
        else:
            budget = row.needed(MOST_ROWS, prompt, new)
        if settings.rollout.cache_gib is not None or free is not None:
            rows = max(rows, settings.max_evaluation_samples)
        made = row.rows_within(budget, math.ceil(rows / settings.workers), prompt, new)
        # Policy and what it stands on are fused for it.
        fused = 2 * self.width * self.shape.adapter_parameters(settings.lora.rank)
        return {"adapters for rollouts": fused, "KV cache": row.needed(made, prompt, new)}

    def loading(self) -> int:
        """Of the host, while the base goes to the GPU: transformers converts four tensors at a time."""
        return 4 * self.width * self.shape.hidden * max(self.shape.vocabulary, self.shape.intermediate)

    def offloaded(self) -> int:
        """Masters, their gradients and moments in fp32, a 16-bit copy of the masters, and buffers.

        With several micro-batches DeepSpeed keeps their sum in the weights' format as well.
        """
        if not self.offload:
            return 0
        each = 16 + self.width + (0 if self.one_pass or self.in_place else self.width)
        return each * self.share + self.width * self._largest()
