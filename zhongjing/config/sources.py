"""Where records come from: sources, the mixture of a stage, and the base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from zhongjing.codes.document import INVALID_REFERENCE, INVALID_VALUE, MISSING_FIELD
from zhongjing.config.canaries import Canaries
from zhongjing.config.fields import MOST, NAME_PATTERN, DocumentModel, RuleError, operational, training
from zhongjing.config.made import Made

_S3_FOLDER = re.compile(r"s3://[^/*?\[]+/[^*?\[]*[^/*?\[]/?")


class Kind(StrEnum):
    """What a source's records are."""

    TEXT = "text"
    DIALOGUE = "dialogue"
    RANKING = "ranking"
    PROMPTS = "prompts"


class Category(StrEnum):
    """The four kinds of SFT data of the paper (section 3, Supervised Fine-Tuning)."""

    SINGLE_TURN = "singleTurn"
    MULTI_TURN = "multiTurn"
    NLP_TASK = "nlpTask"
    GENERAL = "general"


class Columns(DocumentModel):
    """Key names of a source whose records use none of the published ones; ``chosen.value`` is a path."""

    text: str | None = training(None, "Key of the text (kind text).", max_length=200)
    prompt: str | None = training(None, "Key of the question or instruction.", max_length=200)
    input: str | None = training(None, "Key of a second part of the question.", max_length=200)
    response: str | None = training(None, "Key of the answer.", max_length=200)
    history: str | None = training(None, "Key of the earlier turns.", max_length=200)
    system: str | None = training(None, "Key of the system turn.", max_length=200)
    messages: str | None = training(None, "Key of a list of turns.", max_length=200)
    answers: str | None = training(
        None,
        "Key of the ranked answers, best first where neither ranks nor scores are given.",
        max_length=200,
    )
    ranks: str | None = training(
        None, "Key of the ranks of the answers, 1 the best.", max_length=200, later=True
    )
    scores: str | None = training(
        None, "Key of the scores of the answers, the highest the best.", max_length=200, later=True
    )
    chosen: str | None = training(None, "Key of the better answer.", max_length=200)
    rejected: str | None = training(None, "Key of the worse answer.", max_length=200)
    department: str | None = training(None, "Key of the medical department.", max_length=200)
    ignore: list[Annotated[str, Field(min_length=1, max_length=200)]] = training(
        list, "Keys that are left out, as if the records did not have them.", max_length=64, later=True
    )


RoleMarks = Literal["split", "keep"]


