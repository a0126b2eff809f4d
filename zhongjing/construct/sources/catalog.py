"""Which layouts sources can be built from, by the name that the command has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.construct.runner import Feed
from zhongjing.construct.sources import self_cognition
from zhongjing.construct.sources.consultations import TASKS, Consultations
from zhongjing.construct.sources.converter import Converter
from zhongjing.construct.sources.entities import Entities
from zhongjing.construct.sources.events import Events
from zhongjing.construct.sources.feeds import GraphFeed, ItemFeed, ListFeed
from zhongjing.construct.sources.health_records import HealthRecords
from zhongjing.construct.sources.knowledge import Knowledge
from zhongjing.construct.sources.self_cognition import SelfCognition
from zhongjing.construct.sources.step import InstructStep
from zhongjing.construct.sources.triples import Triples
from zhongjing.errors import ConfigError

SELF_COGNITION = "self-cognition"
LAYOUTS = {
    "kg": "a knowledge graph as texts, one an entity",
    "kg-dialogue": "a knowledge graph as questions and answers",
    "records": "health records, rows with named fields, as texts",
    "cmeee": "CBLUE's CMeEE and CMeEE-V2: entities",
    "cmeie": "CBLUE's CMeIE and CMeIE-V2: relations",
    "cdee": "CBLUE's CHIP-CDEE: clinical findings",
    "imcs": "IMCS-21: entities, symptoms and reports of consultations",
    "imcs-ner": "IMCS-21: entities alone",
    "imcs-sr": "IMCS-21: symptoms alone",
    "imcs-mrg": "IMCS-21: reports alone",
    SELF_COGNITION: "dialogues in which the model says what it is; no input",
}


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What a source is built as.

    Attributes:
        layout: a name of :data:`LAYOUTS`.
        seed: decides which wordings are taken.
        fields: of health records; none: all but identifying ones.
        model_name, author, count: of self-cognition.
    """

    layout: str
    seed: int = 0
    fields: Sequence[str] = field(default=())
    model_name: str | None = None
    author: str | None = None
    count: int = 500


def build(settings: SourceSettings) -> tuple[InstructStep, Feed]:
    """The step, and how its items are read.

    Raises:
        ConfigError: a name that is none, or an option that is missing or does not belong to it.
    """
    layout = settings.layout
    if layout not in LAYOUTS:
        raise ConfigError(
            f"there is no layout {layout!r}",
            code=INVALID_OPTION,
            where="--as",
            remedy=f"there are: {', '.join(LAYOUTS)}",
        )
    if settings.fields and layout != "records":
        raise ConfigError("--fields belongs to --as records", code=INVALID_OPTION, where="--fields")
    if layout == SELF_COGNITION:
        return _self_cognition(settings)
    if settings.model_name or settings.author:
        raise ConfigError(
            f"--model-name and --author belong to --as {SELF_COGNITION}", code=INVALID_OPTION, where="--as"
        )
    if layout in ("kg", "kg-dialogue"):
        step = InstructStep(layout, Knowledge("text" if layout == "kg" else "dialogue"), settings.seed)
        return step, GraphFeed()
    step = InstructStep(layout, _converter(layout, settings), settings.seed)
    return step, ItemFeed(members=step.converter.members)


def _converter(layout: str, settings: SourceSettings) -> Converter:
    if layout == "records":
        return HealthRecords(settings.fields)
    if layout.startswith("imcs"):
        return Consultations(TASKS if layout == "imcs" else (layout.removeprefix("imcs-"),))
    made: dict[str, Converter] = {"cmeee": Entities(), "cmeie": Triples(), "cdee": Events()}
    return made[layout]


def _self_cognition(settings: SourceSettings) -> tuple[InstructStep, Feed]:
    if not settings.model_name or not settings.author:
        raise ConfigError(
            f"--as {SELF_COGNITION} needs --model-name and --author", code=INVALID_OPTION, where="--as"
        )
    most = SelfCognition.most()
    if settings.count > most:
        raise ConfigError(
            f"there are {most} different questions; {settings.count} dialogues would repeat them",
            code=INVALID_OPTION,
            where="--count",
            remedy=f"ask for {most} or fewer; a source may be given more weight in its stage",
        )
    step = InstructStep(SELF_COGNITION, SelfCognition(settings.model_name, settings.author), settings.seed)
    return step, ListFeed(SELF_COGNITION, self_cognition.items(settings.count, settings.seed))
