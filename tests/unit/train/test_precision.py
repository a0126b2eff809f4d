"""``precision: auto``: by device, once for a stage."""

from __future__ import annotations

import pytest
import torch

from zhongjing.config.stages import SftSettings
from zhongjing.model.attention import is_ampere
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.precision import agreed_precision, dtype_of, own_precision, settled

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SETTINGS = SftSettings.model_validate({"data": [{"source": "a"}]})


CARDS = {"V100": ((7, 0), "fp16"), "T4": ((7, 5), "fp16"), "A100": ((8, 0), "bf16"), "H100": ((9, 0), "bf16")}


@pytest.mark.parametrize(("capability", "wanted"), CARDS.values(), ids=CARDS)
def test_a_gpu_takes_bf16_from_ampere_on(
    capability: tuple[int, int], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute capabilities (CUDA C++ Programming Guide, "Compute Capabilities")."""
    is_ampere.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert own_precision(CUDA) == wanted


def test_auto_is_the_default_and_fp32_on_a_cpu() -> None:
    assert SETTINGS.precision == "auto"
    assert settled(SETTINGS, CPU).precision == "fp32"
    assert dtype_of(SETTINGS, CPU) is torch.float32
    chosen = SETTINGS.model_copy(update={"precision": "bf16"})
    assert dtype_of(chosen, CPU) is torch.bfloat16


def test_the_first_attempt_decides(store: ObjectStore, bucket_uri: str) -> None:
    uri = f"{bucket_uri}/stage/precision.json"
    assert agreed_precision(store, uri, "bf16") == "bf16"
    # Another attempt, on a card without bf16.
    assert agreed_precision(store, uri, "fp16") == "bf16"
