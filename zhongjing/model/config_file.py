"""config.json of a model, by the names of transformers 5 and of everything before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes ``config.json`` so that readers of any age find rotary positions and number format in it.

    transformers 5 writes ``rope_parameters`` and ``dtype``. transformers 4, and what has its names (vLLM,
    llama.cpp), reads ``rope_theta``, ``rope_scaling`` and ``torch_dtype``, and computes with its defaults
    where they are missing, without a word. transformers 5 reads these too, a ``rope_scaling`` even before
    ``rope_parameters`` (``RotaryEmbeddingConfigMixin.convert_rope_params_to_dict``): they must agree.
    Parameters by layer type (Gemma-3) have no older form and stay as they are.

    Args:
        folder: of the model. A ``config.json`` that is there is replaced, not written into: it may be a link.
        config: its content, which is completed.
    """
    rope, older = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(rope, dict) and isinstance(older, dict):
        theta = config.get("rope_theta", rope.get("rope_theta"))
        rope = {**({} if theta is None else {"rope_theta": theta}), **older}
        config["rope_parameters"] = {key: value for key, value in rope.items() if key != "type"}
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        for name in ("rope_theta", "partial_rotary_factor"):
            if rope.get(name) is not None:
                config[name] = rope[name]
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "type")}
        scaling.pop("partial_rotary_factor", None)
        kind = rope.get("rope_type", rope.get("type", "default"))
        # `type` is what it was called before transformers 4.43.
        config["rope_scaling"] = None if kind == "default" else {**scaling, "rope_type": kind, "type": kind}
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None:
        config["dtype"] = config["torch_dtype"] = dtype
    path = folder / "config.json"
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
