"""The plan of a pipeline: for each stage what it takes, whether that fits, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.quantity import to_bytes
from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, Stage
from zhongjing.planning.hardware import DEFAULT_UTILISATION, GIB, Gpus, size_text
from zhongjing.planning.memory import Memory, plan_memory, trained_parameters, width_of
from zhongjing.planning.shape import Shape

_BYTES_A_TOKEN = 4  # of the token cache
_MOST_WORKERS = 64


@dataclass(frozen=True)
class Terms:
    """What the plan is compared with and computed from; None: not known."""

    gpus: Gpus | None = None
    tokens_per_second: float | None = None  # of one worker
    gpu_hour: float | None = None  # price
    tokens: Mapping[Stage, int] | None = None  # of one pass
    host: int | None = None  # host memory that a worker can have, bytes
    machine: int | None = None  # likewise of the one machine that all workers share


@dataclass(frozen=True)
class StageEstimate:
    """A stage's estimate. Bytes, seconds and the currency of ``gpu_hour``; None where a fact is not known."""

    stage: Stage
    workers: int
    memory: Memory
    limit: int | None  # of the device of one worker
    fits: bool | None
    problems: tuple[str, ...]
    remedies: tuple[dict[str, Any], ...]
    scratch: int
    stored: int
    tokens: int | None
    hours: float | None
    money: float | None

    def as_object(self) -> dict[str, Any]:
        """For programs."""
        return {
            "stage": self.stage.value,
            "workers": self.workers,
            "device": "gpu" if self.memory.on_gpu else "cpu",
            "deviceBytes": dict(self.memory.device),
            "peakBytes": self.memory.peak,
            "limitBytes": self.limit,
            "hostBytes": self.memory.host,
            "scratchBytes": self.scratch,
            "storeBytes": self.stored,
            "tokens": self.tokens,
            "hours": self.hours,
            "money": self.money,
            "fits": self.fits,
            "problems": list(self.problems),
            "remedies": list(self.remedies),
        }


def plan_pipeline(
    document: TrainingPipeline, shape_of: Callable[[Stage], Shape], terms: Terms
) -> list[StageEstimate]:
    """The estimates of all stages that the document has, each on the base that it stands on."""
    found = []
    for stage in document.spec.stages.trained():
        settings = document.spec.stages[stage]
        found.append(plan_stage(stage, settings, shape_of(stage), terms))
    return found


def plan_stage(stage: Stage, settings: AnySettings, shape: Shape, terms: Terms) -> StageEstimate:
    """The estimate of one stage."""
    limit = limit_of(settings, terms)
    memory = plan_memory(shape, settings, limit)
    problems = find_problems(settings, shape, terms)
    tokens = _tokens(stage, settings, terms)
    hours = _hours(settings, shape, terms, tokens)
    trained = trained_parameters(shape, settings)
    width = width_of(settings)
    checkpoint = 12 * trained
    best = 4 * trained  # its weights alone
    result = width * (shape.parameters if trained == shape.parameters else trained)
    cache = _BYTES_A_TOKEN * (tokens or 0)
    return StageEstimate(
        stage=stage,
        workers=settings.workers,
        memory=memory,
        limit=limit,
        fits=False if problems else (True if limit is not None else None),
        problems=tuple(problems),
        remedies=tuple(find_remedies(settings, shape, terms)) if problems else (),
        scratch=width * shape.parameters + checkpoint + result + cache,
        stored=settings.checkpoints.keep * checkpoint + best + result + cache,
        tokens=tokens,
        hours=hours,
        money=None if hours is None or terms.gpu_hour is None else hours * settings.workers * terms.gpu_hour,
    )


def find_problems(settings: AnySettings, shape: Shape, terms: Terms) -> list[str]:
    """What does not fit, in words; nothing where the limits are not known."""
    limit = limit_of(settings, terms)
    memory = plan_memory(shape, settings, limit)
    problems = []
    what, needed = ("GPU", memory.peak) if memory.on_gpu else ("worker", memory.host)
    if limit is not None and needed > limit:
        problems.append(f"a {what} would need {size_text(needed)} of {size_text(limit)} that it has")
    if memory.on_gpu and settings.resources.memory is not None:
        asked = to_bytes(settings.resources.memory)
        if memory.host > asked:
            problems.append(
                f"a worker would need {size_text(memory.host)} of host memory, resources.memory is "
                f"{settings.resources.memory}"
            )
    together = settings.workers * memory.host
    if memory.on_gpu and terms.machine is not None and together > terms.machine:
        problems.append(
            f"{settings.workers} workers would need {size_text(together)} of host memory, the machine has "
            f"{size_text(terms.machine)}"
        )
    if memory.on_gpu and terms.gpus is not None and settings.workers > terms.gpus.count:
        problems.append(f"{settings.workers} workers need as many GPUs, there are {terms.gpus.count}")
    return problems


