"""Makes the files that ``example://`` sources stand for. The generator is imported when there are any.

``example://dialogues`` is the corpus of that name, of seed 0 and scale 1; ``example://dialogues?seed=3&scale=0.5``
another one. The same seed and scale give the same bytes, so writing them again changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from zhongjing.codes.command import UNKNOWN_RECIPE
from zhongjing.codes.data import INVALID_URI
from zhongjing.config.resolve import UserDocument
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
    """The document with its ``example://`` sources written below ``folder`` and named by their paths.

    Raises:
        ConfigError: an example of that name does not exist, or its seed or scale is no number.
    """
    spec = user.get("spec")
    sources = spec.get("sources") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(sources, list):
        return user  # validation says what is wrong
    written: dict[tuple[int, float], dict[str, Path]] = {}
    changed: list[Any] = []
    for source in sources:
        uri = source.get("uri") if isinstance(source, Mapping) else None
        if not isinstance(uri, str) or not is_example(uri):
            changed.append(source)
            continue
        where = f"spec.sources.{source.get('name')}.uri"
        name, seed, scale = parse(uri, where)
        if (seed, scale) not in written:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # in a workdir, which is its owner's alone
            written[seed, scale] = write_examples(folder / f"seed-{seed}-scale-{scale:g}", seed, scale)
        changed.append({**source, "uri": str(written[seed, scale][name].absolute())})
    if not written:
        return user
    return user.holding({**user, "spec": {**spec, "sources": changed}})


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
