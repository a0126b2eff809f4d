"""Looks at the models that stages start from, as far as their files are on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zhongjing.cli.preflight.deltas import check_delta
from zhongjing.cli.preflight.templates import check_template
from zhongjing.codes import model as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.data.own_code import check_own_code
from zhongjing.errors import DataError, MissingInputError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import is_local_folder
from zhongjing.storage.listing import expand

# As huggingface_hub's validate_repo_id takes it: a name, or an owner and a name.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_models(document: TrainingPipeline, stages: Iterable[Stage]) -> list[str]:
    """Checks the chat template and local model folders; returns notes.

    Raises:
        MissingInputError: a folder has no model.
        ConfigError: the chat template fails.
        DataError: an adapter stands where a full model is needed, a model needs code of its own, a stage's
            sequences are longer than the model's positions, the tokenizer is another model's, or a delta
            cannot be added to its root.
    """
    base = document.spec.base
    if base.chat_template is not None:
        check_template(base.chat_template)
    notes: list[str] = []
    checked: set[Path] = set()
    for stage in stages:
        if document.spec.stages.get(stage) is None:
            continue  # construct starts from no model
        start, need = graph.start_of(document, stage)
        named, raised_by = {f"spec.stages.{start}.from": need.reference}, None
        if need.reference == graph.BASE:
            raised_by = "spec.base.maxPositions"
            # A merged model has the config of its delta.
            given = {"uri": base.uri, "delta": base.delta, "root": base.root}
            named = {f"spec.base.{name}": each for name, each in given.items() if each is not None}
        for index, (where, reference) in enumerate(named.items()):
            folder = _folder_of(reference, where, notes)
            if folder is None:
                continue
            config = _config_of(folder, where, adapter_allowed=start is Stage.PPO)
            if config is None:
                continue
            positions = config.get("max_position_embeddings")
            if raised_by and base.max_positions is not None:
                positions = None  # checked with the document
            if isinstance(positions, int) and index == 0:
                place = str(folder / "config.json")
                graph.check_length(document, stage, positions, place, raised_by=raised_by)
            if folder not in checked:
                checked.add(folder)
                check_own_code(folder)
                if index == 0:
                    _check_tokenizer(folder, config)
    _check_delta(document, checked)
    return list(dict.fromkeys(notes))


def _folder_of(reference: str, where: str, notes: list[str]) -> Path | None:
    """The folder of this machine that a reference means; None of one that is elsewhere.

    Raises:
        MissingInputError: it can be nothing but a folder, and there is none.
    """
    if is_local_folder(reference):
        return Path(expand(reference))
    if "://" in reference:
        return None
    if not _HUB_ID.fullmatch(reference):
        raise MissingInputError(
            f"there is no folder {reference} in {Path.cwd()}, and a hub id is written owner/name",
            code=codes.MODEL_NOT_FOUND,
            where=where,
        )
    if "/" in reference and Path(reference).parent.is_dir():
        notes.append(f"{where}: there is no folder {reference} here, so it is taken for a hub id")
    return None


def _check_delta(document: TrainingPipeline, checked: set[Path]) -> None:
    base = document.spec.base
    if base.delta is None or base.root is None or not all(map(is_local_folder, (base.delta, base.root))):
        return
    delta, root = Path(expand(base.delta)), Path(expand(base.root))
    rule = base.rule_of_delta
    if {delta, root} <= checked and rule is not None:  # else no stage of this run starts from the base
        check_delta(delta, root, rule)


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
