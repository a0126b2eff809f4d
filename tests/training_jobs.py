"""What the ranks of a test run (:func:`tests.training_support.run_ranks`); each returns JSON values."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tests.local_context import LocalContext
from tests.memory_support import mapped_file
from tests.ppo_support import Folders, make_settings, ppo_inputs, random_prompts
from tests.training_support import dialogues, rankings, stage_inputs
from zhongjing.config.stages import PretrainSettings, RmSettings, SftSettings
from zhongjing.data.samples import PackedRow, SampleSet
from zhongjing.errors import DataError
from zhongjing.storage.checkpoint_records import Ranges
from zhongjing.storage.heartbeat import HEARTBEAT, beat
from zhongjing.storage.progress import Activity
from zhongjing.train import barrier as barrier_module
from zhongjing.train.barrier import BarrierError, first, meet
from zhongjing.train.distributed import check_same_start, ensure_process_group
from zhongjing.train.engine import Engine
from zhongjing.train.loop import run_loop
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.stages.build import build_program
from zhongjing.train.stages.program import MicroLoss, StepBatches
from zhongjing.train.state import read_state, wanted_ranges, write_state

CPU = torch.device("cpu")
SOURCE: list[dict[str, Any]] = [{"source": "any"}]

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Toy(nn.Module):
    """Weighted squares; has a parameter without use and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(7, 5)
        self.second = nn.Linear(5, 3)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, batch: Batch) -> MicroLoss:
        x, y, weights = batch
        errors = (self.frozen(self.second(self.first(x).tanh())) - y).square().sum(-1) * weights
        return MicroLoss(errors.sum(), {"count": weights.sum()})

    def trainable(self) -> list[nn.Parameter]:
        """Parameters with a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def toy_batches(step: int, count: int) -> list[Batch]:
    """``count`` micro-batches of unequal size."""
    made = []
    for at in range(count):
        random = torch.Generator().manual_seed(step * 100 + at)
        rows = 1 + (step + at) % 4
        made.append(
            (
                torch.randn(rows, 7, generator=random),
                torch.randn(rows, 3, generator=random),
                torch.ones(rows),
            )
        )
    return made


def toy_dummy() -> Batch:
    """A micro-batch of no weight."""
    return torch.ones(1, 7), torch.ones(1, 3), torch.zeros(1)


def toy_settings(**changes: Any) -> SftSettings:
    """Settings of the engine's tests."""
    return SftSettings(
        **{"precision": "fp32", "learning_rate": 1e-2, "max_gradient_norm": 0.5, "data": SOURCE, **changes}
    )


