"""DeepSpeed ZeRO-2 around a stage's module: accumulation, clipping, spike guard, one host sync per step.

DeepSpeed looks at the norm of the gradient, at overflows and at the loss one after the other, and the host
waits for the device each time. Here everything that the host wants to know about an optimizer step (norm,
loss, sums, stop flags) travels in one small all-reduce, and DeepSpeed's optimizer is told the answers: four
of its methods are replaced on the instance (see :meth:`Engine._take_over`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import distributed, nn

from zhongjing.codes import unexpected as unexpected_codes
from zhongjing.config.stages import StageSettings
from zhongjing.errors import ConfigError
from zhongjing.storage.heartbeat import beat
from zhongjing.train.distributed import (
    allocate_pinned_exactly,
    check_same_start,
    ensure_process_group,
    prepare_deepspeed,
)
from zhongjing.train.precision import settled
from zhongjing.train.spike_guard import GuardDecision, SpikeGuard, exploded
from zhongjing.train.stages.program import MicroLoss, StepBatches

# Elements of a reduce bucket: large enough for a network, small enough for a laptop.
_MAX_BUCKET = 200_000_000
_MIN_BUCKET = 1_000_000
# Overlapping communication costs a device synchronisation per backward pass; it pays for large gradients.
_OVERLAP_FROM = 100_000_000


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step was. All values are global, equal on every rank."""

    loss: float
    sums: Mapping[str, float]  # each divided by its denominator
    gradient_norm: float  # before clipping; inf or nan if it was not finite
    overflow: bool  # the fp16 loss scaler is searching: no update was made
    applied: bool  # whether an update was made
    guard: GuardDecision | None
    learning_rate: float  # as applied: schedule x guard
    flags: Sequence[float] = field(default_factory=tuple)  # sums over the ranks of what each gave
    loss_scale: float = 1.0


