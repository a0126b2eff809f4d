"""A checkpoint on disk: masters and moments by parameter name, so that any number of workers can read it.

::

    trainer.json                 step, counters, guard, program; which file holds which tensor
    state-00001.safetensors      parameter/<name>, exp_avg/<name>, exp_avg_sq/<name>, fp32
    state-00002.safetensors      ...

ZeRO's own checkpoints hold flat partitions whose borders depend on the number of workers. Here every tensor
is gathered, written and forgotten one file at a time: rank 0 never holds more than one file's worth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.documents import check_version
from zhongjing.train.engine import Engine

TRAINER_FILE = "trainer.json"
FORMAT_VERSION = 1
MOMENTS = ("exp_avg", "exp_avg_sq")
DEFAULT_FILE_BYTES = 2 << 30


def write_state(
    engine: Engine, folder: Path | None, extra: dict[str, Any], *, file_bytes: int = DEFAULT_FILE_BYTES
) -> None:
    """Writes a checkpoint. All ranks call it at the same step; only the one with a folder writes.

    Args:
        engine: whose state to write.
        folder: an empty folder on rank 0, None elsewhere.
        extra: JSON values that belong to the checkpoint.
        file_bytes: about so much of the state is in memory at a time.

    Raises:
        Exception: what writing a file ended with, once all ranks have given what they have to give: a rank
            that left early would leave the others waiting.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    pending: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    files = 0
    failure: Exception | None = None

    def flush() -> None:
        nonlocal files, failure
        if folder is not None and pending and failure is None:
            files += 1
            name = f"state-{files:05d}.safetensors"
            try:
                save_file(pending, folder / name)
            except Exception as error:
                failure = error
            places.update(dict.fromkeys(pending, name))
        pending.clear()

    size = 0
    for name, parameter in engine.names.items():
        for part in ("parameter", *MOMENTS):
            # Collective: every rank gives its fragment.
            whole = (
                safe_get_full_fp32_param(parameter)
                if part == "parameter"
                else safe_get_full_optimizer_state(parameter, part)
            )
            if folder is None or failure is not None:
                continue
            pending[f"{part}/{name}"] = whole.detach().to("cpu", copy=True).contiguous()
            size += whole.numel() * 4
            if size >= file_bytes:
                flush()
                size = 0
    flush()
    if failure is not None:
        raise failure
    if folder is not None:
        content = {"version": FORMAT_VERSION, "engine": engine.state_dict(), "tensors": places, **extra}
        (folder / TRAINER_FILE).write_text(json.dumps(content), encoding="utf-8")


def read_trainer(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        StorageError: it is missing, cut, or of another version.
    """
    path = folder / TRAINER_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"not a checkpoint: {error}", code=codes.DAMAGED_CHECKPOINT, where=str(path)
        ) from error
    if not isinstance(content, dict):
        raise StorageError("not a checkpoint: no JSON object", code=codes.DAMAGED_CHECKPOINT, where=str(path))
    check_version(content.get("version"), [FORMAT_VERSION], "a checkpoint", str(path))
    checked: dict[str, Any] = content
    return checked


def read_state(engine: Engine, folder: Path, *, moments: bool = True) -> dict[str, Any]:
    """Takes the parameters (and, to go on training, everything else) from a checkpoint, on every rank.

    Args:
        engine: takes the state; its number of ranks may differ from the writer's.
        folder: the checkpoint.
        moments: also AdamW's moments, step counters, guard and loss scaler.

    Returns:
        The JSON part of the checkpoint.

    Raises:
        StorageError: the checkpoint is damaged or belongs to another model.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    content = read_trainer(folder)
    places: dict[str, str] = content["tensors"]
    parts = ("parameter", *MOMENTS) if moments else ("parameter",)
    wanted = {f"{part}/{name}": (part, p) for name, p in engine.names.items() for part in parts}
    absent = sorted(wanted.keys() - places.keys())
    unknown = sorted({key.split("/", 1)[1] for key in places} - engine.names.keys())
    if absent or unknown:
        raise StorageError(
            f"the checkpoint is of another model: {len(absent)} tensors are missing "
            f"(first: {absent[0] if absent else 'none'}), {len(unknown)} parameters are unknown "
            f"(first: {unknown[0] if unknown else 'none'})",
            code=codes.DAMAGED_CHECKPOINT,
            where=str(folder),
            remedy="begin the stage again, or restore the settings that the checkpoint was made with",
        )
    for file in sorted(set(places.values())):
        with safe_open(folder / file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                if key not in wanted:
                    continue
                part, parameter = wanted[key]
                value = handle.get_tensor(key)
                if value.shape != parameter.shape:
                    raise StorageError(
                        f"{key} is {tuple(value.shape)}, the model's is {tuple(parameter.shape)}",
                        code=codes.DAMAGED_CHECKPOINT,
                        where=str(folder / file),
                        remedy="begin the stage again",
                    )
                if part == "parameter":
                    safe_set_full_fp32_param(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, part)
    # The masters changed; the weights that the model computes with are made from them.
    engine.zero.update_lp_params()
    for index in range(len(engine.zero.bit16_groups)):
        engine.zero._update_model_bit16_weights(index)
    if moments:
        engine.load_state_dict(content["engine"])
    return content
