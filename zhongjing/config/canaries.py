"""Invented patients that are planted in a source, to measure what a model remembers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from zhongjing.config.fields import DocumentModel, operational, training


class Canaries(DocumentModel):
    """Canaries (Carlini et al. 2019, The Secret Sharer): what is planted, and what is a warning."""

    count: int = training(8, "Invented patients for each number of copies.", ge=4, le=64)
    repeats: list[Annotated[int, Field(ge=1, le=1000)]] = training(
        lambda: [1, 4, 16],
        "Copies of each in the source.",
        unit="copies",
        min_length=1,
        max_length=8,
    )
    seed: int = training(
        0, "Decides who is invented; sources with the same seed get the same patients.", ge=0, le=2147483647
    )
    warn_above: float = operational(
        10.0,
        "Mean exposure above which a stage warns; at 10 bits a planted number is a likelier guess than "
        "1,023 of 1,024 others.",
        unit="bits",
        ge=0,
        le=64,
    )
