"""How many tokens a stage's sources have, by the bytes that they take: before anything is tokenised.

An estimate: what a token is worth depends on tokenizer and format. ``--tokens`` of the plan says better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.storage.listing import local_files

BYTES_A_TOKEN = 4
"""Of Chinese text in JSON: a character has three bytes, vocabularies of today have one or two in a token."""
COMPRESSION = 4
"""What gzip and zstd make of such text, by about."""

_COMPRESSED = (".gz", ".zst", ".zstd")

Listed = Callable[[str], Iterable[tuple[str, int]]]
"""Name and bytes of each object that an s3:// URI stands for; nothing where the store cannot be asked."""


def tokens_of_sources(document: TrainingPipeline, listed: Listed) -> dict[Stage, int]:
    """Tokens of one pass over each stage's data, held-out part included.

    A stage with a source whose size is not known here (on a hub, not there yet) is left out; so is
    PPO, whose sources are prompts and whose tokens are made.

    Args:
        document: resolved.
        listed: lists objects of the store.
    """
    sizes: dict[str, int | None] = {}
    sources = {source.name: source for source in document.spec.sources}
    found: dict[Stage, int] = {}
    for stage in document.spec.stages.trained():
        settings = document.spec.stages.get(stage)
        if settings is None or stage is Stage.PPO:
            continue
        known: list[int] = []
        names = dict.fromkeys(ref.source for ref in settings.data)
        for name in names:
            if name not in sizes:
                sizes[name] = _bytes_of(sources[name], listed)
            size = sizes[name]
            if size is not None:
                known.append(round(size * (1 - sources[name].test_fraction)))
        if len(known) == len(names):
            found[stage] = sum(known) // BYTES_A_TOKEN
    return found


def _bytes_of(source: Source, listed: Listed) -> int | None:
    uri = source.place
    if uri.startswith("s3://"):
        objects = list(listed(uri))
    elif "://" in uri and not uri.startswith("file://"):
        return None
    else:
        objects = [(file.name, file.stat().st_size) for file in local_files(uri)]
    if not objects:
        return None
    return sum(size * (COMPRESSION if name.endswith(_COMPRESSED) else 1) for name, size in objects)