class Source(DocumentModel):
    """One corpus, as published."""

    name: str = training(
        ...,
        "Name by which stages refer to the source.",
        pattern=NAME_PATTERN,
        max_length=63,
    )
    uri: str | None = training(
        None,
        "A local path or glob (uploaded by submit), s3://bucket/key or glob, hf://datasets/owner/name"
        "[@revision][?config=..&split=..], or example://textbook|dialogues|rankings|prompts (generated). "
        "With made: the s3:// folder that the result goes to; none: one of its key.",
        min_length=1,
        max_length=1024,
    )
    made: Made | None = training(
        None,
        "How the source is made of raw records, by the stage construct; format, encoding, columns and "
        "roleMarks are then those of the raw records.",
        source="paper section 3",
        later=True,
    )
    kind: Kind = training(..., "text, dialogue, ranking or prompts.")
    format: Literal["auto", "json", "jsonl", "csv", "text", "parquet"] = training(
        "auto", "How the objects are written; auto looks at their first bytes, not at their names."
    )
    encoding: str = training(
        "auto", "Character encoding; auto tells UTF-8, GB18030 and Big5, and refuses to guess.", max_length=32
    )
    columns: Columns = training(Columns, "Key names, when they are not the published ones.")
    role_marks: RoleMarks | None = training(
        None,
        "A question that holds a dialogue with role marks (Human: ... Assistant: ...): split makes turns of "
        "it, keep leaves it a text; none: such a record is refused.",
        later=True,
    )
    category: Literal["auto", "singleTurn", "multiTurn", "nlpTask", "general"] = training(
        "auto", "Kind of SFT data; auto takes the number of turns.", source="paper section 3"
    )
    split: Literal["train", "test"] = training(
        "train", "test: no stage trains on this source, and what equals it elsewhere is removed there."
    )
    test_fraction: float = training(
        0.0, "Part of the source kept as test data, decided by a hash.", unit="fraction", ge=0, le=1
    )
    leak_overlap: float | None = training(
        None,
        "Test data: a record of a stage that has this fraction of the runs of 13 characters of one of their "
        "passages is dropped as a leak; none: only one that opens alike.",
        unit="fraction",
        ge=0.3,
        le=1,
        later=True,
    )
    wait: bool = operational(
        False, "A missing source is waited for (answers that people have yet to rank), not an error."
    )
    max_quarantine_fraction: float = training(
        0.01, "Above this fraction of unreadable records the stage stops.", unit="fraction", ge=0, le=1
    )
    license: str | None = operational(
        None, "Licence of the data as its publisher names it; stands in the model card.", max_length=256
    )
    canaries: Canaries | None = training(
        None,
        "Invented patients that are planted in the source (kinds text and dialogue): each stage from then "
        "on measures how well its model remembers them.",
        source="Carlini et al. 2019",
        later=True,
    )
    keep_text: bool = operational(
        False, "Whether quarantine may hold the text of a record (patients' data!) beside its position."
    )

    @model_validator(mode="after")
    def _has_a_place(self) -> Source:
        if self.made is None and self.uri is None:
            raise RuleError("a source has a uri, or says how it is made", code=MISSING_FIELD, path=("uri",))
        if self.made is not None and self.uri is not None and not _S3_FOLDER.fullmatch(self.uri):
            raise RuleError(
                "what is made goes to an s3:// folder: write s3://<bucket>/<folder>, or leave uri out",
                code=INVALID_VALUE,
                path=("uri",),
            )
        if self.canaries is not None and (
            self.split == "test" or self.kind not in (Kind.TEXT, Kind.DIALOGUE)
        ):
            raise RuleError(
                "canaries are planted in texts and dialogues that are trained on",
                code=INVALID_VALUE,
                path=("canaries",),
            )
        return self

    @property
    def has_test_data(self) -> bool:
        """Whether some of its records are kept out of every stage."""
        return self.split == "test" or self.test_fraction > 0

    @property
    def place(self) -> str:
        """Where records are read: ``made.from``, else ``uri``."""
        place = self.uri if self.made is None else self.made.from_
        assert place is not None, "validation has shown that there is one"
        return place

    @property
    def place_field(self) -> str:
        """The field of ``place``, from the source."""
        return "uri" if self.made is None else "made.from"

    def placed(self, place: str) -> Source:
        """The source, read elsewhere."""
        if self.made is None:
            return self.model_copy(update={"uri": place})
        return self.model_copy(update={"made": self.made.model_copy(update={"from_": place})})

    def raw(self) -> Source:
        """What ``made`` is read from, as a source of its own."""
        return self.model_copy(update={"uri": self.place, "made": None})

    def read_back(self, folder: str) -> Source:
        """The source as it is read once it is made: in the layouts that construction writes."""
        plain = {
            "uri": f"{folder}/",
            "made": None,
            "format": "auto",
            "encoding": "auto",
            "columns": Columns(),
        }
        return self.model_copy(update=plain)


def written_place(written: Mapping[str, Any]) -> Any:
    """:attr:`Source.place` of a source as a document has it."""
    made = written.get("made")
    return made.get("from") if isinstance(made, Mapping) else written.get("uri")


def written_at(written: Mapping[str, Any], place: Any) -> dict[str, Any]:
    """:meth:`Source.placed` of a source as a document has it; None: as it is."""
    if place is None:
        return dict(written)
    made = written.get("made")
    return (
        {**written, "made": {**made, "from": place}}
        if isinstance(made, Mapping)
        else {**written, "uri": place}
    )


class SourceRef(DocumentModel):
    """A stage's use of a source."""

    source: str = training(..., "Name of an entry of spec.sources.", max_length=63)
    weight: float | None = training(
        None,
        "Share of this source in an epoch, relative to the stage's other weights. Set on all or on none.",
        gt=0,
        le=1e6,
    )


