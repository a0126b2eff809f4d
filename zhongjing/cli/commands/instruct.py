"""``zhongjing data instruct``: sources built of graphs, health records, published tasks and a profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import KeepText, Order, Plan, Processes, SourceFile
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import Format, OutputFormat
from zhongjing.cli.place import StoreOptions
from zhongjing.cli.spread import spread
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.sources import Kind, Source
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

EPILOG = """
\b
Layouts (--as):
  kg              a knowledge graph as texts, one an entity          (kind text)
  kg-dialogue     a knowledge graph as questions and answers         (kind dialogue)
  records         health records, rows with named fields, as texts   (kind text)
  cmeee, cmeie    CBLUE: entities, relations; both versions          (kind dialogue)
  cdee            CBLUE: clinical findings                           (kind dialogue)
  imcs            IMCS-21: entities, symptoms, reports; imcs-ner, imcs-sr or imcs-mrg: one of them
  self-cognition  the model says what it is; has no IN

\b
Examples:
  zhongjing data instruct cmekg/ s3://zhongjing/kg --as kg --local
  zhongjing data instruct records.csv s3://zhongjing/records --as records --local --plan
  zhongjing data instruct CMeEE-V2_train.json s3://zhongjing/cmeee --as cmeee --local --review
  zhongjing data instruct s3://zhongjing/self --as self-cognition --model-name 仲景 --author 某某团队 --local

Health records hold patients' data: let `data deidentify` follow before anything else sees the texts.
"""


@dataclass(frozen=True)
class BuildOrder(Order):
    """An order whose input is no source that a document could name by itself."""

    makes: Kind = Kind.DIALOGUE

    def source(self, store: ObjectStore | None) -> Source:  # noqa: D102
        del store
        found = self.declared
        if found is not None:
            return found.model_copy(
                update={"kind": self.makes, "keep_text": self.keep_text or found.keep_text}
            )
        return Source(name="raw", uri=self.place, kind=self.makes, keep_text=self.keep_text)


@guarded
@spread("at")
def instruct(
    *,
    places: Annotated[
        list[str], typer.Argument(metavar="[IN] OUT", help="What is built from, and the s3:// folder for it.")
    ],
    at: StoreOptions,
    layout: Annotated[str, typer.Option("--as", metavar="LAYOUT", help="What IN is; see below.")],
    file: SourceFile = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides which wordings are taken.", min=0)] = 0,
    fields: Annotated[
        str | None,
        typer.Option("--fields", metavar="A,B", help="records: only these fields, in this order."),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", metavar="NAME", help="self-cognition: the model's name.")
    ] = None,
    author: Annotated[
        str | None, typer.Option("--author", metavar="NAME", help="self-cognition: who made the model.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="self-cognition: so many dialogues.", min=1)] = 500,
    plan: Plan = False,
    review: Annotated[bool, typer.Option("--review", help="Show what was made, by label and count.")] = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Build texts or dialogues of a graph, health records, NLP tasks or a profile."""
    from zhongjing.construct.sources.catalog import SELF_COGNITION, SourceSettings, build

    needed = 1 if layout == SELF_COGNITION else 2
    if len(places) != needed:
        raise ConfigError(
            f"--as {layout} takes {'OUT alone' if needed == 1 else 'IN and OUT'}", code=INVALID_OPTION
        )
    out = places[-1].rstrip("/")
    construction.check_out(out)
    chosen = tuple(each.strip() for each in (fields or "").split(",") if each.strip())
    step, feed = build(SourceSettings(layout, seed, chosen, model_name, author, count))
    console = Console(json_mode=output == Format.JSON)
    place = places[0] if needed == 2 else f"made://{layout}"
    order = BuildOrder(place, out, file, None, keep_text, processes, makes=step.kind)
    opened = at.opened_here
    if plan:
        construction.tell_plan(console, order, [step], partial(opened, create=False), feed=feed)
        return
    with opened(create=True) as store:
        manifest = construction.make(console, store, order, [step], feed=feed)
    construction.tell_result(console, manifest, out, review=review)
