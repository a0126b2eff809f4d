"""``zhongjing data``: looks at corpora, and writes the example ones. The data layer is imported when used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli.commands.pull import refuse_full
from zhongjing.cli.console import Console
from zhongjing.cli.errors import BAD_INPUT, OK, guarded
from zhongjing.cli.example import is_example, parse, with_example_files, write_examples, write_graph_files
from zhongjing.cli.options import (
    SETTINGS,
    Format,
    KubeContext,
    Local,
    Namespace,
    OutputFormat,
    Release,
    SourceKind,
    SourcesFile,
    SourceUris,
    Workdir,
)
from zhongjing.cli.target import choose
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import load_document, parse_document, resolve
from zhongjing.config.sources import Kind
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, DataError
from zhongjing.storage.listing import left_out_text
from zhongjing.storage.manifest import unused_text

if TYPE_CHECKING:
    from zhongjing.config.sources import Source
    from zhongjing.data.inspect import Lengths, SourceReport
    from zhongjing.data.rehearsal import StageRehearsal
    from zhongjing.storage.objects import ObjectStore

app = typer.Typer(
    no_args_is_help=True,
    help="Look at corpora; write example ones.",
    **SETTINGS,
)

_PATIENCE_SECONDS = 5.0

Encoding = Annotated[
    str, typer.Option("--encoding", metavar="CODEC", help="Of files without a document: gb18030, big5, ...")
]
# Keys that number the turns of a dialogue, or name the dialogue.
_VISIT = re.compile(
    r"就诊号|门诊号|住院号|会话|轮次|^turn(_?(id|no|index))?$|^(visit|session|dialog(ue)?)_?id$"
)

INSPECT_EPILOG = """
\b
Examples:
  zhongjing data inspect corpora/*.jsonl
  zhongjing data inspect ranked.json --kind ranking
  zhongjing data inspect visits.csv --encoding gb18030
  zhongjing data inspect -f my.yaml --tokenizer ./model
  zhongjing data inspect s3://zhongjing/corpora/a.jsonl --local

Exit code 2 when a stage would stop over one of the sources. No record's text is shown.
"""

SHOW_EPILOG = """
\b
Examples:
  zhongjing data show dialogues.jsonl
  zhongjing data show -f my.yaml --stage sft -n 3
  zhongjing data show ranked.jsonl --stage rm --tokenizer ./model

Targets stand between \u27e6 and \u27e7. Text is shown on a terminal only, unless --text asks for it.
"""

EXAMPLE_EPILOG = """
\b
Examples:
  zhongjing data example ./example
  zhongjing data example ./example --seed 1 --scale 2
  zhongjing data check ./example/contradictions.jsonl s3://zhongjing/checked --kg ./example/kg.jsonl --local

The data are synthetic. They are no medical advice.
"""


@app.command("inspect", epilog=INSPECT_EPILOG)
@guarded
def inspect(
    *,
    uris: SourceUris = None,
    file: SourcesFile = None,
    kind: SourceKind = None,
    encoding: Encoding = "auto",
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="Also count tokens with this model's tokenizer."),
    ] = None,
    max_records: Annotated[
        int | None, typer.Option("--max-records", help="Look at so many records of a source.", min=1)
    ] = None,
    local: Local = False,
    workdir: Workdir = None,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Show what sources hold: formats, counts, lengths, turns, departments, what would be quarantined."""
    from zhongjing.cli.preflight.rehearsal import rehearse
    from zhongjing.data.inspect import inspect_sources

    console = Console(json_mode=output == Format.JSON)
    with TemporaryDirectory(prefix="zhongjing-inspect-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        document = _document(file, scratch) if file is not None else None
        targets = targets_of(uris or [], document, scratch)
        report = inspect_sources(
            targets,
            store=store_for(targets, stack, local=local, workdir=workdir),
            kind=kind,
            encoding=encoding,
            tokenizer_folder=tokenizer,
            max_records=max_records,
        )
        stages: list[StageRehearsal] = []
        if document is not None:
            present = document.spec.stages.trained()
            stages = rehearse(document, present, scratch, tokenizer=tokenizer, max_records=max_records)
    if console.json_mode:
        told = [each.model_dump(mode="json") for each in stages]
        console.result({**report.model_dump(mode="json"), "usable": report.usable, "stages": told})
    for index, source in enumerate(() if console.json_mode else report.sources):
        if index:
            console.say()
        console.say_lines(report_lines(source))
    if stages and not console.json_mode:
        from zhongjing.cli.display.rehearsal import rehearsal_lines

        console.say_lines(["", *rehearsal_lines(stages)])
    return OK if report.usable else BAD_INPUT


@app.command("show", epilog=SHOW_EPILOG)
@guarded
def show(
    *,
    uri: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="A path or glob, or with --file the name of a source."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="A document with sources and stages.")
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option("--stage", help="As this stage trains on them; told from the records.")
    ] = None,
    encoding: Encoding = "auto",
    number: Annotated[int, typer.Option("--number", "-n", help="So many examples.", min=1)] = 3,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="The tokenizer of this model.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Show records' text also where stdout is no terminal.")
    ] = False,
) -> int:
    """Show records as a stage trains on them: the template's text, what is a target between marks."""
    from zhongjing.cli.display.rehearsal import example_lines
    from zhongjing.cli.preflight.rehearsal import encoder_of, listings_of, rehearsal

    console = Console()
    is_terminal = console.stream.isatty()
    with TemporaryDirectory(prefix="zhongjing-show-") as folder:
        scratch = Path(folder)
        if file is not None:
            document = _document(file, scratch)
            chosen = _stage_of(document, uri, stage, str(file))
        elif uri is not None:
            document, chosen = _document_of(uri, stage, scratch, encoding)
        else:
            raise ConfigError(
                "there is nothing to show",
                code=INVALID_OPTION,
                remedy="give a path, or a document with --file",
            )
        listings = listings_of(document)
        encoder = encoder_of(document, listings, scratch, tokenizer)
        if encoder is None:
            raise ConfigError(
                "the base's tokenizer is not on this machine",
                code=INVALID_OPTION,
                where="spec.base",
                remedy="give a folder that has it with --tokenizer",
            )
        if uri is not None and file is not None:
            listings = {name: each for name, each in listings.items() if name == uri}
        found = list(islice(rehearsal(document, chosen, encoder, listings).examples(), number))
        for example in found:
            shown = example_lines(example, encoder.tokenizer, text=text or is_terminal, color=is_terminal)
            console.say_lines(shown)
        if not found:
            looked = rehearsal(document, chosen, encoder, listings, _LOOKED_AT).run()
            able = [
                each for each in document.spec.stages.trained() if listings.keys() & _reads(document, each)
            ]
            if file is None and uri is not None:
                able = [_STAGE_OF[_kind_of(document.spec.sources[0].place, encoding)]]
            raise _nothing(looked, uri or str(file), [each.value for each in able if each is not chosen])
    if not (text or is_terminal):
        console.warn("note: records' text is shown on a terminal only; --text writes it elsewhere")
    return OK


_LOOKED_AT = 1000  # records of a source, to say why none is shown
_KIND_OF = {
    Stage.PRETRAIN: Kind.TEXT,
    Stage.SFT: Kind.DIALOGUE,
    Stage.RM: Kind.RANKING,
    Stage.PPO: Kind.PROMPTS,
}
_STAGE_OF = {kind: stage for stage, kind in _KIND_OF.items()}


def _nothing(looked: StageRehearsal, where: str, able: list[str]) -> ConfigError | DataError:
    """Why no record is shown. ``able``: the other stages that have records to show."""
    from zhongjing.codes.data import NO_GOOD_RECORD

    remedy = f"these can be shown: {', '.join(f'--stage {each}' for each in able)}" if able else None
    counts = [each.counts for each in looked.sources]
    if not counts:
        return ConfigError(
            f"no source of {looked.stage} is a file of this machine",
            code=INVALID_OPTION,
            where=where,
            remedy=remedy or "give the path of one that is: `zhongjing data show FILE`",
        )
    lost = {
        "cannot be used": sum(each.quarantined for each in counts),
        "without an order: all answers tie": sum(each.tied for each in counts),
        "too long": sum(each.too_long for each in counts),
        "equal to earlier ones": sum(each.duplicates for each in counts),
        "equal to test data": sum(each.leaks for each in counts),
    }
    told = ", ".join(f"{number} {what}" for what, number in lost.items() if number)
    read = sum(each.read for each in counts)
    message = f"of {read} records none can be shown as {looked.stage} has them"
    message += f": {told}" if told else ""
    return DataError(message, code=NO_GOOD_RECORD, where=where, remedy=remedy)


def _stage_of(document: TrainingPipeline, source: str | None, stage: Stage | None, where: str) -> Stage:
    """The stage whose records are shown: the one asked for, else the first that reads the source.

    Raises:
        ConfigError: the document has no such stage or source.
    """
    present = document.spec.stages.trained()
    readers = {name: each for each in reversed(present) for name in _reads(document, each)}
    if source is not None and source not in readers:
        raise ConfigError(
            f"no stage trains on a source {source!r}",
            code=INVALID_OPTION,
            where=where,
            remedy=f"there is: {', '.join(sorted(readers))}",
        )
    chosen = stage or (readers[source] if source else present[0])
    if chosen not in present:
        raise ConfigError(
            f"the document has no stage {chosen}",
            code=INVALID_OPTION,
            where=where,
            remedy=f"it has: {', '.join(present)}",
        )
    return chosen


def _document_of(
    uri: str, stage: Stage | None, scratch: Path, encoding: str
) -> tuple[TrainingPipeline, Stage]:
    """A document made up of a bare source, and the stage: told from the records unless given."""
    uri = _path_of(uri, scratch)
    kind = _KIND_OF[stage] if stage is not None else _kind_of(uri, encoding)
    chosen = stage or _STAGE_OF[kind]
    user = parse_document("metadata: {name: show}\nspec: {base: {tiny: {}}}", uri)
    user["spec"]["sources"] = [{"name": "shown", "uri": uri, "kind": kind.value, "encoding": encoding}]
    user["spec"]["stages"] = {chosen.value: {"data": [{"source": "shown"}]}}
    return resolve(user), chosen


def _kind_of(uri: str, encoding: str) -> Kind:
    from zhongjing.data.inspect import inspect_sources

    return inspect_sources([uri], encoding=encoding, max_records=50).sources[0].kind


def _path_of(uri: str, folder: Path) -> str:
    """The URI; of an example the path of its file, written into ``folder``."""
    if not is_example(uri):
        return uri
    name, seed, scale = parse(uri, uri)
    return str(write_examples(folder / f"seed-{seed}-scale-{scale:g}", seed, scale)[name])


def _reads(document: TrainingPipeline, stage: Stage) -> set[str]:
    """Names of the sources that a stage of the document trains on."""
    return {ref.source for ref in document.spec.stages[stage].data}


def _document(file: Path, folder: Path) -> TrainingPipeline:
    """A document, its examples written into ``folder``."""
    return with_example_files(resolve(load_document(file)), folder)


@app.command("quarantine")
@guarded
def quarantine(
    *,
    uri: Annotated[str, typer.Argument(metavar="URI", help="A quarantine.jsonl, as an error names it.")],
    local: Local = False,
    workdir: Workdir = None,
    namespace: Namespace = None,
    context: KubeContext = None,
    release: Release = None,
) -> None:
    """List place and reason of the records that a stage left out. No record's text is shown."""
    from zhongjing.data.records import Rejected
    from zhongjing.data.rejections import place

    target = choose(local=local, workdir=workdir, namespace=namespace, context=context, release=release)
    with target.open() as session:
        lines = session.store.get(uri).splitlines()
    found = [Rejected.from_json(line) for line in lines]
    Console().say_lines(f"{place(each.position)}: {each.reason}" for each in found)


@app.command("example", epilog=EXAMPLE_EPILOG)
@guarded
def example(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other data.", min=0)] = 0,
    scale: Annotated[float, typer.Option(help="Factor on the number of records.", min=0.001)] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write the synthetic example corpora, and a knowledge graph of the same facts.

    The corpora are textbook, dialogues, rankings and prompts. kg is the graph, contradictions are dialogues
    with planted mistakes, to try the command data check on.
    """
    refuse_full(folder, force=force)
    console = Console()
    paths = write_examples(folder, seed, scale) | write_graph_files(folder, seed)
    for name, path in paths.items():
        console.say(f"{name:<20}{path}")


def targets_of(uris: list[str], document: TrainingPipeline | None, folder: Path) -> list[Source | str]:
    """What is to be inspected; examples are written into ``folder``. Raises ConfigError: nothing is named."""
    targets: list[Source | str] = [_path_of(uri, folder) for uri in uris]
    if document is not None:
        targets += document.spec.sources
    if not targets:
        raise ConfigError(
            "there is nothing to inspect",
            code=INVALID_OPTION,
            remedy="give a URI, or a document with --file",
        )
    return targets


def store_for(
    targets: list[Source | str], stack: ExitStack, *, local: bool, workdir: Path | None
) -> ObjectStore | None:
    """The object store, if anything is to be read from one."""
    places = [target if isinstance(target, str) else target.place for target in targets]
    if not any(place.startswith("s3://") for place in places):
        return None
    if local or workdir is not None:
        return stack.enter_context(choose(local=local, workdir=workdir).open()).store
    from zhongjing.config.sources import Storage
    from zhongjing.storage.objects import open_store

    # A user waits for the answer: an outage that a job would sit out is reported soon.
    return open_store(Storage(deadline_seconds=_PATIENCE_SECONDS))


def report_lines(report: SourceReport) -> list[str]:
    """What was found in a source, for people."""
    unread = report.error is not None and not report.read
    told = "no record was read" if unread else f"{report.kind.value}, {report.read} records"
    lines = [f"{report.name}: {told}"]
    for item in report.objects:
        size = f", {item.size:,} bytes" if item.size is not None else ""
        lines.append(f"  {item.uri}: {item.reading or item.format}{size}")
    lines += [f"  {name:<13}{text}" for name, text in _facts(report)]
    for entry in report.examples:
        line = f", line {entry.line}" if entry.line is not None else ""
        lines.append(f"    {entry.uri}, record {entry.index + 1}{line}: {entry.reason}")
    if report.error is not None:
        lines.append(f"  error: {report.error}")
    if report.over_limit:
        lines.append(f"  more than {report.limit:.3g} of the records are unusable: a stage would stop")
    return lines


def _facts(report: SourceReport) -> Iterator[tuple[str, str]]:
    if report.left_out:
        yield "left out", left_out_text(report.left_out)
    if report.layouts:
        yield "written as", _counts(report.layouts)
    yield "kept", str(report.kept)
    if report.duplicates:
        yield "duplicates", f"{report.duplicates} (left out)"
    if report.same_opening:
        yield "same opening", f"{report.same_opening} (kept in one split)"
    if report.truncated:
        yield "truncated", f"{report.truncated} (a last question without an answer is left out)"
    yield "characters", _lengths(report.characters)
    if report.tokens is not None:
        yield "tokens", _lengths(report.tokens)
    if report.turns:
        yield "turns", _counts(report.turns)
    if report.answers:
        yield "answers", _counts(report.answers) + (f"; {report.ties} with ties" if report.ties else "")
    if report.tied:
        yield "all tie", f"{report.tied} (left out: there is nothing to compare)"
    if report.with_system:
        yield "system turn", str(report.with_system)
    if report.departments:
        yield "departments", _counts(report.departments, limit=8)
    if report.unused:
        yield "not used", unused_text(report.unused)
        visits = [name for name in report.unused if _VISIT.search(name.lower())]
        if visits and set(report.turns) == {1}:
            yield (
                "note",
                f"a row is a dialogue: {', '.join(visits)} join no rows; write a visit as `messages`",
            )
    if report.private_use:
        yield "private use", f"{report.private_use} with characters of no meaning: is `encoding` right?"
    if report.rejected:
        yield "quarantined", f"{report.rejected}: {_counts(report.reasons)}"


def _counts(values: Mapping[Any, int], *, limit: int = 12) -> str:
    shown = [f"{key}: {number}" for key, number in list(values.items())[:limit]]
    more = len(values) - limit
    return ", ".join([*shown, f"{more} more"] if more > 0 else shown)


def _lengths(values: Lengths) -> str:
    return (
        f"{values.total:,} in all; mean {values.mean:g}, median {values.median}, "
        f"95% {values.p95}, longest {values.largest}"
    )
