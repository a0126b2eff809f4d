"""What the driver makes before the workers start: the base, its tokenizer, the token cache.

Everything made here is stored once under a key of its own and found again by the next attempt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zhongjing.config.keys import digest, tokenizer_sources
from zhongjing.config.stages import Stage
from zhongjing.data.build import build_token_cache, corpus_texts
from zhongjing.data.chat import CHATML_TEMPLATE, default_template
from zhongjing.errors import ConflictError, DataError
from zhongjing.model.base import check_max_length, load_config, make_tiny_base, merge_delta
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import SourceCounts, StageInput, StageRequest
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.folders import Folders

BASE = "base"
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Prepared:
    """What the workers need, by reference; every reference means the same on every node.

    Attributes:
        base: full model that the workers load.
        adapter: PPO only: the adapter that policy and reference start from, if ``from`` is one.
        reward: PPO only: the reward model's adapter.
        tokenizer: folder of the tokenizer, chat template included.
        tokens: the token cache.
        counts: what became of the sources' records.
    """

    base: str
    base_revision: str | None
    adapter: str | None
    reward: str | None
    tokenizer: str
    tokens: str
    counts: tuple[SourceCounts, ...]


def prepare(
    request: StageRequest, store: ObjectStore, layout: Layout, scratch: Path, report: Report
) -> Prepared:
    """Prepares a stage.

    Raises:
        DataError: the base, an adapter or the data cannot be used; MissingInputError where one is not there.
        StorageError: the object store refused or went away.
    """
    document = request.document
    settings = document.spec.stages.get(request.stage)
    assert settings is not None, "the request's document has the request's stage"
    folders = Folders(store, scratch.parent)
    start = next(item for item in request.inputs if item.role == "from")
    revision = None
    reference = start.uri
    if reference == BASE:
        reference, revision = _ensure_base(request, start, store, layout, scratch, report)
    report("fetching the model to start from", 0.0)
    local = folders.local(reference, revision)
    adapter = folders.base_of(local) and reference
    base = folders.base_of(local) or reference
    if adapter and request.stage is not Stage.PPO:
        raise DataError(
            f"{request.stage} starts from a full model, this is an adapter",
            where=reference,
            remedy="merge it first: zhongjing pull --merged",
        )
    base_local = folders.local(base, None if adapter else revision)
    reward = next((item.uri for item in request.inputs if item.role == "reward"), None)
    if reward is not None:
        _check_reward(folders, reward, base, sft_is_full=adapter is None)
    check_max_length(load_config(base_local), settings.max_length)
    tokenizer, tokenizer_local = _ensure_tokenizer(
        request, base, base_local, store, layout, scratch, report
    )
    cache = build_token_cache(
        store,
        layout,
        document,
        request.stage,
        request.sources,
        tokenizer_local,
        report,
        layout.stage(request.stage, request.key).quarantine,
    )
    return Prepared(
        base=base,
        base_revision=None if adapter else revision,
        adapter=adapter,
        reward=reward,
        tokenizer=tokenizer,
        tokens=cache.uri,
        counts=tuple(cache.counts),
    )


def _check_reward(folders: Folders, reward: str, base: str, *, sft_is_full: bool) -> None:
    reward_base = folders.base_of(folders.local(reward))
    if reward_base is None:
        raise DataError(
            "the reward model is no PEFT adapter with a head",
            where=reward,
            remedy="PPO keeps all four roles on one base: give the adapter that the rm stage made",
        )
    if reward_base != base:
        remedy = (
            "PPO keeps all four roles on one base: set spec.stages.sft.tuning: lora"
            if sft_is_full
            else "train policy and reward model from the same base"
        )
        raise DataError(
            f"the reward model stands on {reward_base}, the policy on {base}", where=reward, remedy=remedy
        )


def _ensure_base(
    request: StageRequest,
    start: StageInput,
    store: ObjectStore,
    layout: Layout,
    scratch: Path,
    report: Report,
) -> tuple[str, str | None]:
    """Reference and revision of ``spec.base``, which is made first where it has to be."""
    base = request.document.spec.base
    if base.uri is not None:
        return base.uri, base.revision
    uri = layout.base(start.key)
    if store.exists(f"{uri}/made.json"):
        return uri, None
    folder = scratch / "base"
    shutil.rmtree(folder, ignore_errors=True)
    if base.tiny is not None:
        report("making the tiny base and its tokenizer", 0.0)
        make_tiny_base(
            folder,
            base.tiny,
            _tokenizer_texts(request, store),
            request.document.spec.seed,
            base.chat_template or CHATML_TEMPLATE,
        )
    else:
        assert base.delta is not None, "validation left one way to name a base"
        assert base.root is not None, "validation left one way to name a base"
        report("adding the published delta to its root", 0.0)
        folders = Folders(store, scratch.parent)
        merge_delta(folders.local(base.delta), folders.local(base.root), folder)
    _store_once(store, folder, uri, {"base": start.key})
    return uri, None


def _tokenizer_texts(request: StageRequest, store: ObjectStore) -> Iterator[str]:
    frozen = {source.name: source for source in request.sources}
    for source in tokenizer_sources(request.document):
        if source.name in frozen:
            yield from corpus_texts(store, source, frozen[source.name])


def _ensure_tokenizer(
    request: StageRequest,
    base: str,
    base_local: Path,
    store: ObjectStore,
    layout: Layout,
    scratch: Path,
    report: Report,
) -> tuple[str, Path]:
    """Reference and local folder of the tokenizer with the chat template that the document wants."""
    tokenizer = load_tokenizer(base_local)
    wanted = request.document.spec.base.chat_template
    template = wanted or tokenizer.chat_template or default_template(tokenizer)
    if template == tokenizer.chat_template:
        return base, base_local
    key = digest({"base": base, "template": template})
    uri = layout.base(f"{key}-tokenizer")
    folders = Folders(store, scratch.parent)
    if not store.exists(f"{uri}/made.json"):
        report("storing the tokenizer with its chat template", 0.0)
        folder = scratch / "tokenizer"
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(str(folder))
        _store_once(store, folder, uri, {"base": base})
    return uri, folders.local(uri)


def _store_once(store: ObjectStore, folder: Path, uri: str, facts: dict[str, str]) -> None:
    """Uploads a folder; its mark comes last. Another job that made the same first is as good."""
    files = store.upload_folder(folder, uri)
    mark = {**facts, "files": [file.model_dump(mode="json") for file in files]}
    try:
        store.put(f"{uri}/made.json", json.dumps(mark).encode(), if_none_match=True)
    except ConflictError:
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
