"""Several LoRA adapters over one frozen base, chosen by range of a packed row's tokens.

Every role of PPO (policy, reference, reward, critic) is a *stack* of adapters over the same base weights. A
packed row is cut into ranges of tokens, and each range goes through the stack of its role: one matrix product
with the base weight serves all of them.

Why not PEFT's own switching: ``set_adapter`` flips ``requires_grad`` (it freezes the critic and trains the
SFT adapter), and with gradient checkpointing a switch before the backward pass makes the recomputation use
the wrong adapter, which gives a wrong gradient of the right shape and no error. Here a recomputation opens
the very route of its forward pass again, and ``requires_grad`` is fixed once and checked.

Shapes: R rows (1 where there are several parts), L columns, H input channels, O output channels, r rank.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from zhongjing.codes import document as document_codes
from zhongjing.codes import model as model_codes
from zhongjing.codes import unexpected as unexpected_codes
from zhongjing.config.stages import Lora
from zhongjing.errors import DataError, TrainingError
from zhongjing.model.adapters import AdapterFile, check_adapter, linear_layers, target_modules
from zhongjing.model.causal import backbone
from zhongjing.model.quantization import compute_dtype


@dataclass(frozen=True, slots=True)
class Part:
    """A range of tokens of a packed row, whole segments, and the role whose stack they go through.

    A part that is alone in its route takes all rows and tokens, however many; its ``tokens`` do not count.
    """

    role: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Parts in the order of the tokens. ``fused``: use the tensors that :meth:`AdapterRouter.fuse` made."""

    parts: tuple[Part, ...]
    fused: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the packed row that the route is for."""
        return sum(part.tokens for part in self.parts)


@dataclass(slots=True)
class _Shared:
    """What all routed layers of a model look at. Not thread-local: CUDA's backward runs in another thread."""

    route: Route | None = None
    stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)


