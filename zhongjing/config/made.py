"""How a source is made of raw records (paper section 3): steps and what they need; stage ``construct``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints, model_validator

from zhongjing.codes.document import INVALID_VALUE, MISSING_FIELD
from zhongjing.config.fields import DocumentModel, RuleError, operational, training


class MakingStep(StrEnum):
    """A step of data construction. They run in the order that the document gives."""

    DEDUP = "dedup"
    DEIDENTIFY = "deidentify"
    NORMALIZE = "normalize"
    EXPAND = "expand"
    CHECK = "check"


_S3 = r"^s3://[^/]+/.+$"
_ASKING = (MakingStep.NORMALIZE, MakingStep.EXPAND)


class Prices(DocumentModel):
    """What the operator of a language model charges."""

    prompt: float = operational(..., "For a million tokens of questions.", ge=0, le=1e6)
    completion: float = operational(..., "For a million tokens of answers.", ge=0, le=1e6)
    currency: str = operational("USD", "In which currency.", min_length=1, max_length=8)


class Author(DocumentModel):
    """The language model that writes or judges records: any server with OpenAI's chat completions."""

    model: str = training(..., "Name of the model at its server.", min_length=1, max_length=256)
    base_url: str = operational(
        ...,
        "Address of the server, as OpenAI's clients call it.",
        pattern=r"^https?://[^@?#\s]+$",
        max_length=512,
    )
    key_variable: str | None = operational(
        "OPENAI_API_KEY",
        "Environment variable of the Ray nodes that holds the API key; null: no key is sent. "
        "Documents hold no keys.",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=128,
    )
    temperature: float | None = training(0.3, "Of sampling; null: the server's default.", ge=0, le=2)
    tries: int = training(3, "Answers asked for one record before it is quarantined.", ge=1, le=20)
    max_tokens: int = training(2048, "Longest answer.", unit="tokens", ge=1, le=1048576)
    max_unusable_fraction: float = operational(
        0.2, "Above this fraction of records without a usable answer the stage stops.", ge=0, le=1
    )
    concurrency: int = operational(8, "Questions under way at a time, over all tasks.", ge=1, le=4096)
    requests_per_minute: float | None = operational(None, "Over all tasks.", gt=0, le=1e9)
    tokens_per_minute: float | None = operational(None, "Over all tasks.", gt=0, le=1e12)
    prices: Prices | None = operational(None, "Prices of the server; a budget needs them.")
    budget: float | None = operational(
        None,
        "Most money that the source may cost, resumed runs included; in the currency of the prices.",
        gt=0,
        le=1e9,
    )

    @model_validator(mode="after")
    def _budgets_have_prices(self) -> Author:
        if self.budget is not None and self.prices is None:
            raise RuleError("a budget needs prices", code=MISSING_FIELD, path=("prices",))
        return self


class Made(DocumentModel):
    """What a source is made of, and how.

    The source's format, encoding and columns are those of the raw records.
    """

    from_: str = training(
        ..., "The raw records, as a source's uri names them.", alias="from", min_length=1, max_length=1024
    )
    steps: list[MakingStep] = training(..., "The steps, in their order.", min_length=1, max_length=8)
    policy: str | None = training(
        None,
        "What each class of identifier becomes: the s3:// URI of a YAML file; none: the shipped one.",
        pattern=_S3,
        max_length=1024,
    )
    drugs: str | None = training(
        None,
        "Names of drugs, one a line, that normalize and expand may neither add nor lose: an s3:// file.",
        pattern=_S3,
        max_length=1024,
    )
    kg: str | None = training(
        None, "The knowledge graph that check goes by: an s3:// file or folder.", pattern=_S3, max_length=1024
    )
    against: list[Annotated[str, StringConstraints(pattern=_S3, max_length=1024)]] = training(
        list,
        "Test sets that dedup keeps out: s3:// files or folders.",
        max_length=16,
        later=True,
    )
    dedup_threshold: float = training(
        0.8, "Jaccard similarity from which on dedup takes two records for alike.", ge=0.3, le=1, later=True
    )
    author: Author | None = training(None, "The language model of normalize and expand; check asks it too.")
    accept_identifiable: bool = training(
        False, "Whether texts that were not de-identified may be sent to the author."
    )

    @model_validator(mode="after")
    def _complete(self) -> Made:
        if len(set(self.steps)) != len(self.steps):
            raise RuleError("a step is named twice", code=INVALID_VALUE, path=("steps",))
        if MakingStep.DEDUP in self.steps[1:]:
            raise RuleError(
                "dedup comes first: nothing is paid for twice", code=INVALID_VALUE, path=("steps",)
            )
        if self.against and MakingStep.DEDUP not in self.steps:
            raise RuleError("against belongs to dedup", code=INVALID_VALUE, path=("against",))
        asking = next((step for step in self.steps if step in _ASKING), None)
        if asking is not None and self.author is None:
            raise RuleError(f"{asking} needs an author", code=MISSING_FIELD, path=("author",))
        if MakingStep.CHECK in self.steps and self.kg is None:
            raise RuleError("check needs a knowledge graph", code=MISSING_FIELD, path=("kg",))
        return self
