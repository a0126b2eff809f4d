"""A checkpoint on disk: each rank's part of the masters and moments, so that any number of ranks can read it.

::

    trainer.json                 step, counters, guard, program; shape of every parameter
    rank-00000.json              which range of which parameter stands where in this rank's files
    rank-00000-weights.bin       fp32 masters of its ZeRO-2 partition
    rank-00000-moments.bin       exp_avg, then exp_avg_sq, in the same order
    rank-00001...

ZeRO-2 has each rank keep one range of the flat masters, cut without regard to parameters. Each rank copies
its own range as it is, without a collective. A reader asks for ranges of parameters, so the borders of
the ranks that wrote need not be those of the ranks that read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.checkpoint_records import MOMENTS_SUFFIX, WEIGHTS_SUFFIX, Ranges
from zhongjing.storage.documents import check_version
from zhongjing.storage.heartbeat import beat
from zhongjing.train.engine import Engine
from zhongjing.train.snapshot import SnapshotBuffer

TRAINER_FILE = "trainer.json"
FORMAT_VERSION = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
_BEGIN_AGAIN = "begin the stage again: `zhongjing submit --pipeline NAME --rerun STAGE`"
_AGAIN = f"{_BEGIN_AGAIN}; or restore the settings that the checkpoint was made with"


def write_state(
    engine: Engine, folder: Path, extra: dict[str, Any], buffer: SnapshotBuffer | None = None
) -> None:
    """Writes this rank's part of a checkpoint. Every rank calls it; no rank waits for another.

    Args:
        engine: whose state to write.
        folder: an empty folder, or one that all ranks share.
        extra: JSON values that belong to the checkpoint.
        buffer: memory to use again; None: the files are made anew.

    Raises:
        OSError: the disk is full.
    """
    partitions = list(engine.zero.single_partition_of_fp32_groups)
    states = [engine.zero.optimizer.state[partition] for partition in partitions]
    starts = [0]
    for partition in partitions:
        starts.append(starts[-1] + partition.numel())
    fragments = []
    for name, parameter in engine.names.items():
        mapping = _mapping(parameter)
        if mapping is not None:
            at = starts[mapping.param_group_index] + mapping.hp_fragment_address.start
            address = mapping.lp_fragment_address
            fragments.append([name, address.start, address.numel, at])
    buffer = buffer or SnapshotBuffer()
    stem = f"rank-{engine.rank:05d}"
    buffer.fill(folder / f"{stem}{WEIGHTS_SUFFIX}", partitions)
    buffer.fill(folder / f"{stem}{MOMENTS_SUFFIX}", [state[key] for key in MOMENTS for state in states])
    _write_json(folder / f"{stem}.json", {"elements": starts[-1], "fragments": fragments})
    if engine.rank == 0:
        content = {
            "version": FORMAT_VERSION,
            "engine": engine.state_dict(),
            "parameters": {name: list(parameter.shape) for name, parameter in engine.names.items()},
            "ranks": engine.world_size,
            **extra,
        }
        _write_json(folder / TRAINER_FILE, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def read_trainer(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        StorageError: it is missing, cut, or of another version.
    """
    path = folder / TRAINER_FILE
    content = _read_json(path)
    if content.get("version") == 1:
        raise StorageError(
            "an earlier build made this checkpoint, and this one cannot read it",
            code=codes.DAMAGED_CHECKPOINT,
            where=str(path),
            remedy=f"{_BEGIN_AGAIN}; or go on with the build that made it",
        )
    check_version(content.get("version"), [FORMAT_VERSION], "a checkpoint", str(path))
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"not a checkpoint: {error}", code=codes.DAMAGED_CHECKPOINT, where=str(path)
        ) from error
    if not isinstance(content, dict):
        raise StorageError("not a checkpoint: no JSON object", code=codes.DAMAGED_CHECKPOINT, where=str(path))
    return content


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of a parameter, as a rank wrote it; all counts in elements."""

    start: int
    count: int
    weights: Path
    at: int  # in the file
    elements: int  # of the rank's partition

    def place(self, part: str, start: int) -> tuple[Path, int, int]:
        """File of the parameter or of one of its moments, its elements, and where ``start`` is in it."""
        at = self.at + start - self.start
        if part == "parameter":
            return self.weights, self.elements, at
        path = self.weights.with_name(self.weights.name.replace(WEIGHTS_SUFFIX, MOMENTS_SUFFIX))
        return path, self.elements * len(MOMENTS), at + MOMENTS.index(part) * self.elements

    def values(self, part: str, start: int, end: int) -> torch.Tensor:
        """Elements ``start`` to ``end`` of the parameter, or of one of its moments: mapped, not read yet."""
        path, elements, at = self.place(part, start)
        if not path.is_file() or path.stat().st_size != 4 * elements:
            raise _damaged("a file of the checkpoint is missing or cut", path)
        return torch.from_file(str(path), shared=False, size=elements)[at : at + end - start]


def _spans(folder: Path, ranks: int) -> dict[str, list[_Span]]:
    # Parts of ranks other than 0 lie in a folder of their own (zhongjing.storage.checkpoint_upload).
    indexes = sorted(folder.rglob("rank-*.json"))
    if len(indexes) != ranks:
        raise _damaged(f"{len(indexes)} ranks' parts are there of {ranks}", folder)
    spans: dict[str, list[_Span]] = {}
    for path in indexes:
        index = _read_json(path)
        weights = path.with_name(f"{path.stem}{WEIGHTS_SUFFIX}")
        for name, start, count, at in index["fragments"]:
            spans.setdefault(name, []).append(_Span(start, count, weights, at, index["elements"]))
    return spans


def _overlaps(
    spans: dict[str, list[_Span]], name: str, parameter: torch.nn.Parameter
) -> list[tuple[_Span, int, int]]:
    """What a rank keeps of a parameter, by who wrote it: first element and the one behind the last."""
    mapping = _mapping(parameter)
    if mapping is None:
        return []
    start = mapping.lp_fragment_address.start
    end = start + mapping.lp_fragment_address.numel
    found = [
        (span, max(start, span.start), min(end, span.start + span.count)) for span in spans.get(name, [])
    ]
    return [(span, first, last) for span, first, last in found if first < last]


def wanted_ranges(engine: Engine, folder: Path, *, moments: bool = True) -> Ranges:
    """Bytes that :func:`read_state` will read of a checkpoint's weights and moments, by file.

    Args:
        engine: as it will be given to ``read_state``.
        folder: with the checkpoint's JSON files.
        moments: as it will be given to ``read_state``.

    Raises:
        StorageError: the checkpoint cannot be read.
    """
    ranges: Ranges = {}
    spans = _spans(folder, read_trainer(folder)["ranks"])
    for name, parameter in engine.names.items():
        for span, first, last in _overlaps(spans, name, parameter):
            for part in ("parameter", *MOMENTS) if moments else ("parameter",):
                path, _, at = span.place(part, first)
                byte_range = (4 * at, 4 * (at + last - first))
                ranges.setdefault(path.relative_to(folder).as_posix(), []).append(byte_range)
    return ranges


def read_state(engine: Engine, folder: Path, *, moments: bool = True) -> dict[str, Any]:
    """Takes this rank's parameters (and, to go on training, everything else) from a checkpoint.

    Every rank calls it; of the files only what this rank keeps is read.

    Args:
        engine: takes the state; its number of ranks may differ from the writers'.
        folder: the checkpoint.
        moments: also AdamW's moments, step counters, guard and loss scaler.

    Returns:
        The JSON part of the checkpoint.

    Raises:
        StorageError: the checkpoint is damaged or belongs to another model.
    """
    content = read_trainer(folder)
    shapes: dict[str, list[int]] = content["parameters"]
    own = {name: list(parameter.shape) for name, parameter in engine.names.items()}
    absent, unknown = sorted(own.keys() - shapes.keys()), sorted(shapes.keys() - own.keys())
    other = sorted(name for name in own.keys() & shapes.keys() if own[name] != shapes[name])
    if absent or unknown or other:
        raise StorageError(
            f"the checkpoint is of another model: {len(absent)} parameters are missing "
            f"(first: {absent[0] if absent else 'none'}), {len(unknown)} are unknown "
            f"(first: {unknown[0] if unknown else 'none'}), {len(other)} have another shape "
            f"(first: {other[0] if other else 'none'})",
            code=codes.DAMAGED_CHECKPOINT,
            where=str(folder),
            remedy=_AGAIN,
        )
    spans = _spans(folder, content["ranks"])
    for name, parameter in engine.names.items():
        mapping = _mapping(parameter)
        if mapping is None:
            continue
        start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
        overlaps = _overlaps(spans, name, parameter)
        for part in ("parameter", *MOMENTS) if moments else ("parameter",):
            target = mapping.get_hp_fragment(None if part == "parameter" else part)
            for span, first, last in overlaps:
                target[first - start : last - start].data.copy_(span.values(part, first, last))
            found = sum(last - first for _, first, last in overlaps)
            if found != count:
                raise _damaged(f"{found} of {count} elements of {name} are there", folder)
        beat()
    # The masters changed; the weights that the model computes with are made from them.
    engine.zero.update_lp_params()
    for index in range(len(engine.zero.bit16_groups)):
        engine.zero._update_model_bit16_weights(index)
    if moments:
        engine.load_state_dict(content["engine"])
    return content


def _mapping(parameter: torch.nn.Parameter) -> Any:
    """DeepSpeed's word on which range of a parameter this rank keeps, and where; None: no range of it."""
    return getattr(parameter, "_hp_mapping", None)


def _damaged(message: str, path: Path) -> StorageError:
    return StorageError(message, code=codes.DAMAGED_CHECKPOINT, where=str(path), remedy=_AGAIN)
