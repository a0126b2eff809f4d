"""``zhongjing data dedup``: near duplicates within and across sources, and what test sets hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import KeepText, Order, Plan, Processes, SourceFile
from zhongjing.cli.display.text import count, table
from zhongjing.cli.errors import OK, guarded
from zhongjing.cli.made import refuse_local, submit_made
from zhongjing.cli.options import Format, OutputFormat, SourceKind
from zhongjing.cli.place import PlaceOptions
from zhongjing.cli.spread import spread
from zhongjing.cli.target import ClusterTarget
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.resolve import load_document, resolve
from zhongjing.config.sources import Source
from zhongjing.errors import ConfigError
from zhongjing.pipeline.headline import duration

if TYPE_CHECKING:
    from zhongjing.construct.dedup.run import Deduplicated
    from zhongjing.construct.dedup.settings import DedupSettings
    from zhongjing.storage.objects import ObjectStore

EPILOG = """
\b
Examples:
  zhongjing data dedup s3://corpus/checked s3://corpus/unique --against s3://test/cmtmedqa --endpoint URL
  zhongjing data dedup books.jsonl talks.jsonl s3://zhongjing/unique --local
  zhongjing data dedup s3://corpus/checked s3://corpus/unique --against s3://test/cmtmedqa -n train
  zhongjing data dedup talks general s3://zhongjing/unique -f my.yaml --local --plan

Of records that are alike the earliest stays: sources count in the order in which they are given. With one IN
the result is in OUT, with several in a folder of each one's name below it. With --file, IN are names of
sources, and the document's `split: test` sources are kept out as well. A run that was interrupted goes on
with the same command.
"""


@guarded
@spread("at")
def dedup(
    *,
    places: Annotated[
        list[str], typer.Argument(metavar="IN... OUT", help="Sources, and the s3:// folder for the result.")
    ],
    at: PlaceOptions,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="URI", help="A test set to keep out; repeatable."),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Jaccard similarity from which on two records are alike.")
    ] = 0.8,
    overlap: Annotated[
        float, typer.Option("--overlap", help="Share of a test passage that a record may not have.")
    ] = 0.5,
    file: SourceFile = None,
    kind: SourceKind = None,
    plan: Plan = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Leave out near duplicates, and what test sets have."""
    from zhongjing.construct.dedup.settings import DedupSettings

    if len(places) < 2:
        raise ConfigError("IN and OUT are needed", code=INVALID_OPTION, remedy="give a source and a folder")
    out = places[-1].rstrip("/")
    construction.check_out(out)
    settings = DedupSettings(threshold, overlap)
    first = Order(places[0], out, file, kind, keep_text, processes)
    orders = [replace(first, place=place) for place in places[:-1]]
    console = Console(json_mode=output == Format.JSON)
    tests = [replace(first, place=place, file=None, kind=None) for place in against or []]
    cluster = at.cluster
    if cluster is not None and not plan:
        return _submit(console, orders, against or [], settings, at=at, cluster=cluster)
    if plan:
        uris = [each.place if each.declared is None else each.declared.place for each in (*orders, *tests)]
        with (
            at.opened(create=False)
            if any(uri.startswith("s3://") for uri in uris)
            else nullcontext() as store
        ):
            _tell_plan(console, orders, store, settings)
        return OK
    with at.opened(create=True) as store:
        _carry_out(console, store, orders, tests, settings)
    return OK


def _submit(
    console: Console,
    orders: Sequence[Order],
    against: Sequence[str],
    settings: DedupSettings,
    *,
    at: PlaceOptions,
    cluster: ClusterTarget,
) -> int:
    """Has a release do it: a pipeline of one source that is made by the step dedup."""
    from zhongjing.construct.dedup.settings import DedupSettings

    if len(orders) > 1:
        raise ConfigError(
            "a cluster takes one source at a time",
            code=INVALID_OPTION,
            where=", ".join(order.place for order in orders),
            remedy="put the sources into one folder, or work on the store from here with --endpoint",
        )
    if settings.overlap != DedupSettings().overlap:
        raise ConfigError("--overlap is not for clusters", code=INVALID_OPTION, remedy="leave it out")
    tests = [*(each.place for each in _tests_of(orders[0].file)), *against]
    refuse_local({f"--against {place}": place for place in tests})
    made = {"steps": ["dedup"], "dedupThreshold": settings.threshold, **({"against": tests} if tests else {})}
    code, manifest = submit_made(console, orders[0], made, cluster, wait=not at.no_wait)
    if manifest is not None:
        construction.tell_result(console, manifest, orders[0].out, review=True)
    return code


