"""Reads the local sources of a document as its stages will, with the tokenizer that they will have.

The tokenizer is that of ``base.uri`` where it is a folder, or one trained on the sources where the base is
tiny, as the job does. Another base's is given by its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.config.keys import tokenizer_sources
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.pipeline.freeze import is_local_folder, local_files
from zhongjing.storage.manifest import FrozenObject, FrozenSource

if TYPE_CHECKING:
    from zhongjing.data.encoding import RecordEncoder
    from zhongjing.data.rehearsal import Rehearsal, StageRehearsal


def listings_of(document: TrainingPipeline) -> dict[str, FrozenSource]:
    """Listings of the sources that are files of this machine; nothing is hashed."""
    found: dict[str, FrozenSource] = {}
    for source in document.spec.sources:
        if "://" in source.uri.removeprefix("file://"):
            continue
        files = local_files(source.uri)
        if files:
            objects = [FrozenObject(uri=str(file), size=file.stat().st_size, digest="") for file in files]
            found[source.name] = FrozenSource(name=source.name, objects=objects, digest="")
    return found


def encoder_of(
    document: TrainingPipeline,
    listings: Mapping[str, FrozenSource],
    scratch: Path,
    tokenizer: Path | None = None,
) -> RecordEncoder | None:
    """The encoder that the stages will have; None where the tokenizer is not on this machine.

    Raises:
        DataError: the tokenizer cannot be loaded, or there is too little text to make one.
        ConfigError: the chat template cannot be trained with.
    """
    base = document.spec.base
    folder = tokenizer
    if folder is None and base.tiny is not None:
        folder = scratch / "tokenizer"
        _train(document, listings, folder)
    elif folder is None and base.uri is not None and is_local_folder(base.uri):
        folder = Path(base.uri).expanduser()
    if folder is None:
        return None
    from zhongjing.data.encoding import RecordEncoder
    from zhongjing.data.templates import ensure_chat_template
    from zhongjing.data.tokenizer_folder import load_tokenizer

    loaded = load_tokenizer(folder)
    ensure_chat_template(loaded, base.chat_template)
    return RecordEncoder(loaded)


def rehearse(
    document: TrainingPipeline,
    stages: Iterable[Stage],
    scratch: Path,
    *,
    tokenizer: Path | None = None,
    max_records: int | None = None,
) -> list[StageRehearsal]:
    """What the stages would make of their local sources; empty where there is no tokenizer, or no source.

    Args:
        document: resolved.
        stages: those to look at.
        scratch: an empty local folder.
        tokenizer: folder of a tokenizer, in place of the base's.
        max_records: of a source that are read; none: all.

    Raises:
        DataError, ConfigError: as :func:`encoder_of`.
    """
    listings = listings_of(document)
    encoder = encoder_of(document, listings, scratch, tokenizer) if listings else None
    if encoder is None:
        return []
    found = [rehearsal(document, stage, encoder, listings, max_records).run() for stage in stages]
    return [each for each in found if each.sources]


def rehearsal(
    document: TrainingPipeline,
    stage: Stage,
    encoder: RecordEncoder,
    listings: Mapping[str, FrozenSource],
    max_records: int | None = None,
) -> Rehearsal:
    """One stage's; the data layer is imported here."""
    from zhongjing.data.rehearsal import Rehearsal

    return Rehearsal(document, stage, encoder, listings, max_records=max_records)


def _train(document: TrainingPipeline, listings: Mapping[str, FrozenSource], folder: Path) -> None:
    from zhongjing.data.corpus import corpus_texts
    from zhongjing.data.templates import CHATML_TEMPLATE
    from zhongjing.model.tokenizer import train_bpe

    tiny = document.spec.base.tiny
    assert tiny is not None
    texts = (
        text
        for source in tokenizer_sources(document)
        if source.name in listings
        for text in corpus_texts(None, source, listings[source.name])
    )
    template = document.spec.base.chat_template or CHATML_TEMPLATE
    train_bpe(texts, tiny.vocabulary_size, template, folder, max_length=tiny.max_positions)
