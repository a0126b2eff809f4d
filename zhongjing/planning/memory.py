"""Peak memory of one worker by role, from the model's shape and the stage's settings.

ZeRO-2 keeps the whole model on every worker and a share of gradients, masters and moments. The peak is in
the backward pass, where the gradient that is accumulated and that of the current micro-batch exist together,
or at the step, where DeepSpeed casts one parameter group's gradient to fp32: the larger of the two counts.

Constants that are not arithmetic stand at the top. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, SftSettings
from zhongjing.planning.hardware import GIB
from zhongjing.planning.shape import Shape

LOSS_CHUNK_TOKENS = 1024
"""Target tokens whose logits exist at a time (zhongjing.model.causal)."""
LOSS_COPIES = 3
"""Tensors of a chunk's size in the loss: logits, log-probabilities and their gradient."""
BUCKET_ELEMENTS = 200_000_000
"""Largest reduce bucket (zhongjing.train.engine)."""
SPLIT_FROM = 1_000_000_000
"""Trained parameters above which they are in several groups (zhongjing.train.parameters)."""
LARGEST_GROUP = 1 / 8
"""Part of the parameters in the largest of at least eight parameter groups (zhongjing.train.parameters)."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Bytes a parameter in nf4 with double quantization (Dettmers et al. 2023)."""
PROCESS_BYTES = {"gpu": 4 * GIB, "cpu": 600 * 2**20}
"""Host memory of a worker before it has a model: interpreter, torch and, on a GPU, CUDA's libraries."""

_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}


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
    roles = 2 if isinstance(settings, PpoSettings) else 1
    return roles * (shape.adapter_parameters(settings.lora.rank) + shape.hidden)


def width_of(settings: AnySettings) -> int:
    """Bytes of a weight; ``auto`` is a format of 16 bits on every GPU, and fp32 on CPUs."""
    if settings.precision == "auto":
        return 2 if settings.resources.gpus else 4
    return _WIDTHS[settings.precision]


def plan_memory(shape: Shape, settings: AnySettings) -> Memory:
    """Peak memory of one worker of a stage."""
    width = width_of(settings)
    trained, workers = trained_parameters(shape, settings), settings.workers
    full = trained == shape.parameters
    share = math.ceil(trained / workers)
    weights = _weight_bytes(shape, settings, width)
    # bf16 accumulates in fp32 (zhongjing.train.engine).
    accumulated = share * (4 if settings.precision in ("bf16", "auto") else width)
    offload = settings.optimizer.offload == "cpu" and settings.resources.gpus > 0
    device: dict[str, int] = {
        "weights": weights,
        "adapters": 0 if full else _adapter_bytes(shape, settings, width),
        "gradients": accumulated,
        "optimizer": 0 if offload else 12 * share,
        "buckets": width * min(trained, BUCKET_ELEMENTS) * (2 if workers > 1 else 1),
    }
    training = {
        "gradients of the micro-batch": width * share,
        "activations": _activations(shape, settings, width, full=full),
        "loss": _loss_bytes(shape, settings, width, full=full),
    }
    group = LARGEST_GROUP if trained > SPLIT_FROM else 1
    step = {"fp32 cast at the step": 0 if offload else math.ceil(4 * share * group)}
    phases: list[dict[str, int]] = [training, step]
    if isinstance(settings, PpoSettings):
        phases.append({"KV cache": _kv_bytes(shape, settings, width)})
    peak = max(sum(phase.values()) for phase in phases)
    device |= next(phase for phase in phases if sum(phase.values()) == peak)
    on_gpu = settings.resources.gpus > 0
    process = PROCESS_BYTES["gpu" if on_gpu else "cpu"]
    if not on_gpu:
        return Memory(device, process + sum(device.values()), on_gpu=False)
    # Loading holds the base once; a checkpoint copies this worker's masters and moments. With offload
    # masters, moments and accumulated gradients live there as well.
    pinned = 16 * share if offload else 0
    return Memory(device, process + pinned + max(width * shape.parameters, 12 * share), on_gpu=True)


def _weight_bytes(shape: Shape, settings: AnySettings, width: int) -> int:
    if isinstance(settings, PretrainSettings) or settings.quantization == "none":
        return width * shape.parameters
    linear = shape.linear_parameters
    return width * (shape.parameters - linear) + math.ceil(NF4_BYTES * linear)


def _adapter_bytes(shape: Shape, settings: AnySettings, width: int) -> int:
    # PPO holds four: policy, the frozen SFT adapter, critic and reward.
    roles = 4 if isinstance(settings, PpoSettings) else 1
    return width * roles * (shape.adapter_parameters(settings.lora.rank) + shape.hidden)


def _of_block(shape: Shape, settings: AnySettings, width: int, *, full: bool) -> float:
    """Bytes a token that one block keeps for its backward pass."""
    h, i, a, kv = shape.hidden, shape.intermediate, shape.attention, shape.kv
    # Two norms (input, normalised, output), queries, keys, values, attention's output, the MLP's four.
    elements = 6 * h + 2 * a + 2 * kv + 4 * i
    bytes_ = width * elements
    if width == 2:
        bytes_ += 2 * 4 * h  # the norms compute in fp32
    dropout = 0.0 if full else settings.lora.dropout
    if dropout > 0:
        # Each of the seven adapters has its own dropped copy of its input, and a mask.
        bytes_ += (width + 1) * (5 * h + a + i)
    if not full:
        bytes_ += width * 7 * settings.lora.rank
    return bytes_


def _activations(shape: Shape, settings: AnySettings, width: int, *, full: bool) -> int:
    tokens = settings.token_budget
    block = _of_block(shape, settings, width, full=full)
    # Gradients inside the block whose backward pass runs.
    running = width * (2 * shape.hidden + 2 * shape.intermediate)
    if settings.gradient_checkpointing:
        per_token = shape.layers * width * shape.hidden + block + running
    else:
        per_token = shape.layers * block + running
    return math.ceil(tokens * per_token)


def _loss_bytes(shape: Shape, settings: AnySettings, width: int, *, full: bool) -> int:
    tokens = settings.token_budget
    chunk = LOSS_COPIES * 4 * min(LOSS_CHUNK_TOKENS, tokens) * shape.vocabulary
    # The output layer's gradient is summed over the chunks in fp32.
    weight = (4 + (width if width == 2 else 0)) * shape.vocabulary * shape.hidden if full else 0
    return chunk + weight + 2 * width * tokens * shape.hidden


def _kv_bytes(shape: Shape, settings: PpoSettings, width: int) -> int:
    """All rows of a rollout at once; within ``rollout.cacheGiB`` where it is set, but one row at least."""
    rows = math.ceil(settings.global_batch_size / settings.workers)
    row = 2 * width * shape.layers * shape.kv * (settings.longest_prompt + settings.max_new_tokens)
    budget = settings.rollout.cache_gib
    return rows * row if budget is None else max(row, min(rows * row, round(budget * 2**30)))
