"""``zhongjing data stats``: sizes, departments and turns of corpora, as the paper tells them of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli.commands.data import Encoding, store_for, targets_of
from zhongjing.cli.console import Console
from zhongjing.cli.display.charts import Chart, as_svg
from zhongjing.cli.display.text import count, filled, table
from zhongjing.cli.errors import BAD_INPUT, OK, guarded
from zhongjing.cli.example import with_example_files
from zhongjing.cli.options import Format, Local, OutputFormat, SourceKind, SourcesFile, SourceUris, Workdir
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.resolve import load_document, resolve
from zhongjing.config.sources import Kind
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from zhongjing.data.inspect import SourceReport

_BAR = 30  # characters of the longest bar
_MOST_TURNS = 10  # longer dialogues share a line
NO_DEPARTMENT = "(none)"

EPILOG = """
\b
Examples:
  zhongjing data stats corpora/*.jsonl
  zhongjing data stats -f my.yaml --picture corpus.svg
  zhongjing data stats s3://corpus/clean/ --local -o json

The first table is the paper's Table 1, the second its Figure 3. Scenarios are told by words of the opening
question, by rule of thumb. No record's text is shown.
"""


@guarded
def stats(
    *,
    uris: SourceUris = None,
    file: SourcesFile = None,
    kind: SourceKind = None,
    encoding: Encoding = "auto",
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Draw it as well: an SVG picture.", dir_okay=False),
    ] = None,
    local: Local = False,
    workdir: Workdir = None,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Show sizes, departments and numbers of turns of sources."""
    from zhongjing.data.inspect import inspect_sources

    console = Console(json_mode=output == Format.JSON)
    with TemporaryDirectory(prefix="zhongjing-stats-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        document = None if file is None else with_example_files(resolve(load_document(file)), scratch)
        targets = targets_of(uris or [], document, scratch)
        store = store_for(targets, stack, local=local, workdir=workdir)
        sources = inspect_sources(targets, store=store, kind=kind, encoding=encoding).sources
    errors = [f"error: {each.name}: {each.error}" for each in sources if each.error is not None]
    departments, turns = departments_of(sources), turns_of(sources)
    scenarios = scenarios_of(sources)
    if picture is not None:
        _draw(picture, sources, departments, scenarios, _by_turns(turns))
    if console.json_mode:
        console.result(
            {
                "sources": [source_object(each) for each in sources],
                "departments": dict(departments),
                "scenarios": dict(scenarios),
                "turns": {str(number): dialogues for number, dialogues in sorted(turns.items())},
                "errors": errors,
            }
        )
    else:
        console.say_lines(source_table(sources))
        if departments:
            console.say_lines(["", *bars(("department", "dialogues"), departments)])
        if scenarios:
            console.say_lines(["", *bars(("scenario", "dialogues"), scenarios)])
        if turns:
            console.say_lines(["", *bars(("turns", "dialogues"), _by_turns(turns))])
    for error in errors:
        console.warn(error)
    return BAD_INPUT if errors else OK


def _draw(
    picture: Path,
    sources: Sequence[SourceReport],
    departments: Sequence[tuple[str, int]],
    scenarios: Sequence[tuple[str, int]],
    turns: Sequence[tuple[str, int]],
) -> None:
    """Writes the picture; raises ConfigError where that cannot be."""
    sizes = [(each.name, sum(one.size or 0 for one in each.objects)) for each in sources]
    charts = [
        Chart("Sources (bytes)", sizes),
        Chart("Departments (dialogues)", [each for each in departments if each[0] != NO_DEPARTMENT]),
        Chart("Scenarios (dialogues)", scenarios),
        Chart("Turns (dialogues)", turns),
    ]
    try:
        picture.write_text(as_svg([chart for chart in charts if chart.values]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the picture cannot be written: {error.strerror}", code=INVALID_OPTION, where=str(picture)
        ) from error


def source_object(source: SourceReport) -> dict[str, Any]:
    """The figures of a source. A turn is a question and its answer."""
    turns = sum(number * records for number, records in source.turns.items())
    return {
        "name": source.name,
        "uri": source.uri,
        "kind": source.kind.value,
        "bytes": sum(each.size or 0 for each in source.objects),
        "records": source.kept,
        "characters": source.characters.total,
        "turns": turns,
        "multiTurn": sum(records for number, records in source.turns.items() if number > 1),
        "departments": len(source.departments),
    }


def source_table(sources: Sequence[SourceReport]) -> list[str]:
    """A line for each source, and one for all."""
    header = ("source", "kind", "departments", "size", "records", "characters", "turns", "multi-turn")
    found = [source_object(each) for each in sources]
    rows = [
        _row(one, each["name"], each["kind"], _named(one)) for one, each in zip(sources, found, strict=True)
    ]
    if len(sources) > 1:
        total = {
            name: sum(each[name] for each in found)
            for name in ("bytes", "records", "characters", "turns", "multiTurn")
        }
        rows.append(_cells(total, "all", "", ""))
    return filled(header, rows, right=(3, 4, 5, 6, 7))


def _row(source: SourceReport, name: str, kind: str, departments: str) -> list[str]:
    return _cells(source_object(source), name, kind, departments)


def _cells(figures: Mapping[str, Any], name: str, kind: str, departments: str) -> list[str]:
    share = f"{figures['multiTurn'] / figures['records']:.1%}" if figures["turns"] else ""
    return [
        name,
        kind,
        departments,
        f"{count(figures['bytes'])}B",
        f"{figures['records']:,}",
        count(figures["characters"]),
        f"{figures['turns']:,}" if figures["turns"] else "",
        share,
    ]


def _named(source: SourceReport) -> str:
    """The department of a source that has one, else how many it has."""
    if len(source.departments) == 1:
        return next(iter(source.departments))
    return str(len(source.departments)) if source.departments else ""


def departments_of(sources: Sequence[SourceReport]) -> list[tuple[str, int]]:
    """Dialogues by department over all sources, the most first; nothing where no dialogue has one."""
    found: Counter[str] = Counter()
    for source in sources:
        found.update(source.departments)
    without = sum(source.without_department for source in sources)
    return [*found.most_common(), *([(NO_DEPARTMENT, without)] if found and without else [])]


def scenarios_of(sources: Sequence[SourceReport]) -> list[tuple[str, int]]:
    """Dialogues by what is asked for over all sources, the most first."""
    found: Counter[str] = Counter()
    for source in sources:
        found.update(source.scenarios)
    return found.most_common()


def turns_of(sources: Sequence[SourceReport]) -> Counter[int]:
    """Dialogues by number of turns over all sources."""
    found: Counter[int] = Counter()
    for source in sources:
        if source.kind is Kind.DIALOGUE:
            found.update(source.turns)
    return found


def _by_turns(turns: Mapping[int, int]) -> list[tuple[str, int]]:
    short = [(str(number), turns[number]) for number in sorted(turns) if number < _MOST_TURNS]
    long = sum(dialogues for number, dialogues in turns.items() if number >= _MOST_TURNS)
    return [*short, *([(f"{_MOST_TURNS} or more", long)] if long else [])]


def bars(header: tuple[str, str], values: Sequence[tuple[str, int]]) -> list[str]:
    """A table of counts with shares and bars."""
    total = sum(number for _, number in values)
    most = max(number for _, number in values)
    rows = [
        (name, f"{number:,}", f"{number / total:.1%}", "#" * round(_BAR * number / most))
        for name, number in values
    ]
    return table((*header, "share", ""), rows, right=(1, 2))
