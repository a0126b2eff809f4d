"""Looks at the models that stages start from, as far as their files are on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zhongjing.codes import model as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import PpoSettings, Stage
from zhongjing.data.own_code import check_own_code
from zhongjing.errors import DataError, MissingInputError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import expand, is_local_folder


def check_models(document: TrainingPipeline, stages: Iterable[Stage]) -> None:
    """Checks local model folders, and the positions of a base that will be made.

    Raises:
        MissingInputError: a folder has no model.
        DataError: an adapter stands where a full model is needed, a model needs code of its own, a stage's
            sequences are longer than the model's positions, or the tokenizer is another model's.
    """
    checked: set[Path] = set()
    for stage in stages:
        start, need = _start_of(document, stage)
        reference = document.spec.base.uri if need.reference == graph.BASE else need.reference
        where = "spec.base.uri" if need.reference == graph.BASE else f"spec.stages.{start}.from"
        if reference is None:
            tiny = document.spec.base.tiny
            if tiny is not None:
                field = "spec.base.tiny.maxPositions"
                _check_length(document, stage, tiny.max_positions, field, raised_by=field)
            continue
        if not is_local_folder(reference):
            continue
        folder = Path(expand(reference))
        config = _config_of(folder, where, adapter_allowed=start is Stage.PPO)
        if config is None:
            continue
        positions = config.get("max_position_embeddings")
        raised_by = None
        if need.reference == graph.BASE:
            positions = document.spec.base.max_positions or positions
            raised_by = "spec.base.maxPositions"
        if isinstance(positions, int):
            _check_length(document, stage, positions, str(folder / "config.json"), raised_by=raised_by)
        if folder not in checked:
            check_own_code(folder)
            checked.add(folder)
            _check_tokenizer(folder, config)


def _start_of(document: TrainingPipeline, stage: Stage) -> tuple[Stage, graph.Need]:
    """The model from outside that a stage stands on, and the stage that starts from it."""
    need = graph.needs(document, stage)[0]
    return (stage, need) if need.stage is None else _start_of(document, need.stage)


def _config_of(folder: Path, where: str, *, adapter_allowed: bool) -> dict[str, Any] | None:
    """config.json of a full model; None of an adapter's.

    Raises:
        MissingInputError: there is no model.
        DataError: it is an adapter and must not be one, or config.json is not JSON.
    """
    file = folder / "config.json"
    if not file.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        if adapter and adapter_allowed:
            return None
        if adapter:
            raise DataError(
                f"a full model is needed here, {folder} is an adapter",
                code=codes.NOT_A_FULL_MODEL,
                where=where,
            )
        raise MissingInputError(
            f"there is no model in the folder {folder}"
            if folder.is_dir()
            else f"there is no folder {folder}",
            code=codes.MODEL_NOT_FOUND,
            where=where,
            remedy="name a folder with config.json or adapter_config.json, an s3:// URI or a hub id",
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DataError("config.json is no JSON object", code=codes.UNUSABLE_MODEL, where=str(file))
    return found


def _check_length(
    document: TrainingPipeline, stage: Stage, positions: int, place: str, *, raised_by: str | None
) -> None:
    settings = document.spec.stages.get(stage)
    assert settings is not None, "the stages have been checked against the document"
    # How much room the prompts of PPO leave is known when they are tokens: the job tells.
    if isinstance(settings, PpoSettings):
        field, length, most = "maxNewTokens", settings.max_new_tokens, "less than"
    else:
        field, length, most = "maxLength", settings.max_length, "at most"
    if length > positions:
        raise_it = f"; or, where the base is to learn longer sequences, {raised_by}: {length}"
        remedy = f"set {field} to {most} {positions}{raise_it if raised_by else ''}"
        raise DataError(
            f"{field} {length} is longer than the model's {positions} positions ({place})",
            code=codes.TOO_LONG_FOR_MODEL,
            where=f"spec.stages.{stage}.{field}",
            remedy=remedy,
        )


def _check_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """A tokenizer that makes ids which the embedding lacks is another model's."""
    rows, largest = config.get("vocab_size"), _largest_id(folder / "tokenizer.json")
    if isinstance(rows, int) and largest >= rows:
        raise DataError(
            f"the tokenizer makes ids up to {largest}, the embedding has only {rows} rows",
            code=codes.TOKENIZER_MISMATCH,
            where=str(folder),
            remedy="put the tokenizer files that belong to this model into the folder; for a published delta "
            "give base.delta with base.root",
        )


def _largest_id(file: Path) -> int:
    """Largest id of a tokenizer.json, added tokens included; -1 of one that only transformers may judge."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = found["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        ids += [token["id"] for token in found.get("added_tokens") or ()]
        return max((int(each) for each in ids), default=-1)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return -1
