"""LoRA adapters in PEFT's format: made, saved, read, checked against their base, and stacked.

Module names are the last part of a path (``q_proj``), so the same adapter fits the causal model and the
sequence classifier of one base: their decoder layers have the same paths.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from zhongjing.codes import model as codes
from zhongjing.config.stages import Lora
from zhongjing.errors import DataError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it stands on disk.

    Attributes:
        folder: where it was read from.
        config: content of ``adapter_config.json``.
        tensors: by PEFT's names (``base_model.model.<module>.lora_A.weight`` [rank, in],
            ``...lora_B.weight`` [out, rank], a reward model's ``base_model.model.score.weight`` [1, hidden]).
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return int(self.config["r"])

    @property
    def scaling(self) -> float:
        """Factor on B A x."""
        alpha = float(self.config["lora_alpha"])
        return alpha / math.sqrt(self.rank) if self.config.get("use_rslora") else alpha / self.rank

    @property
    def modules(self) -> list[str]:
        """Paths in the base of the modules that it changes, sorted."""
        ends = ".lora_A.weight"
        return sorted(n.removeprefix(_PREFIX).removesuffix(ends) for n in self.tensors if n.endswith(ends))

    @property
    def head(self) -> torch.Tensor | None:
        """Weight [1, hidden] of the reward model's head, if it has one."""
        return self.tensors.get(f"{_PREFIX}score.weight")

    def reward_head(self, where: str | None = None) -> torch.Tensor:
        """The head of what must be a reward model; ``where``: what messages call it, none: its folder.

        Raises:
            DataError: it has none.
        """
        if self.head is None:
            raise DataError(
                "the reward model has no `score` head",
                code=codes.NO_REWARD_HEAD,
                where=where or str(self.folder),
                remedy="give the adapter that the rm stage made",
            )
        return self.head

    def pair(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and B [out, rank] of ``module``."""
        return (
            self.tensors[f"{_PREFIX}{module}.lora_A.weight"],
            self.tensors[f"{_PREFIX}{module}.lora_B.weight"],
        )


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Linear layers by path, output layer and classifier's head left out.

    A layer that carries adapters already counts under its own path, the adapters' layers do not count.
    """
    found: dict[str, torch.nn.Linear] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".lora_" not in path and ".modules_to_save." not in path:
            own = path.removesuffix(".base_layer").removesuffix(".original_module")
            if own.rsplit(".", 1)[-1] not in ("lm_head", "score"):
                found[own] = module
    return found


def target_modules(model: torch.nn.Module, lora: Lora) -> list[str]:
    """Names of the modules that get an adapter, sorted.

    ``all-linear`` means every linear layer but the output layer and a classifier's head.

    Raises:
        DataError: the model has none of the modules asked for.
    """
    linear = {path.rsplit(".", 1)[-1] for path in linear_layers(model)}
    asked = linear if lora.target_modules == ["all-linear"] else set(lora.target_modules)
    if unknown := sorted(asked - linear):
        raise DataError(
            f"the model has no linear layer called {unknown[0]!r} (there are: {', '.join(sorted(linear))})",
            code=codes.UNKNOWN_MODULE,
            where="lora.targetModules",
        )
    return sorted(asked)


def lora_config(model: torch.nn.Module, lora: Lora, *, head: bool = False) -> LoraConfig:
    """PEFT's configuration for ``lora`` on ``model``; with ``head`` that of a reward model."""
    alpha: Any = lora.alpha  # PEFT says int, and takes a float as well
    return LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(model, lora),
        bias="none",
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=["score"] if head else None,
    )


