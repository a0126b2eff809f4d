"""Number formats: what ``precision: auto`` is on a device, and that all attempts of a stage use the same.

fp16 needs a loss scale and overflows above 65,504; bf16 has fp32's range, from NVIDIA's Ampere (compute
capability 8.0) on. A checkpoint of one format goes on in another only with other results, so the first rank
of the first attempt decides for the stage.
"""

from __future__ import annotations

import json
from typing import Literal, TypeVar, cast

import torch

from zhongjing.config.stages import StageSettings
from zhongjing.errors import ConflictError
from zhongjing.model.attention import is_ampere
from zhongjing.storage.objects import ObjectStore

Precision = Literal["fp32", "fp16", "bf16"]
_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_Settings = TypeVar("_Settings", bound=StageSettings)


def own_precision(device: torch.device) -> Precision:
    """What ``precision: auto`` is on a device."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if is_ampere(device) else "fp16"


def settled(settings: _Settings, device: torch.device) -> _Settings:
    """The settings with ``auto`` replaced by what it is on ``device``."""
    return settings if settings.precision != "auto" else with_precision(settings, own_precision(device))


def with_precision(settings: _Settings, precision: Precision) -> _Settings:
    """The settings in a number format."""
    return settings.model_copy(update={"precision": precision})


def dtype_of(settings: StageSettings, device: torch.device) -> torch.dtype:
    """Number format of a stage's weights and activations on ``device``."""
    return _DTYPES[cast("Precision", settled(settings, device).precision)]


def agreed_precision(store: ObjectStore, uri: str, own: Precision) -> Precision:
    """What the stage's first attempt settled on; ``own`` if this is the first to ask.

    Args:
        store: the object store.
        uri: of the stage's decision; written once.
        own: what this rank's device would take.

    Raises:
        StorageError: the store refused or went away.
    """
    try:
        store.put(uri, json.dumps({"precision": own}).encode(), if_none_match=True)
        return own
    except ConflictError:
        return cast("Precision", json.loads(store.get(uri))["precision"])