class RoutedLinear(nn.Module):
    """A frozen linear layer with the adapters of several roles beside it.

    Attributes:
        base_layer: the layer itself, never merged with anything. It has PEFT's name for it, by which
            ``linear_layers`` finds the layer under its own path.
        lora_a: A [r, H] by adapter.
        lora_b: B [O, r] by adapter.
        scaling: factor on ``B A x`` by adapter.
    """

    def __init__(self, base: nn.Linear, shared: _Shared) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self.fused: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shared = shared

    @property
    def weight(self) -> torch.Tensor:
        """Weight [O, H] of the base layer."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias [O] of the base layer."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """H."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """O."""
        return self.base_layer.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[R, L, H] to [R, L, O], every range of tokens with the update of its role."""
        route = self._shared.route
        if route is None:
            raise RuntimeError("a routed layer was called while no route was open")
        outputs: torch.Tensor = self.base_layer(inputs)
        if len(route.parts) == 1:
            return self._add(outputs, inputs, route.parts[0].role, route.fused)
        if inputs.shape[0] != 1 or inputs.shape[1] != route.tokens:
            raise RuntimeError(
                f"the route is for a row of {route.tokens} tokens, the layer got {tuple(inputs.shape[:2])}"
            )
        sizes = [part.tokens for part in route.parts]
        outputs_of_parts = [
            self._add(out, part_in, part.role, route.fused)
            for out, part_in, part in zip(
                outputs.split(sizes, 1), inputs.split(sizes, 1), route.parts, strict=True
            )
        ]
        return torch.cat(outputs_of_parts, 1)

    def _add(self, outputs: torch.Tensor, inputs: torch.Tensor, role: str, fused: bool) -> torch.Tensor:
        if fused:
            pair = self.fused.get(role)
            if pair is None:
                return outputs
            return outputs + functional.linear(functional.linear(inputs, pair[0]), pair[1])
        for name in self._shared.stacks[role]:
            if name in self.scaling:
                a, b = self.lora_a[name], self.lora_b[name]
                low = functional.linear(inputs.to(a.dtype), a) * self.scaling[name]
                outputs = outputs + functional.linear(low, b).to(outputs.dtype)
        return outputs

    def add(self, name: str, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        """Adds adapter ``name``: A [r, H], B [O, r]; both are copied."""
        device = self.base_layer.weight.device
        self.lora_a[name] = nn.Parameter(a.detach().clone().to(device), requires_grad=False)
        self.lora_b[name] = nn.Parameter(b.detach().clone().to(device), requires_grad=False)
        self.scaling[name] = scaling

    @torch.no_grad()
    def fuse(self, role: str) -> None:
        """Makes one pair of the role's stack, scaling multiplied in: A [sum r, H], B [O, sum r]."""
        names = [name for name in self._shared.stacks[role] if name in self.scaling]
        if names:
            dtype = compute_dtype(self.base_layer)
            self.fused[role] = (
                torch.cat([self.lora_a[name] for name in names]).to(dtype),
                torch.cat([self.lora_b[name] * self.scaling[name] for name in names], dim=1).to(dtype),
            )


class AdapterRouter:
    """Owns the adapters of a model and the route that is open.

    The model's target layers are replaced by :class:`RoutedLinear` when the first adapter names them. From
    then on the model can only be called with a route open.

    Args:
        model: a causal model of transformers without adapters. Its parameters are frozen.

    Raises:
        DataError: the model cannot be routed (a mixture of experts mixes the tokens of a batch).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        backbone(model)
        if getattr(model.config, "num_experts", None) or getattr(model.config, "num_local_experts", None):
            raise DataError(
                f"{type(model).__name__} is a mixture of experts, which mixes the tokens of a batch",
                code=model_codes.UNSUPPORTED_MODEL,
            )
        self.model = model
        self.checkpointing = False
        self._shared = _Shared()
        self._layers: dict[str, RoutedLinear] = {}
        self._trainable: frozenset[str] | None = None
        model.requires_grad_(False)

    @property
    def layers(self) -> dict[str, RoutedLinear]:
        """Routed layers by their path in the base."""
        return self._layers

    def add_file(self, name: str, adapter: AdapterFile) -> None:
        """Adds an adapter that was read from a folder; a reward model's head is left to others.

        Args:
            name: its name here.
            adapter: causal or SEQ_CLS adapter of this base.

        Raises:
            DataError: the adapter is of another base, or changes what PPO needs frozen.
        """
        extra = sorted(
            key for key in adapter.tensors if ".lora_" not in key and not key.endswith(".score.weight")
        )
        if extra or any(path.rsplit(".", 1)[-1] == "lm_head" for path in adapter.modules):
            raise DataError(
                f"the adapter also changes {extra[0] if extra else 'lm_head'}; all roles share that part",
                code=model_codes.UNUSABLE_ADAPTER,
                where=str(adapter.folder),
                remedy="train it with linear layers of the decoder as its only target modules",
            )
        check_adapter(adapter, self.model)
        for path in adapter.modules:
            a, b = adapter.pair(path)
            layer = self._routed(path)
            kind = compute_dtype(layer.base_layer)
            layer.add(name, a.to(kind), b.to(kind), adapter.scaling)

    def add_fresh(self, name: str, lora: Lora, seed: int) -> None:
        """Adds an adapter whose B is zero: no output changes yet.

        Args:
            name: its name here.
            lora: rank, scale and modules. Dropout must be 0: in PPO a ratio of probabilities would be noise.
            seed: of A (uniform, as PEFT draws it); the global random state is left alone.

        Raises:
            DataError: the model has none of the modules asked for, or dropout is not 0.
        """
        if lora.dropout != 0.0:
            raise DataError(
                f"dropout is {lora.dropout} in an adapter of PPO",
                code=document_codes.INVALID_VALUE,
                where="lora.dropout",
                remedy="set it to 0",
            )
        wanted = set(target_modules(self.model, lora))
        generator = torch.Generator().manual_seed(seed)
        for path in sorted(linear_layers(self.model)):
            if path.rsplit(".", 1)[-1] not in wanted:
                continue
            layer = self._routed(path)
            kind = compute_dtype(layer.base_layer)
            a = torch.empty(lora.rank, layer.in_features)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            b = torch.zeros(layer.out_features, lora.rank, dtype=kind)
            layer.add(name, a.to(kind), b, lora.alpha / lora.rank)

    def add_copy(self, name: str, source: str) -> None:
        """Adds adapter ``name`` with the values of ``source``."""
        for layer in self._layers.values():
            if source in layer.scaling:
                layer.add(name, layer.lora_a[source], layer.lora_b[source], layer.scaling[source])

    def define(self, role: str, adapters: Sequence[str]) -> None:
        """Says which adapters make a role, lowest first; none: the base alone."""
        missing = set(adapters).difference(*(layer.scaling for layer in self._layers.values()))
        if missing:
            raise KeyError(f"no adapter is called {min(missing)}")
        self._shared.stacks[role] = tuple(adapters)

    def parameters_of(self, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Path in the base with ``.lora_A`` or ``.lora_B``, and the parameter."""
        for path, layer in self._layers.items():
            if adapter in layer.scaling:
                yield f"{path}.lora_A", layer.lora_a[adapter]
                yield f"{path}.lora_B", layer.lora_b[adapter]

    def fix_trainable(self, adapters: Sequence[str]) -> None:
        """Fixes which adapters learn. May be called once; :meth:`check_trainable` holds it from then on."""
        if self._trainable is not None:
            raise RuntimeError("what learns is fixed already")
        for adapter in adapters:
            for _, parameter in self.parameters_of(adapter):
                parameter.requires_grad_(True)
        self._trainable = self._now_trainable()

    def check_trainable(self) -> None:
        """Raises TrainingError if any ``requires_grad`` of the model changed since :meth:`fix_trainable`."""
        now = self._now_trainable()
        if self._trainable is not None and now != self._trainable:
            name = min(now ^ self._trainable)
            raise TrainingError(
                f"requires_grad of {name} was changed while training",
                code=unexpected_codes.UNEXPECTED,
                remedy="nothing but the router may switch adapters of this model",
            )

    def _now_trainable(self) -> frozenset[str]:
        return frozenset(name for name, p in self.model.named_parameters() if p.requires_grad)

    @contextmanager
    def open(self, *parts: Part, fused: bool = False) -> Iterator[None]:
        """Routes every forward pass inside; recomputations of it are routed likewise, whenever they come.

        Args:
            parts: roles and numbers of tokens, in the order of the row's tokens; one part takes everything.
            fused: use what :meth:`fuse` made of the roles (no gradients).
        """
        if self._shared.route is not None:
            raise RuntimeError("a route is open already")
        for part in parts:
            if part.role not in self._shared.stacks:
                raise KeyError(f"no role is called {part.role}")
        layer = next((m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)), None)
        if layer is not None and bool(layer.gradient_checkpointing) != self.checkpointing:
            raise RuntimeError("gradient checkpointing must be switched by the router, which keeps the route")
        self._shared.route = Route(parts, fused)
        try:
            yield
        finally:
            self._shared.route = None

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes every decoder layer in the backward pass, under the route of its forward pass."""
        recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=self._contexts)
        found = False
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = True
                cast(Any, module)._gradient_checkpointing_func = recompute
                found = True
        if not found:
            raise DataError(
                f"{type(self.model).__name__} has no layers that can be recomputed",
                code=model_codes.UNSUPPORTED_MODEL,
            )
        self.checkpointing = True

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Contexts of a forward pass and of its recomputation (``context_fn`` of torch's checkpoint)."""
        return nullcontext(), _Reopen(self._shared, self._shared.route)

    def fuse(self, role: str) -> None:
        """Makes one pair of matrices per layer for the role: faster to generate with. A snapshot."""
        for layer in self._layers.values():
            layer.fuse(role)

    def drop_fused(self) -> None:
        """Frees what :meth:`fuse` made."""
        for layer in self._layers.values():
            layer.fused.clear()

    def _routed(self, path: str) -> RoutedLinear:
        if path not in self._layers:
            parent_path, _, leaf = path.rpartition(".")
            parent = self.model.get_submodule(parent_path)
            linear = getattr(parent, leaf)
            assert isinstance(linear, nn.Linear)
            self._layers[path] = RoutedLinear(linear, self._shared)
            setattr(parent, leaf, self._layers[path])
        return self._layers[path]


class _Reopen:
    """Opens a captured route for a recomputation, and puts back what was open."""

    def __init__(self, shared: _Shared, route: Route | None) -> None:
        self._shared = shared
        self._route = route
        self._before: Route | None = None

    def __enter__(self) -> None:
        self._before, self._shared.route = self._shared.route, self._route

    def __exit__(self, *_: object) -> None:
        self._shared.route = self._before
