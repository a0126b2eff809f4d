"""The key of a token cache: a hash of everything that decides its bytes, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zhongjing.codes import model as codes
from zhongjing.config.keys import training_fields
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Kind, Source
from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, SftSettings, Stage
from zhongjing.data.order import groups_by_category
from zhongjing.data.tokenizer_folder import TOKENIZER_FILES
from zhongjing.errors import DataError

CACHE_VERSION = 3
"""Goes up where the same files give other records or other tokens: a cache made before is not used then."""

# What the test split of a stage may hold of sources that no stage trains on (split: test).
_TEST_KINDS: dict[Stage, tuple[Kind, ...]] = {
    Stage.PRETRAIN: (Kind.TEXT,),
    Stage.SFT: (Kind.DIALOGUE,),
    Stage.RM: (Kind.RANKING,),
    Stage.PPO: (Kind.PROMPTS, Kind.DIALOGUE, Kind.RANKING),
}


def tested_sources(document: TrainingPipeline, stage: Stage) -> list[Source]:
    """Sources of ``split: test`` that belong into the test split of ``stage``."""
    return [s for s in document.spec.sources if s.split == "test" and s.kind in _TEST_KINDS[stage]]


def longest_sample(settings: AnySettings) -> int:
    """Tokens of the longest segment of a stage; of a prompt in PPO."""
    return settings.longest_prompt if isinstance(settings, PpoSettings) else settings.max_length


def section_characters_of(settings: AnySettings) -> int:
    """About how long the sections of books are."""
    return settings.section_characters if isinstance(settings, PretrainSettings) else 2000


def cache_key_fields(
    document: TrainingPipeline, stage: Stage, source_digests: Mapping[str, str], tokenizer: str
) -> dict[str, Any]:
    """Everything that the key of a stage's token cache is a hash (:func:`digest`) of.

    ``tokenizer`` is :func:`tokenizer_files_digest`, which covers the chat template.
    """
    settings = document.spec.stages[stage]
    by_category = groups_by_category(settings)

    def told(source: Source) -> dict[str, Any]:
        fields = training_fields(source)
        # The content counts, not the place; the limit decides whether there is a cache, not what is in it.
        for name in ("uri", "maxQuarantineFraction", *(() if by_category else ("category",))):
            del fields[name]
        return {**fields, "digest": source_digests.get(source.name, "missing")}

    sources = [document.spec.source(ref.source) for ref in settings.data]
    tests = [s for s in document.spec.sources if s.has_test_data and s.name in source_digests]
    return {
        "version": CACHE_VERSION,
        "stage": stage.value,
        "tokenizer": tokenizer,
        "maxLength": longest_sample(settings),
        "validationFraction": settings.validation_fraction,
        "sectionCharacters": section_characters_of(settings),
        "systemPrompt": document.spec.stages.system_prompt(stage) or "",
        "groups": "category" if by_category and isinstance(settings, SftSettings) else "source",
        "data": [told(source) for source in sources],
        "tests": [told(source) for source in tests],
    }


def tokenizer_files_digest(folder: Path) -> str:
    """sha256 (hex) over the files of a tokenizer folder that decide how text becomes tokens.

    Raises:
        DataError: the folder has none of them.
    """
    state = hashlib.sha256()
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not names:
        raise DataError("the folder has no tokenizer", code=codes.UNUSABLE_TOKENIZER, where=str(folder))
    for name in names:
        content = (folder / name).read_bytes()
        state.update(f"{name}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()
