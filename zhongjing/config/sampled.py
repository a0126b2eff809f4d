"""How answers come to be that people, or a judge, rank (paper section 3). Stage ``sample`` makes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from zhongjing.codes.document import INVALID_VALUE
from zhongjing.config.fields import DocumentModel, RuleError, training

_OUT_OF_DISTRIBUTION = 10_000  # paper section 3


class Sampled(DocumentModel):
    """Prompts, and what answers each of them ``k`` times; rankings are waited for at the source's ``uri``."""

    from_: str = training(
        "sft",
        "What answers: sft, or the s3:// URI of an adapter or model.",
        alias="from",
        min_length=1,
        max_length=1024,
    )
    k: int = training(4, "Answers to a prompt.", source="paper section 3", ge=2, le=8)
    prompts: list[Annotated[str, Field(min_length=1, max_length=63)]] = training(
        list,
        "Sources that in-distribution prompts are drawn from; none: those that sft trains on. A dialogue is "
        "cut into its turns: each question with what was said before it is a prompt.",
        max_length=64,
    )
    in_distribution: int = training(
        10_000, "Prompts of them.", unit="prompts", source="paper section 3", ge=0, le=1_000_000
    )
    ood_source: str | None = training(
        None, "Source that out-of-distribution prompts are drawn from; no stage trains on it.", max_length=63
    )
    out_of_distribution: int | None = training(
        None,
        "Prompts of oodSource; none: 10000 where there is one.",
        unit="prompts",
        source="paper section 3",
        ge=0,
        le=1_000_000,
    )
    temperatures: list[Annotated[float, Field(gt=0, le=2)]] = training(
        lambda: [0.7, 0.85, 1.0, 1.15],
        "Of sampling: the first answer's, the second's, and from the first again.",
        min_length=1,
        max_length=8,
    )
    max_new_tokens: int = training(512, "Longest answer.", unit="tokens", ge=1, le=1_048_576)
    max_length: int = training(
        4096,
        "Longest prompt with its answer: the earliest turns of a longer one are not shown to the model.",
        unit="tokens",
        ge=16,
        le=1_048_576,
    )
    max_similarity: float = training(
        0.9,
        "Two answers to a prompt that share more than this part of their character pairs are one: the second "
        "is drawn again.",
        unit="fraction",
        gt=0,
        le=1,
    )
    seed: int | None = training(None, "Seed of prompts and answers; none: spec.seed.", ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _asks_something(self) -> Sampled:
        if self.ood_source is None and self.out_of_distribution:
            raise RuleError(
                "prompts out of the distribution need a source: name it as oodSource",
                code=INVALID_VALUE,
                path=("outOfDistribution",),
            )
        if not self.in_distribution + self.from_ood:
            raise RuleError("no prompts are asked for", code=INVALID_VALUE, path=("inDistribution",))
        if self.ood_source is not None and self.ood_source in self.prompts:
            raise RuleError(
                "one source cannot be in and out of the distribution", code=INVALID_VALUE, path=("oodSource",)
            )
        return self

    @property
    def from_ood(self) -> int:
        """Prompts of ``oodSource``."""
        if self.ood_source is None:
            return 0
        return _OUT_OF_DISTRIBUTION if self.out_of_distribution is None else self.out_of_distribution
