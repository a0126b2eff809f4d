"""Keys: hashes of what may change a result, and of nothing else.

A stage's key covers its ``training`` fields, the digests of its sources and of all test data (test data is
taken out of every stage), and the keys of the models that it starts from. Where a source lies, how many
workers run and what is logged are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage

KEY_VERSION = 1
_KEY_LENGTH = 16
_DATA = re.compile(
    r"settings\.data\[(?P<index>\d+)\]\.(?P<field>.+)"
)  # a source of a stage, in its key's fields


def digest(value: Any) -> str:
    """Hex digest (16 characters) of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def training_fields(model: BaseModel) -> dict[str, Any]:
    """The ``training`` fields of a part of the document, nested, under their document names.

    A field that came later counts only where it is not its default (see ``fields.training``).
    """
    fields: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        extra = info.json_schema_extra
        if not isinstance(extra, dict) or extra.get("x-tag") != "training":
            continue
        value = getattr(model, name)
        if extra.get("x-later") and value == _default(type(model), name):
            continue
        fields[info.alias or name] = _plain(value)
    return fields


@cache
def _default(kind: type[BaseModel], name: str) -> Any:
    """Of a field. Pydantic looks at a factory's signature each time, and keys are made in every pass."""
    return kind.model_fields[name].get_default(call_default_factory=True, validated_data={})


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return training_fields(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 3 and 3.0 in a document mean the same
    return value


def _source_fields(source: Source, source_digest: str) -> dict[str, Any]:
    fields = training_fields(source)
    # The content counts, not the place or the name.
    del fields["uri"], fields["name"]
    return {**fields, "digest": source_digest}


def source_digest(source: Source, read: str) -> str:
    """The digest that stages which read a source count it by.

    Args:
        source: as the document says it.
        read: digest of the objects at its place. What is made of them, and how, is known before it is made.
    """
    return read if source.made is None else digest(_making_fields(source, read))


def _making_fields(source: Source, read: str) -> dict[str, Any]:
    """What decides the records of a source that is made, and where they are."""
    assert source.made is not None
    fields = training_fields(source)
    # How it is used is no part of what it is.
    used = ("category", "split", "testFraction", "leakOverlap", "maxQuarantineFraction", "canaries")
    for name in ("name", *used):
        fields.pop(name, None)
    del fields["made"]["from"]
    return {**fields, "digest": read}


def tokenizer_sources(document: TrainingPipeline) -> list[Source]:
    """The sources that a tiny base's tokenizer is trained on: those of pretrain and sft.

    Later stages' data (ranked answers, which may come much later) must not change the base. A pipeline with
    neither stage takes those of its first stage.
    """
    spec = document.spec
    stages = [stage for stage in (Stage.PRETRAIN, Stage.SFT) if spec.stages.get(stage)]
    names: list[str] = []
    for stage in stages or spec.stages.trained()[:1]:
        settings = spec.stages[stage]
        names += [ref.source for ref in settings.data if ref.source not in names]
    return [spec.source(name) for name in names]


def base_key(
    document: TrainingPipeline,
    source_digests: Mapping[str, str],
    folder_digests: Mapping[str, str] | None = None,
) -> str:
    """Key of ``spec.base``.

    Args:
        document: the resolved document.
        source_digests: digest of each frozen source, by name; a tiny base depends on its tokenizer's.
        folder_digests: content digests of what is given as a local folder, by field: uri, delta, root.
    """
    base = document.spec.base
    fields: dict[str, Any] = {"version": KEY_VERSION, "base": training_fields(base)}
    if base.tiny is not None:
        fields["seed"] = document.spec.seed
        fields["corpora"] = [
            _source_fields(source, source_digests.get(source.name, "missing"))
            for source in tokenizer_sources(document)
        ]
    if base.delta is not None:
        # Also where the hub id tells it: bases that were merged before there were rules are others.
        fields["base"]["deltaRule"] = base.rule_of_delta
    if folder_digests:
        for name in folder_digests:
            del fields["base"][name]
        fields["content"] = folder_digests.get("uri") or dict(folder_digests)
    return digest(fields)


def key_fields(
    document: TrainingPipeline,
    stage: Stage,
    source_digests: Mapping[str, str],
    input_keys: Mapping[str, str],
    rerun: int = 0,
) -> dict[str, Any]:
    """Everything that the key of ``stage`` is a hash of.

    Args:
        document: the resolved document.
        stage: a stage that the document has.
        source_digests: digest of each source, by name (:func:`source_digest`); of construct, of what is read.
        input_keys: key of each model the stage uses: ``from`` and, for PPO, ``reward``.
        rerun: how often a re-run was forced.
    """
    spec = document.spec
    if stage is Stage.CONSTRUCT:
        return _construction_fields(document, source_digests, rerun)
    settings = spec.stages[stage]
    fields = training_fields(settings)
    fields["seed"] = spec.seed if settings.seed is None else settings.seed
    if stage in (Stage.RM, Stage.PPO):  # what is shown counts, not which stage's field says it
        fields.pop("systemPrompt", None)
        shown = spec.stages.system_prompt(stage)
        if shown is not None:
            fields["systemPrompt"] = shown
    # Inputs count by their keys; the words that name them do not.
    for reference in ("from", "reward"):
        fields.pop(reference, None)
    fields["data"] = [
        {
            **_source_fields(spec.source(ref.source), source_digests.get(ref.source, "missing")),
            "weight": ref.weight,
        }
        for ref in settings.data
    ]
    tests = [
        _source_fields(source, source_digests.get(source.name, "missing"))
        for source in spec.sources
        if source.has_test_data
    ]
    result: dict[str, Any] = {
        "version": KEY_VERSION,
        "stage": stage.value,
        "settings": fields,
        "tests": sorted(tests, key=lambda test: str(test["digest"])),
        "inputs": dict(input_keys),
    }
    if rerun:
        result["rerun"] = rerun
    return result


def _construction_fields(
    document: TrainingPipeline, source_digests: Mapping[str, str], rerun: int
) -> dict[str, Any]:
    made = [source for source in document.spec.sources if source.made is not None]
    data = [_making_fields(source, source_digests.get(source.name, "missing")) for source in made]
    fields = {
        "version": KEY_VERSION,
        "stage": Stage.CONSTRUCT.value,
        "settings": {"data": data},
        "inputs": {},
    }
    return {**fields, "rerun": rerun} if rerun else fields


def explain_change(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> list[str]:
    """What differs between two results of :func:`key_fields`.

    Args:
        old: of the earlier result.
        new: of the one that is wanted.
        inputs: what the roles of the new one are called: ``{"from": "sft"}``.
        sources: names of the stage's sources in the new document, in its order.

    Returns:
        Fields as ``path: old -> new``, by their paths in the document; inputs and sources, whose keys are
        hashes, as ``sft changed``.
    """
    changes: list[str] = []
    before, after = old.get("inputs") or {}, new.get("inputs") or {}
    for role in sorted({*before, *after}):
        if before.get(role) != after.get(role):
            changes.append(f"{(inputs or {}).get(role, role)} changed")
    differences: list[tuple[str, Any, Any]] = []
    _compare("", {**old, "inputs": None}, {**new, "inputs": None}, differences)
    told = [_told(new.get("stage", ""), sources, *difference) for difference in differences]
    return list(dict.fromkeys([*changes, *told]))


def _compare(path: str, old: Any, new: Any, changes: list[tuple[str, Any, Any]]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            _compare(f"{path}.{name}" if path else str(name), old.get(name), new.get(name), changes)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            _compare(f"{path}[{index}]", before, after, changes)
    elif old != new:
        changes.append((path, old, new))


def _told(stage: str, sources: Sequence[str], path: str, old: Any, new: Any) -> str:
    """A difference, named as the document names it. Of a key's test data the names are not known."""
    if path.startswith("tests"):
        return "the test data changed"
    if path == "settings.data":
        return f"spec.stages.{stage}.data changed"
    part = _DATA.fullmatch(path)
    if part is not None and int(part["index"]) < len(sources) and part["field"] != "weight":
        name = sources[int(part["index"])]
        if part["field"] == "digest":
            return f"the content of source {name} changed"
        path = f"spec.sources.{name}.{part['field']}"
    elif path.startswith("settings."):
        path = f"spec.stages.{stage}.{path.removeprefix('settings.')}"
    return f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