def toy_engine(**changes: Any) -> Engine:
    """An engine around a fresh toy, its vectors in a group of their own."""
    module = Toy()
    matrices = [p for p in module.trainable() if p.ndim > 1]
    vectors = [p for p in module.trainable() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr_scale": 2.0}]
    return Engine(module, groups, toy_settings(**changes), CPU)


def weights_of(module: nn.Module) -> dict[str, list[float]]:
    """Trainable parameters as JSON; every float32 survives it."""
    return {name: p.detach().flatten().tolist() for name, p in module.named_parameters() if p.requires_grad}


def toy_step(step: int, count: int, rank: int, world_size: int) -> StepBatches:
    """This rank's share of a step of ``count`` micro-batches; dummy batches where they do not suffice."""
    everything = toy_batches(step, count)
    mine: list[Batch] = everything[rank::world_size]
    mine += [toy_dummy()] * (-(-count // world_size) - len(mine))
    return StepBatches(mine, float(sum(len(batch[2]) for batch in everything)))


def engine_steps(
    folder: Path, *, counts: list[int], save: bool = False, load: bool = False, offload: str = "none"
) -> dict[str, Any]:
    """Optimizer steps with given numbers of micro-batches."""
    engine = toy_engine(optimizer={"offload": offload})
    first = wanted = 0
    if load:
        part = folder / f"part-{engine.rank}"
        wanted = copy_wanted(folder / "state", part, wanted_ranges(engine, folder / "state"))
        first = int(read_state(engine, part)["step"])
    results = []
    for step, count in enumerate(counts, start=first):
        plan = toy_step(step, count, engine.rank, engine.world_size)
        results.append(engine.train_step(plan, 1e-2, (1.0, float(engine.rank)), step=step))
    if save:
        target = folder / "state"
        target.mkdir(exist_ok=True)
        write_state(engine, target, {"step": first + len(counts)})
    return {
        "losses": [result.loss for result in results],
        "norms": [result.gradient_norm for result in results],
        "counts": [result.sums["count"] for result in results],
        "flags": [list(result.flags) for result in results],
        "weights": weights_of(engine.module),
        "wanted": wanted,
    }


def copy_wanted(state: Path, part: Path, ranges: Ranges) -> int:
    """Copies of a checkpoint the JSON files, and of the others only these ranges; returns their bytes."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for path in state.glob("*.json"):
        shutil.copy(path, part)
    count = 0
    for name, spans in ranges.items():
        content = (state / name).read_bytes()
        with (part / name).open("wb") as file:
            file.truncate(len(content))
            for start, end in spans:
                file.seek(start)
                count += file.write(content[start:end])
    return count


class CrowdedContext(LocalContext):
    """On a disk that has room for progress and metrics, but for no checkpoint until ``full_until``."""

    def __init__(self, folder: Path, *, full_until: int | None, **places: Any) -> None:
        super().__init__(folder, **places)
        self.messages: set[str] = set()
        self._full_until = full_until
        self._ballast = folder / "ballast"
        if full_until is not None and self.rank == 0:
            self._ballast.write_bytes(bytes(shutil.disk_usage(folder).free - (64 << 10)))

    def report(self, activity: Activity, **fields: Any) -> None:
        """Keeps what was said."""
        self.messages.add(fields["message"])
        super().report(activity, **fields)

    def log(self, kind: str, step: int, values: dict[str, float], *, epoch: float = 0.0) -> None:
        """Somebody makes room after step ``full_until``."""
        super().log(kind, step, values, epoch=epoch)
        if self.rank == 0 and step == self._full_until:
            self._ballast.unlink(missing_ok=True)


def meeting(folder: Path, *, kind: str) -> dict[str, Any]:
    """Rank 1 works for two seconds, or does nothing, or fails; both wait for each other without a collective.

    A rank that sees nothing done for 0.8 seconds gives up.
    """
    rank, _ = ensure_process_group(CPU)
    del folder

    def work() -> int:
        if rank == 1 and kind == "fails":
            raise ValueError("no room")
        for piece in range(10 if rank == 1 else 0):
            time.sleep(0.2)
            if kind == "works":
                beat(piece / 10)
        return 10 * rank

    barrier_module._TELL_SECONDS = 0.05
    before = HEARTBEAT.count
    assert first(lambda: {"step": 7 + rank}) == {"step": 7}
    try:
        return {"got": meet(work, seconds=0.8), "beats": HEARTBEAT.count - before}
    except (BarrierError, ValueError) as error:
        time.sleep(1.5)  # rank 0 serves the store
        return {"error": f"{type(error).__name__}: {error}"}


def train(
    folder: Path,
    *,
    stage: str,
    base: str,
    settings: dict[str, Any],
    stop_at: int | None = None,
    samples: int = 40,
    seed: int = 3,
    full_until: int | None = None,
) -> dict[str, Any]:
    """Runs a whole stage, or until ``stop_at``; on a full disk until step ``full_until``."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    common: dict[str, Any] = {"precision": "fp32", "data": SOURCE, "max_length": 64}
    ensure_process_group(CPU)
    context = CrowdedContext(
        folder / "run", rank=rank, world_size=world_size, stop_at=stop_at, full_until=full_until
    )
    kind: Any = {"pretrain": PretrainSettings, "sft": SftSettings, "rm": RmSettings}[stage]
    chosen = kind(**{**common, **settings})
    make: Callable[..., SampleSet] = rankings if stage == "rm" else dialogues
    program = build_program(chosen, stage_inputs(Path(base), make(samples), make(12, seed=9), seed=seed))
    result = run_loop(program, chosen, context, seed=seed)
    if rank == 0 and not result.suspended:
        (folder / "model").mkdir(exist_ok=True)
        extra = program.finish(folder / "model", result.metrics)
    else:
        extra = {}
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "suspended": result.suspended,
        "before": result.metrics_before,
        "metrics": result.metrics,
        "samples": result.samples,
        "tokens": result.tokens,
        "extra": extra,
        "weights": weights_of(program.module),
        "points": context.points,
        "messages": sorted(context.messages),
    }


def _program(stage: str, base: str, samples: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
    """A stage's program over ``samples``, and its settings."""
    chosen: Any = (RmSettings if stage == "rm" else SftSettings)(
        **{"precision": "fp32", "data": SOURCE, "max_length": 64, **settings}
    )
    ensure_process_group(CPU)
    program = build_program(chosen, stage_inputs(Path(base), samples, samples, seed=3))
    return program, chosen


def gradients(
    folder: Path, *, stage: str, base: str, settings: dict[str, Any], answers: int = 2
) -> dict[str, Any]:
    """Loss and averaged gradients of one optimizer step over 8 samples, by our engine."""
    from deepspeed.utils import safe_get_full_grad

    del folder
    samples = rankings(8, answers=answers) if stage == "rm" else dialogues(8)
    program, chosen = _program(stage, base, samples, {**settings, "global_batch_size": 8})
    engine = Engine(program.module, program.parameter_groups(), chosen, CPU)
    seen: dict[str, list[float]] = {}
    original = engine._square_norm

    def spy() -> torch.Tensor:
        for name, parameter in engine.names.items():
            seen[name.removeprefix("model.")] = safe_get_full_grad(parameter).flatten().tolist()
        return original()

    engine._square_norm = spy  # type: ignore[method-assign]
    plan = program.step_batches(0)
    program.module.train()
    result = engine.train_step(plan, 0.0)
    return {
        "loss": result.loss,
        "norm": result.gradient_norm,
        "gradients": seen,
        "micro_batches": len(plan.micro_batches),
        "targets": [batch.target_tokens for batch in plan.micro_batches],
    }


def trl_gradients(
    folder: Path, *, stage: str, base: str, settings: dict[str, Any], batch: int
) -> dict[str, Any]:
    """The same by TRL's trainer in one process: 8 samples, ``batch`` at a time."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import (  # type: ignore[attr-defined]
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    seen: dict[str, list[float]] = {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for name, parameter in kwargs["model"].named_parameters():
                if parameter.grad is not None:
                    seen[name] = parameter.grad.flatten().tolist()

    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 8 // batch,
        "max_steps": 1,
        "learning_rate": 1e-12,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer: Any
    if stage == "rm":
        program, _ = _program(stage, base, rankings(8, answers=2), settings)
        rows = [
            {"chosen_ids": s.segments[0].ids.tolist(), "rejected_ids": s.segments[1].ids.tolist()}
            for s in rankings(8, answers=2).samples
        ]
        trainer = RewardTrainer(
            model=program.model,
            args=RewardConfig(**common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
    else:
        rows = [
            {
                "input_ids": segment.ids.tolist(),
                "labels": [int(i) if t else -100 for i, t in zip(segment.ids, segment.target, strict=True)],
            }
            for sample in dialogues(8).samples
            for segment in sample.segments
        ]
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base),
            args=SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
    trainer.train()
    return {"loss": trainer.state.log_history[0]["loss"], "gradients": seen}


def beginnings(folder: Path, *, base: str) -> dict[str, Any]:
    """How much of the mapped base a rank has copied when its engine for an adapter is made.

    Then what is said if rank 1 begins with another adapter.
    """
    del folder
    program, chosen = _program("sft", base, dialogues(8), {"tuning": "lora"})
    frozen = [p for p in program.module.parameters() if not p.requires_grad]
    Engine(program.module, program.parameter_groups(), chosen, CPU)
    mapped = [mapped_file(p.data_ptr()) for p in frozen]
    trained = next(p for p in program.module.parameters() if p.requires_grad)
    if distributed.get_rank() == 1:
        trained.data[0, 0] += 1.0
    try:
        check_same_start(program.module, CPU)
        said = ""
    except DataError as error:
        said = str(error)
    return {"mapped": mapped, "said": said}


def even_share(row: PackedRow) -> torch.Tensor:
    """Even tokens less odd ones in each segment, the closing one left out, over the longest response."""
    signs = 1.0 - 2.0 * (row.input_ids[0] % 2)
    return torch.stack([part[:-1].sum() for part in signs.split(list(row.lengths))]) / 8.0


def ppo(
    folder: Path,
    *,
    models: str,
    settings: dict[str, Any],
    stop_at: int | None = None,
    toy: bool = False,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """A PPO stage on the folders of :func:`tests.ppo_support.make_folders`, or until ``stop_at``.

    With ``toy`` the best policy is known: the reward is the share of the response's tokens that are even.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ensure_process_group(device)
    base = Path(models, "base")
    context = LocalContext(folder, rank=rank, world_size=world_size, device=device, stop_at=stop_at)
    chosen = make_settings(**settings)
    folders = Folders(base, Path(models, "sft"), Path(models, "rm"))
    inputs = ppo_inputs(
        folders,
        random_prompts(64),
        random_prompts(16, seed=1),
        rank=rank,
        world_size=world_size,
        device=device,
        seed=5,
        reward_mean=0.0,
        reward_std=0.5,
    )
    program = PpoProgram(chosen, inputs)
    if toy:
        program.module.score_reward = even_share  # type: ignore[method-assign]
        # A random head is so small that no hidden state prefers any token: there would be nothing to learn.
        program.module.model.lm_head.weight.data *= 15.0
    before = {name: p.detach().clone() for name, p in program.module.named_parameters()}
    result = run_loop(program, chosen, context, seed=5)
    if rank == 0 and not result.suspended:
        program.finish(folder / "model", result.metrics)
    return {
        "steps": result.steps,
        "suspended": result.suspended,
        "before": result.metrics_before,
        "metrics": result.metrics,
        "moved": [
            name for name, p in program.module.named_parameters() if not torch.equal(p.detach(), before[name])
        ],
        "points": [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ],
    }


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "engine_steps": engine_steps,
    "meeting": meeting,
    "train": train,
    "ppo": ppo,
    "beginnings": beginnings,
    "gradients": gradients,
    "trl_gradients": trl_gradients,
}