class TinyBase(DocumentModel):
    """A randomly initialised model with a tokenizer trained on the corpora: for demos and tests."""

    family: Literal["llama", "qwen2", "qwen3"] = training("llama", "Model family.")
    hidden_size: int = training(192, "Width.", unit="channels", ge=16, le=2048)
    intermediate_size: int = training(512, "Width of the MLP.", unit="channels", ge=16, le=8192)
    layers: int = training(4, "Transformer blocks.", ge=1, le=64)
    heads: int = training(4, "Attention heads.", ge=1, le=64)
    kv_heads: int = training(2, "Key and value heads (grouped-query attention).", ge=1, le=64)
    vocabulary_size: int = training(4096, "Entries of the byte-level BPE.", unit="tokens", ge=300, le=65536)
    max_positions: int = training(1024, "Longest sequence.", unit="tokens", ge=64, le=32768)

    @model_validator(mode="after")
    def _heads_divide(self) -> TinyBase:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise RuleError(
                "hiddenSize must be a multiple of heads, and heads of kvHeads", code=INVALID_VALUE
            )
        return self


DeltaRule = Literal["fengshen", "fastchat"]


class RopeScaling(DocumentModel):
    """Scaling of the rotary positions, by transformers' names (``rope_parameters``, ``rope_scaling``).

    ``dynamic`` is none of them: transformers scales by it only beyond ``max_position_embeddings``, which
    training and everything that uses its result stay within.
    """

    rope_type: Literal["linear", "yarn", "llama3"] = training(..., "Kind of scaling.")
    factor: float = training(..., "How many times longer sequences get.", ge=1, le=1024)
    original_max_position_embeddings: int | None = training(
        None, "Positions that the model was trained with (yarn, llama3).", unit="tokens", ge=16, le=MOST
    )
    low_freq_factor: float | None = training(None, "Of llama3.", gt=0, le=1e6)
    high_freq_factor: float | None = training(None, "Of llama3.", gt=0, le=1e6)
    attention_factor: float | None = training(None, "Of yarn.", gt=0, le=1e6)
    beta_fast: float | None = training(None, "Of yarn.", gt=0, le=1e6)
    beta_slow: float | None = training(None, "Of yarn.", gt=0, le=1e6)

    @model_validator(mode="after")
    def _complete(self) -> RopeScaling:
        needed = {
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("original_max_position_embeddings",),
        }.get(self.rope_type, ())
        for name in needed:
            if getattr(self, name) is None:
                raise RuleError(
                    f"{self.rope_type} needs {to_camel(name)}", code=INVALID_VALUE, path=(to_camel(name),)
                )
        # As transformers' modeling_rope_utils asks, where it only warns.
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise RuleError(
                    f"{to_camel(low)} must be less than {to_camel(high)}",
                    code=INVALID_VALUE,
                    path=(to_camel(low),),
                )
        return self


