"""``zhongjing pull`` and ``zhongjing curves``: fetch results as folders that need no code of ours.

A folder appears whole or not at all: everything is fetched and checked beside it, and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.model_card import CARD_FILE, model_card
from zhongjing.cli.options import Format, OutputFormat, results
from zhongjing.cli.target import Target, find, on_target, split_result
from zhongjing.codes.command import INVALID_OPTION, NOT_RUN_YET, TARGET_IN_USE
from zhongjing.codes.document import UNKNOWN_STAGE
from zhongjing.codes.storage import DAMAGED_OBJECT
from zhongjing.errors import ConfigError, DataError, MissingInputError, NotFoundError

if TYPE_CHECKING:
    from zhongjing.config.stages import Stage
    from zhongjing.pipeline.session import Session
    from zhongjing.storage.manifest import ModelArtifact, StageManifest
    from zhongjing.storage.objects import ObjectStore

BASE_FOLDER = "base"
"""Where an adapter's base lies inside the pulled folder."""

ADAPTER_CONFIG = "adapter_config.json"

ORIGIN_FILE = "zhongjing.json"
"""What made a pulled model, and the system turn that it learned with; ``chat`` reads it."""

MANIFEST_FILE = "manifest.json"
"""All that is known of how the model was made."""

EPILOG = """
\b
Examples:
  zhongjing pull tiny/ppo ./model --local
  zhongjing pull tiny/ppo ./merged --merged --local
  zhongjing pull tiny/rm ./reward --curves --local
  zhongjing pull tiny/ppo ./model -n train        from a cluster

An adapter comes with its base in FOLDER/base and refers to it by its absolute path: pull again rather than
move the folder, or pull with --merged.
"""

CURVES_EPILOG = """
\b
Examples:
  zhongjing curves tiny/ppo ./curves --local
"""