class _Entry(nn.Module):
    """Gives DeepSpeed a tensor: it finds where a backward pass begins only in plain tensors."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, micro_batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss: MicroLoss = self.program(micro_batch)
        return loss.total, dict(loss.sums)


def _buckets(trainable: int) -> int:
    return 2 * (min(max(trainable, _MIN_BUCKET), _MAX_BUCKET) // 2)


def _engine_config(
    settings: StageSettings, trainable: int, world_size: int, device: torch.device
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # ours: set_gradient_accumulation_boundary
        "gradient_clipping": settings.max_gradient_norm,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": device.type == "cuda" and world_size > 1 and trainable >= _OVERLAP_FROM,
            "reduce_bucket_size": _buckets(trainable),
            "allgather_bucket_size": _buckets(trainable),
        },
    }
    if settings.optimizer.offload == "cpu":
        config["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": device.type == "cuda",
        }
    if settings.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "initial_scale_power": 16,
            "loss_scale_window": 500,
            "hysteresis": 1,
        }
    elif settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # A bf16 running sum over micro-batches would lose their smaller half.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class Engine:
    """A module under ZeRO-2 with AdamW.

    Args:
        module: ``forward(micro_batch)`` returns a :class:`MicroLoss`. It is moved to ``device`` and, for fp16
            and bf16, cast. With ``optimizer.offload: cpu`` a parameter must have a gradient in every
            micro-batch or in none: DeepSpeed 0.19.8 drops, or adds again, what one without it has summed.
        groups: AdamW groups; ``lr_scale`` multiplies the schedule.
        settings: of the stage: optimizer, precision, clipping, guard.
        device: where to train.

    Raises:
        ConfigError: the precision does not exist on the device, or nothing is trainable.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        settings: StageSettings,
        device: torch.device,
    ) -> None:
        settings = settled(settings, device)
        prepare_deepspeed(device)
        self.rank, self.world_size = ensure_process_group(device)
        self.device = device
        self.settings = settings
        self.module = module
        self.names = {name: p for name, p in module.named_parameters() if p.requires_grad}
        in_groups = {id(p) for group in groups for p in group["params"]}
        if not self.names or in_groups != {id(p) for p in self.names.values()}:
            raise ConfigError(
                f"{len(self.names)} parameters are trainable, {len(in_groups)} are in the optimizer's groups",
                code=unexpected_codes.UNEXPECTED,
                remedy="list every trainable parameter in parameter_groups() once",
            )
        self.trainable = sum(p.numel() for p in self.names.values())
        self._lr_scales = [float(group.get("lr_scale", 1.0)) for group in groups]
        optimizer = torch.optim.AdamW(
            [{k: v for k, v in group.items() if k != "lr_scale"} for group in groups],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self._engine = self._initialize(optimizer)
        self.zero = self._engine.optimizer
        self.guard = SpikeGuard(settings.guard)
        self.last_checkpoint: int | None = None  # for messages; the loop sets it
        self._skip = False
        self._keep_scale = False
        self._scaled_norm = 0.0
        self._backward_scale = 1.0
        self._loss_factor = 1.0
        self._take_over()
        self._make_moments()

    def _initialize(self, optimizer: torch.optim.Optimizer) -> Any:
        import deepspeed

        if self.settings.optimizer.offload == "cpu" and self.device.type == "cuda":
            allocate_pinned_exactly()
        check_same_start(self.module, self.device)
        with _unsent(self.module):
            engine, *_ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=self.device.index or 0, deepspeed_config=None),
                model=_Entry(self.module),
                optimizer=optimizer,
                config=_engine_config(self.settings, self.trainable, self.world_size, self.device),
            )
        return engine

    def _take_over(self) -> None:
        """Replaces what would make the host wait, on this instance of DeepSpeed's optimizer.

        ``check_overflow`` and ``scaled_global_norm`` each reduce and fetch a number that our one all-reduce
        already brought. ``unscale_and_clip_grads`` is where the loss scale is divided out and the norm is
        clipped; the guard's factor belongs right behind it: Adam divides by the gradient's own size, so a
        factor on the loss before clipping would be cancelled. ``_update_scale`` must not take a loss that is
        itself not finite for an overflow of the loss scale.
        """
        zero = self.zero
        zero.check_grad_overflow = True
        update_scale: Callable[[bool], None] = zero._update_scale

        def check_overflow(partition_gradients: bool = True) -> None:
            zero.overflow = self._skip

        def scaled_global_norm(norm_type: int = 2) -> torch.Tensor:
            return torch.tensor(self._scaled_norm, dtype=torch.float64)  # on the host on purpose

        def unscale_and_clip_grads(gradients: Sequence[torch.Tensor], total_norm: torch.Tensor) -> None:
            # Not zero.loss_scale: `step` has updated it by now, and where it grew gradients would be halved.
            scale = self._backward_scale
            clip = max((self._scaled_norm / scale + 1e-6) / self.settings.max_gradient_norm, 1.0)
            factor = self._loss_factor / (clip * scale)
            if factor != 1.0:
                for gradient in gradients:
                    gradient.data.mul_(factor)

        def update_unless_kept(has_overflow: bool = False) -> None:
            if not self._keep_scale:
                update_scale(has_overflow)

        zero.check_overflow = check_overflow
        zero.scaled_global_norm = scaled_global_norm
        zero.unscale_and_clip_grads = unscale_and_clip_grads
        zero._update_scale = update_unless_kept

    def _make_moments(self) -> None:
        """Makes AdamW's state before the first step: a checkpoint can always be written or read."""
        optimizer = self.zero.optimizer
        for partition in self.zero.single_partition_of_fp32_groups:
            optimizer.state[partition] = {
                "step": torch.zeros((), dtype=torch.float32, device=partition.device),
                "exp_avg": torch.zeros_like(partition, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(partition, requires_grad=False),
            }
        self.zero._lazy_init_hp_params_optimizer_state()

    @property
    def loss_scale(self) -> float:
        """Scale of the fp16 loss; 1 in other precisions."""
        return float(self.zero.loss_scale)

    def train_step(
        self, batches: StepBatches, learning_rate: float, flags: Sequence[float] = (), *, step: int = 0
    ) -> StepResult:
        """One optimizer step over the micro-batches of a step.

        The loss of the step is the sum over all micro-batches and ranks divided by ``batches.denominator``.
        DeepSpeed averages gradients over the ranks, so each rank's share is multiplied by their number.

        Args:
            batches: the same number of micro-batches on every rank; all with the same keys in ``sums``.
            learning_rate: of the schedule; the guard's factor comes on top.
            flags: numbers of this rank that come back summed over the ranks.
            step: number of the step, for messages.

        Raises:
            TrainingError: the fp16 loss scale has fallen to its minimum.
        """
        if not batches.micro_batches:
            raise ConfigError(
                "a step has no micro-batches",
                code=unexpected_codes.UNEXPECTED,
                remedy="give every rank a dummy batch at least",
            )
        self._engine.train()
        share = self.world_size / batches.denominator if batches.denominator else 0.0
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        sums: dict[str, torch.Tensor] = {}
        last = len(batches.micro_batches) - 1
        for at, micro_batch in enumerate(batches.micro_batches):
            # Told before each forward: DeepSpeed accumulates until the boundary. Its own counting would need
            # the same number of micro-batches in every step, and two backwards between its steps lose one.
            self._engine.set_gradient_accumulation_boundary(at == last)
            beat()
            loss, extra = self._engine(self.move(micro_batch))
            self._engine.backward(loss.float() * share, scale_wrt_gas=False)
            total += loss.detach()
            for name, value in extra.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach().double()
        return self._finish(batches, learning_rate, total, sums, flags, step)

    def _finish(  # noqa: PLR0917
        self,
        batches: StepBatches,
        learning_rate: float,
        total: torch.Tensor,
        sums: Mapping[str, torch.Tensor],
        flags: Sequence[float],
        step: int,
    ) -> StepResult:
        """Reduces what the ranks have of the step (float64 scalars), and takes it."""
        names = sorted(sums)
        packed = torch.stack([self._square_norm(), total, *(sums[name] for name in names)])
        if flags:
            host = torch.tensor(list(flags), dtype=torch.float64)
            packed = torch.cat([packed, host.to(self.device, non_blocking=True)])
        if self.world_size > 1:
            distributed.all_reduce(packed)
        values: list[float] = packed.tolist()  # the step's one wait for the device
        loss = values[1] / batches.denominator if batches.denominator else 0.0
        scale = self._backward_scale = self.loss_scale
        self._scaled_norm = math.sqrt(values[0]) if values[0] >= 0 else math.nan
        norm = self._scaled_norm / scale
        finite = math.isfinite(norm)
        overflow = not finite and self.settings.precision == "fp16" and math.isfinite(loss)
        # A step without weight changes nothing: zero gradients would still let Adam's momentum act.
        empty = batches.denominator == 0
        ignored = overflow or (empty and finite)
        decision = None if ignored else self.guard.observe(norm if math.isfinite(loss) else math.nan)
        self._skip = empty or not finite or not math.isfinite(loss)
        self._keep_scale = self._skip and not overflow
        self._loss_factor = decision.loss_factor if decision else self.guard.loss_factor
        rate = learning_rate * (
            decision.learning_rate_factor if decision else self.guard.learning_rate_factor
        )
        self._check_scale(overflow, scale, step)
        for group, lr_scale in zip(self.zero.optimizer.param_groups, self._lr_scales, strict=True):
            group["lr"] = rate * lr_scale
        self._engine.step()
        denominators = batches.denominators
        return StepResult(
            loss=loss,
            sums={
                name: value / (denominators.get(name, batches.denominator) or 1.0)
                for name, value in zip(names, values[2:], strict=False)
            },
            gradient_norm=norm,
            overflow=overflow,
            applied=not self._skip,
            guard=decision,
            learning_rate=rate,
            flags=tuple(values[2 + len(names) :]),
            loss_scale=scale,
        )

    def _check_scale(self, overflow: bool, scale: float, step: int) -> None:
        smallest = getattr(self.zero.loss_scaler, "min_scale", 1.0)
        if overflow and scale <= smallest:
            raise exploded(
                f"gradients overflow fp16 even at the smallest loss scale ({scale:g})",
                step,
                self.last_checkpoint,
            )

    def _square_norm(self) -> torch.Tensor:
        """Square of the norm of this rank's part of the averaged, scaled gradient; float64 scalar."""
        squares = []
        if self.zero.cpu_offload:
            # Gradients are copied to the host asynchronously, and DeepSpeed waits for them only in `step`
            # (0.19.8, runtime/zero/stage_1_and_2.py).
            self.zero._wait_for_offload_copies()
        for index, partition in enumerate(self.zero.single_partition_of_fp32_groups):
            if self.zero.cpu_offload:
                # There the accumulated gradient is on the host already, in fp32.
                squares.append(torch.linalg.vector_norm(partition.grad).double().square().to(self.device))
                continue
            gradients = self.zero.averaged_gradients[index]
            flat = getattr(gradients, "flat_partition", None)
            parts = [flat] if flat is not None else list(gradients)
            if parts[0].dtype == torch.float32:
                norms = list(torch._foreach_norm(parts))
            else:
                # Cast inside the kernel: copies in fp32 would cost as much as the masters.
                norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]
            squares.append(torch.stack(norms).double().square().sum())
        return torch.stack(squares).sum()

    def move(self, micro_batch: Any) -> Any:
        """The micro-batch on this rank's device."""
        to = getattr(micro_batch, "to", None)
        return to(self.device) if callable(to) and self.device.type != "cpu" else micro_batch

    def state_dict(self) -> dict[str, Any]:
        """What is not a tensor by parameter name: guard, step counters of AdamW, loss scaler."""
        scaler = self.zero.loss_scaler
        return {
            "guard": self.guard.state_dict(),
            "adamSteps": [
                float(self.zero.optimizer.state[partition]["step"])
                for partition in self.zero.single_partition_of_fp32_groups
            ],
            "scaler": {name: getattr(scaler, name) for name in _SCALER_STATE if hasattr(scaler, name)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.guard.load_state_dict(state["guard"])
        partitions = self.zero.single_partition_of_fp32_groups
        for partition, steps in zip(partitions, state["adamSteps"], strict=True):
            self.zero.optimizer.state[partition]["step"].fill_(steps)
        for name, value in state["scaler"].items():
            setattr(self.zero.loss_scaler, name, value)

    def destroy(self) -> None:
        """Takes DeepSpeed's hooks off the module."""
        self._engine.destroy()


@contextmanager
def _unsent(module: nn.Module) -> Iterator[None]:
    """Keeps DeepSpeed (0.19.8, ``_broadcast_model``) from sending rank 0's parameters to the other ranks.

    Every rank has them from the same files and seeds. On a CPU, writing what was received would turn pages
    that the node's ranks share with the base's files into a copy of the whole base in each rank.
    """
    parameters = list(module.parameters())
    for parameter in parameters:
        cast(Any, parameter).ds_optim_param = True
    try:
        yield
    finally:
        for parameter in parameters:
            del cast(Any, parameter).ds_optim_param


_SCALER_STATE: tuple[Literal["cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"], ...] = (
    "cur_scale",
    "cur_iter",
    "last_overflow_iter",
    "cur_hysteresis",
)
