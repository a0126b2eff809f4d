"""Models that bring code of their own, which is never run here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from zhongjing.codes import model as codes
from zhongjing.errors import DataError

_MODEL_CLASSES = ("AutoModelForCausalLM", "AutoModel", "AutoConfig")


def check_own_code(folder: Path) -> None:
    """Checks that a model folder needs no code beside what transformers has; imports nothing heavy.

    Publishers name their code under ``auto_map`` of config.json and tokenizer_config.json (transformers,
    "Using a model with custom code"). Baichuan2, InternLM2, Qwen-1 and ChatGLM are published so; a model
    that names code although transformers has its family (Falcon's early files) is loaded without it.

    Raises:
        DataError: the model or the tokenizer is one that only its own code can load.
    """
    config = _settings(folder / "config.json")
    tokenizer = _settings(folder / "tokenizer_config.json")
    family = config.get("model_type")
    known = isinstance(family, str) and _is_known(family)
    named = config.get("auto_map")
    if isinstance(named, dict) and not known and any(kind in named for kind in _MODEL_CLASSES):
        raise _refusal(folder, f"a model of type {family}")
    named = tokenizer.get("auto_map")
    # With a known family transformers has a tokenizer for it; without config.json its class decides.
    if named and not known and (config or not _is_class(tokenizer.get("tokenizer_class"))):
        raise _refusal(folder, f"the tokenizer {tokenizer.get('tokenizer_class')}")


def _refusal(folder: Path, what: str) -> DataError:
    return DataError(
        f"{what} brings code of its own (auto_map), which is never run here",
        code=codes.UNSUPPORTED_MODEL,
        where=str(folder),
        remedy="use the model's conversion to the Llama layout (Baichuan2 and InternLM2 have one), "
        "or a base of a family that transformers has",
    )


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # told by those who need the file
    return found if isinstance(found, dict) else {}


def _is_known(family: str) -> bool:
    """Whether the installed transformers have a family: by the package's folders, not by importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return True  # who only talks to a cluster may have none; the job tells
    name = family.replace("-", "_")
    return name.isidentifier() and (Path(spec.origin).parent / "models" / name).is_dir()


def _is_class(name: object) -> bool:
    """Whether a tokenizer class is transformers' own, by its name: LlamaTokenizer, TokenizersBackend."""
    if not isinstance(name, str):
        return False
    plain = name.removesuffix("Fast").removesuffix("Tokenizer")
    return name in ("TokenizersBackend", "PreTrainedTokenizerFast") or _is_known(plain.lower())
