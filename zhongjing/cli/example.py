"""Makes the files that ``example://`` sources stand for. The generator is imported when there are any.

``example://dialogues`` is the corpus of that name, of seed 0 and scale 1; ``example://dialogues?seed=3&scale=0.5``
another one. The same seed and scale give the same bytes, so writing them again changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import parse_qsl, urlsplit

from zhongjing.codes.command import UNKNOWN_RECIPE
from zhongjing.codes.data import INVALID_URI
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import UserDocument
from zhongjing.config.sources import written_at, written_place
from zhongjing.errors import ConfigError

SCHEME = "example"
NAMES = (
    "textbook",
    "dialogues",
    "rankings",
    "prompts",
    "dialogues-heldout",
    "rankings-heldout",
    "prompts-heldout",
)


def with_examples(user: UserDocument, folder: Path) -> UserDocument:
    """A document that is right, its ``example://`` sources written below ``folder`` and named by their paths.

    Raises:
        ConfigError: an example of that name does not exist, or its seed or scale is no number.
    """
    spec = user["spec"]
    sources = spec.get("sources") or []
    paths = _written({each["name"]: written_place(each) for each in sources}, folder)
    changed = [written_at(each, paths.get(each["name"])) for each in sources]
    return user.holding({**user, "spec": {**spec, "sources": changed}}) if paths else user


def with_example_files(document: TrainingPipeline, folder: Path) -> TrainingPipeline:
    """The same of a resolved document."""
    return with_uris(
        document, _written({source.name: source.place for source in document.spec.sources}, folder)
    )


def with_uris(document: TrainingPipeline, uris: Mapping[str, str]) -> TrainingPipeline:
    """The document with other URIs for the sources of these names."""
    sources = [source.placed(uris.get(source.name, source.place)) for source in document.spec.sources]
    return document.model_copy(update={"spec": document.spec.model_copy(update={"sources": sources})})


def _written(uris: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Writes the examples among sources, given by name and URI; returns their paths by name."""
    written: dict[tuple[int, float], dict[str, Path]] = {}
    paths: dict[str, str] = {}
    for source, uri in uris.items():
        if not is_example(uri):
            continue
        name, seed, scale = parse(uri, f"spec.sources.{source}.uri")
        if (seed, scale) not in written:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # in a workdir, which is its owner's alone
            written[seed, scale] = write_examples(folder / f"seed-{seed}-scale-{scale:g}", seed, scale)
        paths[source] = str(written[seed, scale][name].absolute())
    return paths


def is_example(uri: str) -> bool:
    """Whether a source is generated."""
    return uri.startswith(f"{SCHEME}://")


def parse(uri: str, where: str) -> tuple[str, int, float]:
    """Name, seed and scale of ``example://name?seed=0&scale=1``.

    Raises:
        ConfigError: there is no such example, another parameter, or a value that is no number.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    try:
        seed, scale = int(options.pop("seed", "0")), float(options.pop("scale", "1"))
    except ValueError:
        raise ConfigError(
            "seed must be a whole number and scale a number",
            code=INVALID_URI,
            where=where,
            remedy="example://name?seed=1&scale=2",
        ) from None
    if options or parts.path.strip("/") or seed < 0 or not 0 < scale <= 1000:
        raise ConfigError(
            f"{uri} is not understood",
            code=INVALID_URI,
            where=where,
            remedy="write example://name, example://name?seed=1&scale=2",
        )
    if parts.netloc not in NAMES:
        raise ConfigError(
            f"there is no example {parts.netloc!r}",
            code=UNKNOWN_RECIPE,
            where=where,
            remedy=f"the examples are: {', '.join(NAMES)}",
        )
    return parts.netloc, seed, scale


def write_graph_files(folder: Path, seed: int) -> dict[str, Path]:
    """Writes what ``data check`` is tried on; returns paths by name.

    ``kg`` is the knowledge graph of the corpora's facts, ``contradictions`` are dialogues that contradict it
    at known places.
    """
    from zhongjing.data.example.contradictions import write_planted
    from zhongjing.data.example.knowledge import write_graph

    return {"kg": write_graph(folder, seed), "contradictions": write_planted(folder, seed)}


def write_examples(folder: Path, seed: int, scale: float) -> dict[str, Path]:
    """Writes the corpora into ``folder``; returns paths by name. Files that are the same stay as they are."""
    from zhongjing.data.example.generate import write

    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(mkdtemp(prefix=".writing-", dir=folder))
    try:
        paths = write(fresh, seed, scale)
        for file in fresh.iterdir():
            target = folder / file.name
            if not target.is_file() or target.read_bytes() != file.read_bytes():
                file.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return {name: folder / path.name for name, path in paths.items()}
