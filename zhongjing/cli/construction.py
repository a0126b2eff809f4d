"""What the commands of data construction share: source and place as options say them, progress, results."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.display.text import clock, count, table
from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.cli.target import LocalTarget
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.construct import NOT_ON_CLUSTERS
from zhongjing.config.resolve import load_document, resolve
from zhongjing.config.sources import Kind, Source, Storage
from zhongjing.errors import ConfigError
from zhongjing.pipeline.headline import duration

if TYPE_CHECKING:
    from zhongjing.construct.manifest import SourceManifest
    from zhongjing.construct.plan import ConstructionPlan
    from zhongjing.construct.runner import Feed, Progress
    from zhongjing.construct.step import Step
    from zhongjing.storage.objects import ObjectStore

_TELL_SECONDS = 10.0

In = Annotated[
    str,
    typer.Argument(metavar="IN", help="Path, folder, glob or s3:// URI; with --file the name of a source."),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="s3:// folder that the result goes to.")]
SourceFile = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="A document that says how the source is read."),
]
Plan = Annotated[bool, typer.Option("--plan", help="Say how many records and hours it takes; write nothing.")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="So many processes (clusters: tasks); one a core unless given, one where a model is asked.",
        min=1,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="S3-compatible store of your own, with the keys of the environment, in place of --local.",
    ),
]
KeepText = Annotated[
    bool,
    typer.Option("--keep-text", help="Let the quarantine hold texts of records (patients' data!)."),
]


@dataclass(frozen=True)
class Order:
    """What a command of data construction was asked for.

    Attributes:
        place: the source: a URI, or its name in ``file``.
        out: where the result goes.
        file: a document.
        kind: of the records.
        keep_text: whether the quarantine may hold texts.
        processes: how many; None: one a core.
    """

    place: str
    out: str
    file: Path | None = None
    kind: Kind | None = None
    keep_text: bool = False
    processes: int | None = None

    @property
    def workers(self) -> int:
        """Processes that the work is shared by."""
        return self.processes or len(os.sched_getaffinity(0))

    @property
    def declared(self) -> Source | None:
        """The source as the document says it; None without a document.

        Raises:
            ConfigError: the document has no such source.
        """
        if self.file is None:
            return None
        sources = {each.name: each for each in resolve(load_document(self.file)).spec.sources}
        if self.place not in sources:
            raise ConfigError(
                f"the document has no source {self.place!r}",
                code=INVALID_OPTION,
                where=str(self.file),
                remedy=f"it has: {', '.join(sorted(sources))}",
            )
        return sources[self.place]

    def source(self, store: ObjectStore | None) -> Source:
        """The source, as the document and the options say it.

        Args:
            store: needed for s3://.

        Raises:
            ConfigError: the document has no such source.
            MissingInputError: nothing is at the URI whose kind is to be told.
        """
        found = self.declared
        if found is None:
            kind = self.kind or _kind_of(self.place, store)
            return Source(name="raw", uri=self.place, kind=kind, keep_text=self.keep_text)
        update: dict[str, Any] = {"keep_text": self.keep_text or found.keep_text}
        return found.model_copy(update=update | ({} if self.kind is None else {"kind": self.kind}))


def _kind_of(uri: str, store: ObjectStore | None) -> Kind:
    from zhongjing.data.inspect import inspect_sources

    return inspect_sources([uri], store=store, max_records=50).sources[0].kind


@contextmanager
def store_of(
    *, local: bool, workdir: Path | None, endpoint: str | None, create: bool
) -> Iterator[ObjectStore]:
    """The object store that the options name, which lives while the block runs.

    Args:
        local: that of the local runs.
        workdir: of which work directory; None: the default one.
        endpoint: of another store, whose keys the environment has.
        create: make the work directory where there is none.

    Raises:
        ConfigError: no store is named, or two are; or it cannot be used.
        BackendError: the services of the work directory do not start.
    """
    here = local or workdir is not None
    if endpoint is not None:
        if here:
            raise ConfigError(
                "--endpoint names a store, and --local another one",
                code=INVALID_OPTION,
                remedy="leave one of them out",
            )
        from zhongjing.storage.objects import open_store

        yield open_store(Storage(endpoint=endpoint))
        return
    if not here:
        raise ConfigError("data are constructed on this machine only", code=NOT_ON_CLUSTERS)
    with LocalTarget(workdir or DEFAULT_WORKDIR).open(create=create) as session, session.heartbeat():
        yield session.store


def check_out(out: str) -> None:
    """Raises ConfigError where the output's place is no folder of a store."""
    if not re.fullmatch(r"s3://[^/*?\[]+/[^*?\[]*[^/*?\[]/?", out):
        raise ConfigError(
            "the result goes to a folder of an object store",
            code=INVALID_OPTION,
            where=out,
            remedy="write s3://<bucket>/<folder>",
        )