Result = Annotated[
    str,
    typer.Argument(metavar="PIPELINE/STAGE", help="Whose result, e.g. tiny/ppo.", autocompletion=results),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where it goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that is not empty.")]


@guarded
@on_target()
def pull(
    *,
    target: Target,
    result: Result,
    folder: Folder,
    merged: Annotated[
        bool, typer.Option("--merged", help="One standalone model: the adapter added to its base.")
    ] = False,
    with_curves: Annotated[
        bool, typer.Option("--curves", help="Also the curves, into FOLDER/curves.")
    ] = False,
    force: Force = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Fetch a model into a folder that transformers and PEFT load."""
    name, stage = split_result(result)
    console = Console(json_mode=output == Format.JSON)
    with target.open() as session, new_folder(folder, force=force) as partial:
        manifest = manifest_of(session, name, stage)
        if manifest.model is None:
            raise _no_model(result, manifest)
        standalone = _fetch_model(session.store, manifest.model, partial, folder, merged=merged)
        if with_curves:
            _fetch_curves(session, manifest, partial / "curves")
        lines = loading_lines(folder, stage.value, adapter=not standalone)
        _write_origin(manifest, partial / ORIGIN_FILE)
        (partial / MANIFEST_FILE).write_text(
            manifest.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8"
        )
        (partial / CARD_FILE).write_text(
            model_card(manifest, adapter=not standalone, load=lines), encoding="utf-8"
        )
        manifest_uri = session.layout(name).stage(stage, manifest.key).manifest
    console.say(f"{result} is in {folder}; load it with:")
    for line in lines:
        console.say(f"  {line}")
    if console.json_mode:
        console.result(
            {
                "folder": str(folder.resolve()),
                "format": "full" if standalone else "adapter",
                "base": None if standalone else str((folder / BASE_FOLDER).resolve()),
                "manifestUri": manifest_uri,
                "load": lines,
            }
        )


@guarded
@on_target()
def curves(
    *,
    target: Target,
    result: Result,
    folder: Folder,
    force: Force = False,
) -> None:
    """Fetch the curves (loss, reward, KL) of a stage as PNG files."""
    name, stage = split_result(result)
    with target.open() as session, new_folder(folder, force=force) as partial:
        _fetch_curves(session, manifest_of(session, name, stage), partial)
    for file in sorted(folder.iterdir()):
        Console().say(str(file))


def manifest_of(session: Session, name: str, stage: Stage) -> StageManifest:
    """The result in use of a stage.

    Raises:
        ConfigError: there is no such pipeline, or it has no such stage.
        MissingInputError: the stage has no result yet.
    """
    desired = find(session, name)
    present = desired.document.spec.stages.present()
    if stage not in present:
        raise ConfigError(
            f"the pipeline has no stage {stage}",
            code=UNKNOWN_STAGE,
            where=name,
            remedy=f"it has: {', '.join(present)}",
        )
    manifest = session.manifest(name, stage)
    if manifest is None:
        done = [f"{name}/{each}" for each in present if session.manifest(name, each) is not None]
        others = f"; there is: {', '.join(done)}" if done else ""
        raise MissingInputError(
            "the stage has no result yet",
            code=NOT_RUN_YET,
            where=f"{name}/{stage}",
            remedy=f"make it with: `zhongjing submit --pipeline {name} --stage {stage}`{others}",
        )
    return manifest


def _no_model(result: str, manifest: StageManifest) -> ConfigError:
    made = ", ".join(each.uri for each in manifest.made.values())
    return ConfigError(
        "the stage makes sources, no model",
        code=INVALID_OPTION,
        where=result,
        remedy=f"its sources are at {made}",
    )


def refuse_full(folder: Path, *, force: bool) -> None:
    """Raises ConfigError where a folder shall go and a file is, or a folder with anything in it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("is a file", code=TARGET_IN_USE, where=str(folder), remedy="give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(
            "the folder is not empty",
            code=TARGET_IN_USE,
            where=str(folder),
            remedy="give another one, or add --force",
        )


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill that takes its name when the block ends well, and is removed when it does not.

    Raises:
        ConfigError: something that is not empty is there, and ``force`` is not set.
    """
    refuse_full(folder, force=force)
    parent = folder.resolve().parent
    partial = parent / f".{folder.resolve().name}.partial-{os.getpid()}"
    old = parent / f".{folder.resolve().name}.old-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror or error}", code=TARGET_IN_USE, where=str(folder)
        ) from error
    try:
        yield partial
        if folder.exists():
            folder.resolve().rename(old)
        partial.rename(folder.resolve())
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder.resolve())
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fetch_model(
    store: ObjectStore, model: ModelArtifact, partial: Path, folder: Path, *, merged: bool
) -> bool:
    """Fills ``partial``, which will be called ``folder``; returns whether it holds a standalone model."""
    if model.format == "full":
        store.download_folder(model.uri, partial, model.files or None)
        return True
    if model.base_uri is None:
        raise DataError("the adapter's manifest does not name its base", code=DAMAGED_OBJECT, where=model.uri)
    if not merged:
        store.download_folder(model.uri, partial, model.files or None)
        base = _fetch_base(store, model.base_uri, partial / BASE_FOLDER)
        _refer_to(partial, base, folder.resolve())
        return False
    adapter = partial / "adapter"
    store.download_folder(model.uri, adapter, model.files or None)
    base = _fetch_base(store, model.base_uri, partial / BASE_FOLDER)
    from zhongjing.model.export import merge_adapter

    merge_adapter(base, adapter, partial / "merged")
    shutil.rmtree(adapter)
    shutil.rmtree(partial / BASE_FOLDER, ignore_errors=True)
    for file in list((partial / "merged").iterdir()):
        file.rename(partial / file.name)
    (partial / "merged").rmdir()
    return True


def _fetch_base(store: ObjectStore, base_uri: str, folder: Path) -> Path:
    """The adapter's base as a local folder: fetched, or where it lies already if it is none of ours."""
    if not base_uri.startswith("s3://"):
        from zhongjing.train.job.folders import Folders

        local = Folders(store, folder.parent).local(base_uri)
        shutil.copytree(local, folder, symlinks=False)
        return folder
    from zhongjing.storage.artifacts import fetch_model

    fetch_model(store, base_uri, folder)
    return folder


def _write_origin(manifest: StageManifest, file: Path) -> None:
    from zhongjing.config.pipeline import TrainingPipeline

    stages = TrainingPipeline.model_validate(manifest.document).spec.stages
    origin: dict[str, str | None] = {"pipeline": manifest.pipeline, "stage": manifest.stage.value}
    origin |= {"key": manifest.key, "systemPrompt": stages.system_prompt(manifest.stage)}
    file.write_text(json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refer_to(partial: Path, base: Path, folder: Path) -> None:
    """Makes the adapter refer to its base at the place where both will be.

    That it fits its base is checked where torch is installed; a client of a cluster may lack it.
    """
    try:
        from zhongjing.model.export import localise
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "zhongjing":
            raise
    else:
        localise(partial, base)
    config = partial / ADAPTER_CONFIG
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(folder / BASE_FOLDER)
    config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fetch_curves(session: Session, manifest: StageManifest, folder: Path) -> None:
    layout = session.layout(manifest.pipeline).stage(manifest.stage, manifest.key)
    try:
        session.store.download_folder(layout.curves, folder)
    except NotFoundError:
        raise MissingInputError(
            "the stage has no curves",
            code=NOT_RUN_YET,
            where=layout.curves,
            remedy="metrics.jsonl beside it has the numbers",
        ) from None


def loading_lines(folder: Path, stage: str, *, adapter: bool) -> list[str]:
    """Three lines of Python that load the folder."""
    place = json.dumps(str(folder.resolve()), ensure_ascii=False)
    head = "SequenceClassification" if stage == "rm" else "CausalLM"
    kind, imports = f"AutoModelFor{head}", f"from transformers import AutoModelFor{head}, AutoTokenizer"
    if adapter:
        kind = f"AutoPeftModelFor{head}"
        imports = f"from peft import {kind}; from transformers import AutoTokenizer"
    labels = ", num_labels=1" if stage == "rm" else ""
    return [
        imports,
        f"model = {kind}.from_pretrained({place}{labels})",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
    ]