class Base(DocumentModel):
    """The model that the pipeline starts from: exactly one of uri, delta + root, tiny."""

    uri: str | None = training(
        None, "s3:// URI, folder or hub id of a model in Hugging Face format.", max_length=1024
    )
    revision: str | None = training(None, "Revision of a hub id.", max_length=128)
    delta: str | None = training(
        None,
        "Weights published as a difference to root (Ziya-LLaMA-13B-v1 is).",
        source="paper section 4",
        max_length=1024,
    )
    root: str | None = training(None, "The model that delta is added to.", max_length=1024)
    delta_rule: DeltaRule | None = training(
        None,
        "How delta was published: fengshen (IDEA-CCNL: embeddings and output layer stand whole), fastchat "
        "(LMSYS: every tensor is a difference); none: known for Ziya's and Vicuna's hub ids.",
        later=True,
    )
    max_positions: int | None = training(
        None,
        "Longest sequence that the base takes, where its config.json says less than it is to be trained at; "
        "written into the config.json of every result.",
        unit="tokens",
        ge=16,
        le=1048576,
        later=True,
    )
    rope_scaling: RopeScaling | None = training(
        None, "Scaling of the rotary positions, in place of the base's own; none: its own.", later=True
    )
    tiny: TinyBase | None = training(None, "Make a small random model and its tokenizer.")
    license: str | None = operational(
        None,
        "Licence of the base as the Hugging Face hub names it (apache-2.0); stands in the model card.",
        max_length=64,
    )
    chat_template: str | None = training(
        None,
        "Jinja chat template, used in place of the tokenizer's own; default: the tokenizer's, else ChatML "
        "where it has the markers, else the plain Human/Assistant turns of Ziya.",
        max_length=20000,
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Base:
        ways = [self.uri is not None, self.delta is not None or self.root is not None, self.tiny is not None]
        if sum(ways) != 1:
            raise RuleError("give exactly one of uri, delta with root, or tiny", code=INVALID_VALUE)
        if (self.delta is None) != (self.root is None):
            raise RuleError(
                "delta and root belong together: published deltas are useless without their root",
                code=INVALID_VALUE,
            )
        if self.uri is not None and _known_rule(self.uri) is not None:
            raise RuleError(
                f"{self.uri} is published as a difference to LLaMA: use base.delta with base.root",
                code=INVALID_REFERENCE,
                path=("uri",),
            )
        if self.delta is None and self.delta_rule is not None:
            raise RuleError("deltaRule belongs to delta", code=INVALID_VALUE, path=("deltaRule",))
        if self.delta is not None and self.rule_of_delta is None:
            raise RuleError(
                f"it is not known how {self.delta} was published: set base.deltaRule to fengshen (IDEA-CCNL) "
                "or fastchat (LMSYS)",
                code=INVALID_VALUE,
                path=("deltaRule",),
            )
        if self.tiny is not None and (self.max_positions is not None or self.rope_scaling is not None):
            raise RuleError(
                "a tiny base has its positions in tiny.maxPositions",
                code=INVALID_VALUE,
                path=("maxPositions",),
            )
        return self

    @property
    def rule_of_delta(self) -> DeltaRule | None:
        """The rule by which ``delta`` was published; None where there is none."""
        return None if self.delta is None else self.delta_rule or _known_rule(self.delta)


# Published as differences; used alone they are noise (training.md).
KNOWN_DELTAS: dict[str, DeltaRule] = {
    "IDEA-CCNL/Ziya-LLaMA-13B-v1": "fengshen",
    "IDEA-CCNL/Ziya-LLaMA-13B-v1.1": "fengshen",
    "IDEA-CCNL/Ziya-LLaMA-13B-Pretrain-v1": "fengshen",
    "lmsys/vicuna-7b-delta-v1.1": "fastchat",
    "lmsys/vicuna-13b-delta-v1.1": "fastchat",
}


def _known_rule(reference: str) -> DeltaRule | None:
    name = reference.rstrip("/").lower()
    return next((rule for known, rule in KNOWN_DELTAS.items() if known.lower() == name), None)


class Mixture(DocumentModel):
    """Shares of the four kinds of SFT data in an epoch; a kind without a share keeps its natural size."""

    single_turn: float | None = training(None, "Share of single-turn medical dialogue.", gt=0, le=1e6)
    multi_turn: float | None = training(None, "Share of multi-turn medical dialogue.", gt=0, le=1e6)
    nlp_task: float | None = training(None, "Share of medical NLP task instructions.", gt=0, le=1e6)
    general: float | None = training(None, "Share of general dialogue.", gt=0, le=1e6)
    max_repeats: float = training(
        4.0, "No kind is repeated more often than this in one epoch.", unit="times", ge=1, le=1000
    )


class Storage(DocumentModel):
    """The S3-compatible store. Credentials come from the environment, never from a document."""

    uri: str = operational(
        "s3://zhongjing",
        "Bucket and optional prefix for artifacts.",
        pattern=r"^s3://[^/]{3,63}(/.*)?$",
        max_length=512,
    )
    endpoint: str | None = operational(None, "Endpoint URL; none: AWS.", max_length=512)
    region: str = operational("us-east-1", "Region.", max_length=64)
    addressing_style: Literal["path", "virtual"] = operational(
        "path", "How the bucket stands in the address; most S3-compatible stores want path."
    )
    ca_bundle: str | None = operational(None, "File of CA certificates for the endpoint.", max_length=1024)
    checksums: Literal["whenRequired", "whenSupported"] = operational(
        "whenRequired", "When the client adds checksum headers; some stores refuse them."
    )
    deadline_seconds: float = operational(
        60.0, "How long an unreachable store is retried before it is an error.", unit="s", gt=0, le=3600
    )