def find_remedies(settings: AnySettings, shape: Shape, terms: Terms) -> list[dict[str, Any]]:
    """The smallest changes that make the stage fit, each as fields of the stage; fields alone come first.

    Every one was tried: the changed stage fits by the same arithmetic. More GPUs than there are is offered
    only as ``workers``, for a larger machine.
    """
    changes: list[dict[str, Any]] = []
    if settings.micro_batch_size > 1 or settings.micro_batch_tokens is not None:
        changes.append(
            {"microBatchSize": _largest_micro_batch(settings, shape, terms), "microBatchTokens": None}
        )
    if not settings.gradient_checkpointing:
        changes.append({"gradientCheckpointing": True})
    together: dict[str, Any] = {key: value for change in changes for key, value in change.items()}

    def fitting(change: dict[str, Any]) -> dict[str, Any] | None:
        for enough in (change, _with_host_memory(settings, change, shape)):
            if _fits(settings, enough, shape, _with_workers(terms, enough)):
                return enough
        return None

    found = [each for each in map(fitting, [{}, *changes]) if each is not None]
    if not found and len(changes) > 1 and (both := fitting(together)) is not None:
        found = [both]
    more_workers = False
    for extra in _larger_changes(settings, terms):
        if "workers" in extra and more_workers:
            continue  # the fewest are enough
        change = fitting(extra) or fitting(extra | together)
        if change is not None:
            found.append(change)
            more_workers = more_workers or "workers" in change
    return [_shown(change, settings) for change in found]


def _largest_micro_batch(settings: AnySettings, shape: Shape, terms: Terms) -> int:
    """The largest half, quarter and so on of ``microBatchSize`` that fits; 1 where none does."""
    size = settings.micro_batch_size // 2
    while size > 1 and not _fits(settings, {"microBatchSize": size, "microBatchTokens": None}, shape, terms):
        size //= 2
    return max(size, 1)


def _with_host_memory(settings: AnySettings, change: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The change, with as much ``resources.memory`` as it needs where less is asked for."""
    asked = settings.resources.memory
    if asked is None:
        return change
    try:
        host = plan_memory(shape, changed(settings, change)).host
    except ValidationError:
        return change
    if host <= to_bytes(asked):
        return change
    return change | {"resources": {"memory": f"{math.ceil(host / GIB)}Gi"}}


def _larger_changes(settings: AnySettings, terms: Terms) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    if terms.gpus is not None and settings.workers > terms.gpus.count:
        return [{"workers": terms.gpus.count}]
    if settings.resources.gpus and settings.optimizer.offload == "none":
        changes.append({"optimizer": {"offload": "cpu"}})
    if settings.resources.gpus:
        workers = settings.workers * 2
        while workers <= _MOST_WORKERS:
            changes.append({"workers": workers})
            workers *= 2
    elif terms.machine is not None:
        changes += [{"workers": workers} for workers in range(settings.workers - 1, 0, -1)]
    if getattr(settings, "tuning", "lora") == "full":
        changes.append({"tuning": "lora"})
    elif not isinstance(settings, PretrainSettings) and settings.quantization == "none":
        changes.append({"quantization": "nf4"})
    return changes


def _with_workers(terms: Terms, change: Mapping[str, Any]) -> Terms:
    """The terms of a machine that has a GPU for each worker of the change."""
    if terms.gpus is None or "workers" not in change or change["workers"] <= terms.gpus.count:
        return terms
    gpus = Gpus(change["workers"], terms.gpus.name, terms.gpus.usable, terms.gpus.peak)
    return replace(terms, gpus=gpus)


def _fits(settings: AnySettings, change: Mapping[str, Any], shape: Shape, terms: Terms) -> bool:
    try:
        return not find_problems(changed(settings, change), shape, terms)
    except ValidationError:
        return False  # fields that the change does not go with: a batch that so many workers cannot share


def changed(settings: AnySettings, change: Mapping[str, Any]) -> AnySettings:
    """The settings with fields of a remedy, named as in a document."""
    data = settings.model_dump(mode="json", by_alias=True)
    return type(settings).model_validate(_merge(data, change))


def _merge(data: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for key, value in change.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def _shown(change: Mapping[str, Any], settings: AnySettings) -> dict[str, Any]:
    """Without a microBatchTokens that was not set anyway."""
    unset = settings.micro_batch_tokens is None
    return {key: value for key, value in change.items() if not (key == "microBatchTokens" and unset)}


def limit_of(settings: AnySettings, terms: Terms) -> int | None:
    """Bytes that a worker can have: of its GPU, or without one of the host; None: not known."""
    if settings.resources.gpus:
        return terms.gpus.usable if terms.gpus is not None else None
    asked = settings.resources.memory
    known = [
        to_bytes(asked) if asked is not None else None,
        terms.host,
        terms.machine // settings.workers if terms.machine is not None else None,
    ]
    return min((each for each in known if each is not None), default=None)


def _tokens(stage: Stage, settings: AnySettings, terms: Terms) -> int | None:
    """Tokens of the whole stage; with ``maxSteps`` no more than full batches hold."""
    once = (terms.tokens or {}).get(stage)
    total = None if once is None else math.ceil(once * settings.epochs * (1 - settings.validation_fraction))
    if settings.max_steps is None:
        return total
    most = settings.max_steps * settings.global_batch_size * settings.max_length
    return most if total is None else min(total, most)


def _hours(settings: AnySettings, shape: Shape, terms: Terms, tokens: int | None) -> float | None:
    if tokens is None or isinstance(settings, PpoSettings):
        return None  # rollouts are no passes over tokens
    speed = terms.tokens_per_second
    if speed is None:
        if terms.gpus is None or terms.gpus.peak is None or not settings.resources.gpus:
            return None
        # Forward 2 FLOP a parameter and token; backward 2 for the inputs and 2 for trained weights.
        full = trained_parameters(shape, settings) == shape.parameters
        each = (6 if full else 4) + (2 if settings.gradient_checkpointing else 0)
        speed = terms.gpus.peak * DEFAULT_UTILISATION / (each * shape.parameters)
    return tokens / (speed * settings.workers) / 3600