def add_lora(model: PreTrainedModel | PeftModel, lora: Lora, name: str, seed: int) -> PeftModel:
    """Adds a fresh adapter; its B is zero, so the model's output does not change yet.

    Args:
        model: a base, or a base with adapters already.
        lora: rank, scale, dropout, modules.
        name: name of the adapter within the model.
        seed: of A. The same seed gives the same adapter; the global random state is left as it was.

    Raises:
        DataError: the model has none of the modules asked for.
    """
    return _attach(model, lora_config(base_of(model), lora), name, seed)


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def _attach(model: PreTrainedModel | PeftModel, config: LoraConfig, name: str, seed: int) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            return model
        attached = get_peft_model(model, config, adapter_name=name)
        assert isinstance(attached, PeftModel)
        return attached


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Writes the adapter ``default`` so that ``PeftModel.from_pretrained`` loads it.

    Args:
        model: the model that has the adapter.
        folder: where the two files go, directly; made if it does not exist.
        base: URI or path of the base, stored as ``base_model_name_or_path``.
    """
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    write_adapter(folder, model.peft_config["default"].to_dict(), state, base)


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], base: str
) -> None:
    """Writes an adapter folder; the same input gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: _jsonable(value) for key, value in config.items()}
    plain.update(base_model_name_or_path=base, inference_mode=True)
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    # save_file would give the file to its owner alone, whatever the umask says.
    (folder / ADAPTER_WEIGHTS).write_bytes(save(on_cpu, metadata={"format": "pt"}))


def read_adapter(folder: Path) -> AdapterFile:
    """Reads an adapter folder.

    Raises:
        DataError: it is not a plain LoRA adapter in PEFT's safetensors format.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"the adapter cannot be read: {error}", code=codes.UNUSABLE_ADAPTER, where=str(folder)
        ) from error
    plain = (
        isinstance(config, dict)
        and config.get("peft_type") == "LORA"
        and isinstance(config.get("r"), int)
        and isinstance(config.get("lora_alpha"), int | float)
        and not config.get("use_dora")
        and config.get("bias", "none") == "none"
        and not config.get("rank_pattern")
        and not config.get("alpha_pattern")
    )
    if not plain:
        raise DataError(
            "the adapter is not a plain LoRA adapter",
            code=codes.UNUSABLE_ADAPTER,
            where=str(folder / ADAPTER_CONFIG),
        )
    for name in tensors:
        other = (
            name.replace(".lora_A.", ".lora_B.")
            if ".lora_A." in name
            else name.replace(".lora_B.", ".lora_A.")
        )
        if other not in tensors:
            raise DataError(
                f"the adapter has {name} without its other half",
                code=codes.UNUSABLE_ADAPTER,
                where=str(folder),
            )
    return AdapterFile(folder, config, tensors)


def check_adapter(adapter: AdapterFile, model: torch.nn.Module) -> None:
    """Checks that every tensor of ``adapter`` fits the module of ``model`` it was trained for.

    Args:
        adapter: what was read.
        model: a causal model or sequence classifier, with or without adapters.

    Raises:
        DataError: "an adapter of another base", naming the first module that does not fit.
    """
    linear = linear_layers(base_of(model))
    for path in adapter.modules:
        a, b = adapter.pair(path)
        module = linear.get(path)
        if module is None:
            raise _another_base(adapter, f"the base has no linear layer {path}")
        fits = a.shape == (adapter.rank, module.in_features) and b.shape == (
            module.out_features,
            adapter.rank,
        )
        if not fits:
            raise _another_base(
                adapter,
                f"{path} is {module.out_features} x {module.in_features} in the base, "
                f"{b.shape[0]} x {a.shape[1]} in the adapter",
            )
    layers = {path.split(".")[2] for path in adapter.modules if path.startswith("model.layers.")}
    count = getattr(base_of(model).config, "num_hidden_layers", len(layers))
    if len(layers) not in (0, count):
        raise _another_base(adapter, f"the base has {count} layers, the adapter {len(layers)}")


def load_adapter(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Adds the adapter of ``folder`` to ``model`` as ``name``, frozen; a reward model's head is left out.

    Raises:
        DataError: the adapter cannot be read or belongs to another base.
    """
    adapter = read_adapter(folder)
    check_adapter(adapter, model)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.config["lora_alpha"],
        lora_dropout=adapter.config.get("lora_dropout", 0.0),
        target_modules=sorted({path.rsplit(".", 1)[-1] for path in adapter.modules}),
        use_rslora=bool(adapter.config.get("use_rslora")),
        bias="none",
        task_type="CAUSAL_LM",
    )
    result = _attach(model, config, name, seed=0)
    tensors = {key: tensor for key, tensor in adapter.tensors.items() if ".lora_" in key}
    outcome: Any = set_peft_model_state_dict(result, tensors, adapter_name=name)
    if outcome.unexpected_keys:
        raise _another_base(adapter, f"the base has no {outcome.unexpected_keys[0]}")
    for path, parameter in result.named_parameters():
        if f".{name}." in path and ".lora_" in path:
            parameter.requires_grad_(False)
    return result