def make(
    console: Console,
    store: ObjectStore,
    order: Order,
    steps: Sequence[Step],
    *,
    feed: Feed | None = None,
    patience: float | None = None,
) -> SourceManifest:
    """Makes the source, with progress on the console. ``patience``: see ``in_processes``."""
    from zhongjing.construct.runner import PATIENCE_SECONDS, construct, in_processes

    source = order.source(store)
    work = in_processes(order.workers, PATIENCE_SECONDS if patience is None else patience)
    with shown(console) as listen:
        return construct(store, source, steps, order.out, feed=feed, work=work, listen=listen)


@contextmanager
def shown(console: Console) -> Iterator[Any]:
    """A listener of progress: a bar on a terminal, a line every ten seconds elsewhere."""
    began = told = time.monotonic()

    def words(progress: Progress) -> str:
        left = "" if progress.seconds_left is None else f"  {duration(progress.seconds_left)} left"
        return f"{count(progress.records)} records{left}"

    if console.interactive:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        with Bars(*columns, console=Terminal(file=console.stream, highlight=False)) as bars:
            task = bars.add_task("reading", total=1.0)

            def redraw(progress: Progress) -> None:
                bars.update(task, completed=progress.fraction, description=words(progress))

            yield redraw
        return

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _TELL_SECONDS:
            told = now
            console.say(f"{clock(now - began)}  {progress.fraction:4.0%}  {words(progress)}")

    yield tell


def plan_lines(found: ConstructionPlan) -> list[str]:
    """What a construction will take, for people."""
    about = "" if found.exact else "about "
    rows = [
        ("objects", f"{found.objects} ({found.bytes:,} bytes)"),
        ("records", f"{about}{found.records:,}"),
        ("characters", f"{about}{found.characters:,}"),
    ]
    if found.unreadable:
        rows.append(("unreadable", f"{about}{found.unreadable:,}"))
    # Where a language model is asked, that takes the time.
    if found.hours is not None and found.characters_per_second is not None and not found.asking:
        speed = f"{count(found.characters_per_second)} characters a second each"
        rows.append(("time", f"about {duration(found.hours * 3600)}: {found.processes} processes, {speed}"))
    return [f"{name:<12}{text}" for name, text in rows]


def result_lines(manifest: SourceManifest, out: str) -> list[str]:
    """What a construction made, for people."""
    lines = [
        f"{manifest.written:,} of {manifest.read:,} records, {manifest.characters:,} characters, "
        f"{len(manifest.parts)} parts: {out}"
    ]
    if manifest.quarantined:
        rows = [(reason, f"{number:,}") for reason, number in manifest.quarantined.items()]
        lines += ["", *table(("quarantined", "records"), rows, right=(1,))]
        lines += [f"places: {out}/_made/quarantine-*.jsonl"]
    lines += ["", "to train on it:", f"  - {{name: NAME, uri: {out}/, kind: {manifest.kind}}}"]
    return lines


def review_lines(manifest: SourceManifest) -> list[str]:
    """What each step did, by label and count."""
    lines: list[str] = []
    for step in manifest.steps:
        rows = [(label, f"{number:,}") for label, number in manifest.counts.get(step.name, {}).items()]
        lines += ["", *table((step.name, "count"), rows or [("nothing", "0")], right=(1,))]
    return lines


def tell_plan(
    console: Console,
    order: Order,
    steps: Sequence[Step],
    opened: Callable[[], AbstractContextManager[ObjectStore]],
    *,
    feed: Feed | None = None,
) -> None:
    """Says what a construction will take. Files of this machine are looked at without a store."""
    from zhongjing.construct.plan import plan

    declared = order.declared
    uri = order.place if declared is None else declared.place
    with opened() if uri.startswith("s3://") else nullcontext() as store:
        found = plan(store, order.source(store), steps, processes=order.workers, feed=feed)
    if console.json_mode:
        console.result(found.model_dump(mode="json"))
    else:
        console.say_lines(plan_lines(found))


def tell_result(console: Console, manifest: SourceManifest, out: str, *, review: bool) -> None:
    """Says what a construction made; with ``review`` also what its steps did."""
    if console.json_mode:
        console.result({"uri": out, **manifest.model_dump(mode="json")})
        return
    console.say_lines(result_lines(manifest, out))
    if review:
        console.say_lines(review_lines(manifest))