def _carry_out(
    console: Console,
    store: ObjectStore,
    orders: Sequence[Order],
    tests: Sequence[Order],
    settings: DedupSettings,
) -> None:
    from zhongjing.construct.dedup.run import deduplicate
    from zhongjing.construct.runner import in_processes

    sources = [_named(order, store) for order in orders]
    held_out = [*_tests_of(orders[0].file), *(_named(order, store) for order in tests)]
    named = _apart([*sources, *held_out])
    work = in_processes(orders[0].workers)
    with construction.shown(console) as listen:
        done = deduplicate(
            store,
            named[: len(sources)],
            orders[0].out,
            settings=settings,
            against=named[len(sources) :],
            work=work,
            listen=listen,
        )
    if console.json_mode:
        console.result({"uris": list(done.folders), **done.report.model_dump(mode="json")})
    else:
        console.say_lines(report_lines(done))


def _named(order: Order, store: ObjectStore) -> Source:
    source = order.source(store)
    return source if order.declared is not None else source.model_copy(update={"name": name_of(order.place)})


def name_of(uri: str) -> str:
    """A source's name, of its URI: the last part without its ending."""
    parts = [part for part in re.split(r"[/\\]", uri) if part and not re.search(r"[*?\[\]]", part)]
    stem = parts[-1].split(".")[0] if parts else ""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "source"


def _apart(sources: Sequence[Source]) -> list[Source]:
    """The sources with names of their own; a second one of a name gets a number."""
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        seen[source.name] = number = seen.get(source.name, 0) + 1
        name = source.name if number == 1 else f"{source.name}-{number}"
        named.append(source.model_copy(update={"name": name}))
    return named


def _tests_of(file: Path | None) -> list[Source]:
    if file is None:
        return []
    return [each for each in resolve(load_document(file)).spec.sources if each.split == "test"]


def report_lines(done: Deduplicated) -> Iterable[str]:
    """What was left out and why, for people."""
    report = done.report
    rows = []
    for manifest, (name, read), folder in zip(
        done.manifests, report.records.items(), done.folders, strict=True
    ):
        share = 1 - manifest.written / read if read else 0.0
        rows.append((name, f"{read:,}", f"{manifest.written:,}", f"{share:.1%}", f"{folder}/"))
    yield from table(("source", "records", "stay", "left out", "place"), rows, right=(1, 2, 3))
    if report.left_out:
        pairs = [(each.source, each.why, each.because, f"{each.records:,}") for each in report.left_out]
        yield from ("", *table(("records of", "are", "because of", "count"), pairs, right=(3,)))
    if report.tests:
        leaks = {
            name: sum(each.records for each in report.left_out if each.because == name)
            for name in report.tests
        }
        tests = [(name, f"{number:,}", f"{leaks[name]:,}") for name, number in report.tests.items()]
        yield from ("", *table(("test set", "records", "leaks"), tests, right=(1, 2)))


def _tell_plan(
    console: Console, orders: Sequence[Order], store: ObjectStore | None, settings: DedupSettings
) -> None:
    from zhongjing.construct.dedup.decision import DISK_BYTES, MEMORY_BYTES
    from zhongjing.construct.dedup.step import SigningStep
    from zhongjing.construct.plan import plan

    found = [plan(store, order.source(store), [SigningStep()], processes=order.workers) for order in orders]
    records = sum(each.records for each in found)
    figures = {
        "records": records,
        "characters": sum(each.characters for each in found),
        "exact": all(each.exact for each in found),
        "memoryBytes": records * MEMORY_BYTES,
        "diskBytes": records * DISK_BYTES,
        "hours": sum(each.hours or 0.0 for each in found),
        "bands": settings.bands,
    }
    if console.json_mode:
        console.result({"sources": [each.model_dump(mode="json") for each in found], **figures})
        return
    about = "" if figures["exact"] else "about "
    rows = [
        ("sources", f"{len(found)}"),
        ("records", f"{about}{records:,}"),
        ("characters", f"{about}{figures['characters']:,}"),
        (
            "memory",
            f"{count(records * MEMORY_BYTES)}B for the decision, {count(records * DISK_BYTES)}B of disk",
        ),
        ("time", f"about {duration(figures['hours'] * 3600)}: {orders[0].workers} processes"),
    ]
    console.say_lines([f"{name:<12}{text}" for name, text in rows])