def stack_adapters(first: Path, second: Path, out: Path, *, base: str | None = None) -> None:
    """Writes one adapter whose update is the sum of two: ranks add up.

    ``A = [A1; A2]`` and ``B = [B1, B2]``, so ``B A = B1 A1 + B2 A2``. Where both have the same scaling it
    stays a factor (alpha = scaling x rank) and the tensors are copied bit for bit; otherwise it is multiplied
    into B in fp32 and the stack's scaling is 1. A module that only one of them changes gets zeros from the
    other. The base is not loaded.

    Args:
        first: e.g. the SFT adapter.
        second: e.g. the PPO adapter, trained on top of the first.
        out: folder of the stacked adapter.
        base: its ``base_model_name_or_path``; none: that of ``first``.

    Raises:
        DataError: one cannot be read, has a head, or the two are of different bases.
    """
    one, two = read_adapter(first), read_adapter(second)
    for adapter in (one, two):
        if adapter.head is not None:
            raise DataError(
                "a reward model cannot be stacked", code=codes.UNUSABLE_ADAPTER, where=str(adapter.folder)
            )
    same = one.scaling == two.scaling
    rank = one.rank + two.rank
    modules = sorted({*one.modules, *two.modules})
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        halves = [_half(adapter, module, scale=not same) for adapter in (one, two)]
        shapes = [(a.shape[1], b.shape[0]) for a, b in (half for half in halves if half is not None)]
        if len(set(shapes)) != 1:
            raise _another_base(two, f"{module} has another size than in {first}")
        width, height = shapes[0]
        kinds = [tensor.dtype for half in halves if half is not None for tensor in half]
        dtype = functools.reduce(torch.promote_types, kinds)
        filled = [
            half
            if half is not None
            else (torch.zeros(adapter.rank, width), torch.zeros(height, adapter.rank))
            for half, adapter in zip(halves, (one, two), strict=True)
        ]
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = torch.cat([a.to(dtype) for a, _ in filled], dim=0)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = torch.cat([b.to(dtype) for _, b in filled], dim=1)
    config = dict(one.config)
    config.update(
        r=rank,
        lora_alpha=one.scaling * rank if same else float(rank),
        use_rslora=False,
        target_modules=sorted({*one.config["target_modules"], *two.config["target_modules"]}),
    )
    write_adapter(out, config, tensors, base if base is not None else one.config["base_model_name_or_path"])


def _half(adapter: AdapterFile, module: str, *, scale: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    if module not in adapter.modules:
        return None
    a, b = adapter.pair(module)
    return (a, b.to(torch.float32) * adapter.scaling) if scale else (a, b)


def _another_base(adapter: AdapterFile, detail: str) -> DataError:
    stored = adapter.config.get("base_model_name_or_path")
    return DataError(
        f"this is an adapter of another base: {detail}",
        code=codes.ADAPTER_MISMATCH,
        where=str(adapter.folder),
        remedy=f"it was trained on {stored}" if stored else "use it with the base that it was trained on",
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    # PEFT's enumerations are strings with a `value`.
    return getattr(value, "value", value)
