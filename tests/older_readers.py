"""What readers of config.json took from it before transformers 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_as_before(folder: Path) -> tuple[float, dict[str, Any] | None]:
    """Base wavelength and scaling of rotary positions, as transformers 4, vLLM and llama.cpp look for them.

    Source: configuration_llama.py of transformers 4.40 (``rope_theta``, 10,000 where it is missing, and
    ``rope_scaling``); the number format was ``torch_dtype``.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == config["dtype"]
    return config.get("rope_theta", 10000.0), config.get("rope_scaling")
