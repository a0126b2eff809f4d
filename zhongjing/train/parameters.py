"""Which parameters are trained, in which groups."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

# ZeRO-2 casts one group's gradient partition to fp32 at a time: with a single group a 13B model needs 12 GiB
# more at `step` than with eight (training.md).
_GROUP_ELEMENTS = 1_000_000_000
_LARGE_MODEL_GROUPS = 8


def adamw_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: decay on matrices only; large models in several groups.

    Args:
        module: whose parameters; ``requires_grad`` tells which are trained.
        weight_decay: of matrices.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    total = sum(parameter.numel() for parameter in matrices)
    count = _LARGE_MODEL_GROUPS if total > _GROUP_ELEMENTS else 1
    groups: list[dict[str, Any]] = []
    filled = 0
    for parameter in matrices:
        number = min(filled * count // max(total, 1), count - 1)
        if number >= len(groups):
            groups.append({"params": [], "weight_decay": weight_decay})
        groups[-1]["params"].append(parameter)
        filled += parameter.numel()
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return groups


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recomputes activations in the backward pass; the non-reentrant way, which works with frozen inputs."""
    # transformers renamed it; the versions that we support have either name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
