"""Reads the local sources of a document as its stages will, with the tokenizer that they will have.

The tokenizer is that of ``base.uri`` where it is a folder, or one trained on the sources where the base is
tiny, as the job does. Another base's is given by its folder.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhongjing.cli.display.counts import data_table
from zhongjing.config.commands import Commands
from zhongjing.config.keys import tokenizer_sources
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, DataError
from zhongjing.pipeline.freeze import is_local_folder
from zhongjing.storage.listing import is_local, local_files
from zhongjing.storage.manifest import FrozenObject, FrozenSource, SourceCounts

if TYPE_CHECKING:
    from zhongjing.data.encoding import RecordEncoder
    from zhongjing.data.rehearsal import Rehearsal, StageRehearsal

DRY_RUN_RECORDS = 1000
"""Records of a source that a dry run looks at: a second or two."""

WOULD_STOP = "a stage would stop"
"""Stands in the lines of a source that has more bad records than its stage allows."""

_REASONS = 3  # of a source, the commonest
_NOT_MEASURED = (
    "lengths are not known here: `zhongjing data inspect -f FILE --tokenizer FOLDER` compares them with "
    "the stages' limits"
)


def listings_of(document: TrainingPipeline) -> dict[str, FrozenSource]:
    """Listings of the sources that are files of this machine; nothing is hashed."""
    found: dict[str, FrozenSource] = {}
    for source in document.spec.sources:
        if not is_local(source.place):
            continue
        files = local_files(source.place)
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


def dry_run_data(
    document: TrainingPipeline, stages: Sequence[Stage], *, origin: str, tokenize: bool
) -> tuple[list[str], list[dict[str, Any]]]:
    """What the first records of the local sources say of stages that would run: lines, and an object a stage.

    A look that fails says so and stops nothing: what makes a job fail is found by the other checks.

    Args:
        document: resolved.
        stages: those that would run.
        origin: the document's file, if it has one.
        tokenize: count tokens too; False where torch must not be imported (a client of a cluster).
    """
    from zhongjing.cli.display.rehearsal import rehearsal_lines
    from zhongjing.cli.example import with_example_files

    with tempfile.TemporaryDirectory(prefix="zhongjing-dry-run-") as folder:
        scratch = Path(folder)
        document = with_example_files(document, scratch / "example")
        try:
            found = rehearse(document, stages, scratch, max_records=DRY_RUN_RECORDS) if tokenize else []
            counts = {each.stage: [source.counts for source in each.sources] for each in found}
            reasons: list[str] = []
            if not found:
                counts, reasons = _inspected(document, stages)
        except (DataError, ConfigError) as error:
            return [f"note: the sources could not be looked at: {error.message}"], []
    if not counts:
        return [], []
    commands = Commands(None, ("-f", origin) if Path(origin).is_file() else ())
    lines = rehearsal_lines(found) or [*data_table(counts), *reasons, commands.complete(_NOT_MEASURED)]
    if any(source.read == DRY_RUN_RECORDS for sources in counts.values() for source in sources):
        lines.append(f"counts are of the first {DRY_RUN_RECORDS:,} records of a source")
    if found:
        return lines, [each.model_dump(mode="json") for each in found]
    told = {stage: [{"counts": each.model_dump(mode="json")} for each in counts[stage]] for stage in counts}
    return lines, [{"stage": stage.value, "sources": sources} for stage, sources in told.items()]


def data_warnings(document: TrainingPipeline, stages: Sequence[Stage]) -> list[str]:
    """Why stages would stop, by the first records of their local sources; needs no tokenizer."""
    try:
        return _inspected(document, stages)[1]
    except (DataError, ConfigError):
        return []  # told by the other checks, or by the stage


def _inspected(
    document: TrainingPipeline, stages: Iterable[Stage]
) -> tuple[dict[Stage, list[SourceCounts]], list[str]]:
    """Counts of records that are only read, and why a stage would stop: their lengths are not known."""
    from zhongjing.data.inspect import inspect_sources

    listings = listings_of(document)
    found: dict[Stage, list[SourceCounts]] = {}
    reasons: list[str] = []
    for stage in stages:
        settings = document.spec.stages.get(stage)
        names = (
            [ref.source for ref in settings.data if ref.source in listings] if settings is not None else []
        )
        sources = [document.spec.source(name) for name in names]
        if not sources:
            continue
        reports = inspect_sources(sources, max_records=DRY_RUN_RECORDS).sources
        reasons += [
            f"warning: {stage}: {each.name}: {WOULD_STOP}: {reason} ({number} records)"
            for each in reports
            if each.over_limit
            for reason, number in itertools.islice(each.reasons.items(), _REASONS)
        ]
        found[stage] = [
            SourceCounts(
                name=each.name,
                digest="",
                read=each.read,
                kept=each.kept,
                unanswered=each.truncated,
                duplicates=each.duplicates,
                tied=each.tied,
                quarantined=each.rejected,
                unused=each.unused,
            )
            for each in reports
        ]
    return found, reasons
