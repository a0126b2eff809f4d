"""From the options of submit to a run: document, examples, plan, apply, follow.

What only a document that is right needs is imported when it is needed: a wrong one is told of at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.cli.commands.config import as_yaml
from zhongjing.cli.console import Console
from zhongjing.cli.display.text import count, table
from zhongjing.cli.errors import OK
from zhongjing.cli.example import is_example, parse, with_examples
from zhongjing.cli.options import DEFAULT_RECIPE, StageName, StageTarget
from zhongjing.cli.target import LocalTarget, Target, find
from zhongjing.cli.watch import attend
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.storage import BUCKET_NOT_FOUND
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import (
    UserDocument,
    apply_overrides,
    load_document,
    recipe,
    recipe_origin,
    resolve,
)
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, ConflictError, StorageError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import OnUpload, absolute
from zhongjing.pipeline.plan import Plan, StagePlan, frozen_sources, missing_input
from zhongjing.pipeline.prepare import Forecast, Prepared, prepare
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import DesiredState

_ATTEMPTS = 3
_SHOWN_FROM_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    document: str | None = None
    recipe: str | None = None
    pipeline: UserDocument | None = None  # what a pipeline that is there was applied with
    overrides: tuple[str, ...] = ()
    stage: StageTarget | None = None
    rerun: tuple[StageName, ...] = ()
    refresh_data: bool = False
    force: bool = False

    @property
    def is_default(self) -> bool:
        """Whether no document was named: the recipe that is run then is meant, and no other document."""
        return self.document is None and self.recipe is None and self.pipeline is None

    def user(self) -> UserDocument:
        """What the user wants, overrides applied. Raises ConfigError."""
        if self.pipeline is not None:
            written = self.pipeline
        else:
            named = self.recipe or DEFAULT_RECIPE
            written = load_document(self.document) if self.document is not None else recipe(named)
        forced = ("spec.force=true",) if self.force else ()
        return apply_overrides(written, (*self.overrides, *forced))

    def stages(self, document: TrainingPipeline) -> list[Stage]:
        """The stages asked for; none: what the document says."""
        if self.stage is None:
            return []
        return document.spec.stages.present() if self.stage is StageTarget.ALL else [Stage(self.stage.value)]

    def reruns(self) -> list[Stage]:
        """The stages to run again."""
        return [Stage(stage.value) for stage in self.rerun]


def launch(order: Order, target: LocalTarget, console: Console, *, wait: bool, wait_for_input: bool) -> int:
    """Brings about what was asked for on this machine; returns the exit code.

    What can be found wrong without a running service is found first.

    Raises:
        ConfigError, DataError: bad input.
        BackendError, StorageError: the place cannot be reached.
    """
    workdir = target.workdir
    user = order.user()
    document = resolve(user)
    check(document, order)
    from zhongjing.backends.local.room import check_room
    from zhongjing.cli.preflight.machine import check_machine
    from zhongjing.cli.preflight.memory import check_memory, terms_here
    from zhongjing.pipeline.fit import reader

    terms_of = terms_here()
    known = is_known(document, workdir)
    notes = [] if known else check_first_run(document, order, target)
    check_room(workdir)
    if not known:
        targets = graph.targets(document, order.stages(document))
        check_machine(document, targets)
        check_memory(document, targets, terms_of, reader(None))
    console.say(f"{document.name}: runs in {workdir}")
    with target.open(create=True) as session:
        refuse_another_document(session, order, document.name)
        notes += check_again(session, document, order) if known else []
        for note in notes:
            console.say(f"note: {note}")
        user = with_examples(user, workdir / "example")
        doubts: list[str] = []
        for attempt in range(1, _ATTEMPTS + 1):
            prepared = prepared_for(session, user, document, order, target, on_upload=announcer(console))
            runs = [each.stage for each in prepared.forecasts if each.action == "run"]
            check_machine(document, runs)
            if prepared.desired is not prepared.previous:
                doubts = check_memory(document, runs, terms_of, reader(session.store))
            try:
                desired = session.apply(prepared.desired)
            except ConflictError:
                # Another command wrote first; what it wrote counts when this one is prepared again.
                if attempt == _ATTEMPTS:
                    raise
                continue
            except KeyboardInterrupt:
                # Before it was applied there is nothing to stop; but it may just have been.
                if not is_applied(session, prepared.desired):
                    raise
                return attend(session, prepared.desired, console, interrupted=True)
            break
        for line in [*(f"note: {each}" for each in doubts), *plan_lines(prepared)]:
            console.say(line)
        return attend(session, desired, console, wait=wait, wait_for_input=wait_for_input)


def written_of(name: str, target: Target) -> UserDocument:
    """What a pipeline that is there was applied with, its local sources by their absolute paths.

    Raises:
        ConfigError: there is no such pipeline.
        BackendError: the place cannot be reached.
    """
    with target.open() as session:
        desired = find(session, name)
    places = {source.name: source.uri for source in desired.document.spec.sources}
    spec = dict(desired.user.get("spec") or {})
    spec["sources"] = [
        {**source, "uri": places.get(source.get("name"), source.get("uri"))}
        for source in spec.get("sources") or ()
    ]
    return UserDocument({**desired.user, "spec": spec}, desired.origin or f"the pipeline {name}", {})


def refuse_another_document(session: Session, order: Order, name: str) -> None:
    """Keeps the recipe that is run where no document is named from taking the name of another document's run.

    Raises:
        ConfigError: a pipeline of this name was applied with another document.
    """
    there = session.desired(name) if order.is_default else None
    if there is not None and there.origin != recipe_origin(DEFAULT_RECIPE):
        made = f", of {there.origin}" if there.origin else ""
        raise ConfigError(
            f"no document is named, and the pipeline {name} was made of another one than the recipe "
            f"{DEFAULT_RECIPE}{made}",
            code=INVALID_OPTION,
            where="--file",
            remedy=f"name it with -f FILE, or take the one that the pipeline has: --pipeline {name}; "
            f"--recipe {DEFAULT_RECIPE} means the recipe",
        )


def is_applied(session: Session, desired: DesiredState) -> bool:
    """Whether what was prepared is wanted already."""
    there = session.desired(desired.pipeline)
    return there is not None and (there.uid, there.generation) == (desired.uid, desired.generation)


def dry_run_of(order: Order, target: LocalTarget, console: Console, *, as_yaml_text: bool) -> int:
    """Prints the complete document and what would run; starts no job.

    Where nothing was ever run, everything would, and no service is started to find that out.
    """
    workdir = target.workdir
    user = order.user()
    document = resolve(user)
    check(document, order)
    from zhongjing.cli.preflight.machine import check_machine
    from zhongjing.cli.preflight.memory import check_memory, terms_here
    from zhongjing.pipeline.fit import reader

    known = is_known(document, workdir)
    notes = [] if known else check_first_run(document, order, target)
    if workdir.is_dir():
        with target.open() as session:
            refuse_another_document(session, order, document.name)
            notes += check_again(session, document, order) if known else []
            document, forecasts, more = _preview(session, order, user, document, target)
            notes += more
    else:
        forecasts = first_forecasts(document, order, target)
    runs = [each.stage for each in forecasts if each.action == "run"]
    try:
        check_machine(document, runs)
        notes += check_memory(document, runs, terms_here(), reader(None))
    except ConfigError as error:
        # The document may be meant for another machine: it is shown all the same.
        notes.append(f"would be refused here: {error.message}")
    from zhongjing.cli.preflight.rehearsal import dry_run_data

    data = dry_run_data(user, runs, tokenize=True)
    _print_dry_run(document, forecasts, notes, data, console, as_yaml_text=as_yaml_text)
    return OK


def check(document: TrainingPipeline, order: Order) -> None:
    """Raises what is wrong with a document, its examples and the stages asked for."""
    graph.check(document)
    graph.targets(document, [*order.stages(document), *order.reruns()])
    for source in document.spec.sources:
        if is_example(source.uri):
            parse(source.uri, f"spec.sources.{source.name}.uri")


def is_known(document: TrainingPipeline, workdir: Path) -> bool:
    """Whether a pipeline of this name was ever applied in the workdir. Starts nothing."""
    from zhongjing.backends.local.workdir import Workdir

    return document.name in Workdir(workdir).pipelines()


def check_first_run(document: TrainingPipeline, order: Order, target: LocalTarget) -> list[str]:
    """Checks what a pipeline that was never run here needs, without a running service; returns notes.

    Raises:
        MissingInputError: a source is not there, or a stage that is only needed was never made.
        DataError: a source or model cannot be used.
    """
    from zhongjing.cli.preflight.models import check_models
    from zhongjing.cli.preflight.sources import check_sources

    stages = [forecast.stage for forecast in first_forecasts(document, order, target)]
    notes = check_models(document, stages)
    return notes + check_sources(document, stages, empty_store=not target.workdir.is_dir())


def check_again(session: Session, document: TrainingPipeline, order: Order) -> list[str]:
    """Checks what has come to a pipeline since it was applied last: the rest, the run has its own copy of.

    Raises:
        MissingInputError: a source is not there.
        DataError: a source or model cannot be used.
    """
    from zhongjing.cli.preflight.models import check_models
    from zhongjing.cli.preflight.sources import check_sources

    stages = graph.targets(document, order.stages(document))
    known = () if order.refresh_data else _frozen(session, document)
    return check_models(document, stages) + check_sources(document, stages, known=known)


def _frozen(session: Session, document: TrainingPipeline) -> set[str]:
    """Names of the sources that the pipeline goes on reading as they were when it first saw them."""
    previous = session.desired(document.name)
    if previous is None:
        return set()
    status = session.status(document.name)
    places = {source.name: source.uri for source in previous.document.spec.sources}
    frozen = frozen_sources(previous, status.sources if status is not None else ())
    return {
        source.name
        for source in document.spec.sources
        if source.name in frozen and places.get(source.name) == absolute(source.uri, Path.cwd())
    }


def first_forecasts(document: TrainingPipeline, order: Order, target: Target) -> list[Forecast]:
    """What would become of each stage in a place where nothing was ever run.

    Raises:
        MissingInputError: a stage that is only needed was never made.
    """
    targets = graph.targets(document, order.stages(document))
    plan: Plan = {
        stage: StagePlan(stage, stage in targets, graph.needs(document, stage), (), None, {}, {})
        for stage in graph.closure(document, targets)
    }
    missing = missing_input(plan, {}, document.name)
    if missing is not None:
        raise missing
    return [Forecast(stage, "run", "was never run", None) for stage in plan]


def plan_lines(prepared: Prepared) -> list[str]:
    """What will become of each stage, for people."""
    lines = [f"note: {note}" for note in prepared.notes]
    if prepared.desired is prepared.previous:
        lines.append(f"{prepared.desired.pipeline}: runs already, attached to it")
    return lines + forecast_lines(prepared.forecasts)


def forecast_lines(forecasts: list[Forecast]) -> list[str]:
    """The plan as a table; every field that changed on a line of its own."""
    rows = [[forecast.stage.value, forecast.action, forecast.reason] for forecast in forecasts]
    if not rows:
        return []
    lines = table(["stage", "plan", "why"], rows)
    shown = [lines[0]]
    for forecast, line in zip(forecasts, lines[1:], strict=True):
        shown.append(line)
        shown += [f"{'':10}{change}" for change in forecast.changes if len(forecast.changes) > 1]
    return shown


def prepared_for(
    session: Session,
    user: UserDocument,
    document: TrainingPipeline,
    order: Order,
    target: Target,
    *,
    upload: bool = True,
    on_upload: OnUpload | None = None,
) -> Prepared:
    """What ``session`` would apply of ``user``; as :func:`zhongjing.pipeline.prepare.prepare`."""
    try:
        return prepare(
            session,
            user,
            stages=order.stages(document),
            rerun=order.reruns(),
            refresh_data=order.refresh_data,
            upload=upload,
            on_upload=on_upload,
        )
    except StorageError as error:
        from zhongjing.cli.preflight.sources import outside

        # The store of a local run has one bucket: who names another one means another store.
        for source in document.spec.sources if isinstance(target, LocalTarget) else ():
            if error.code is BUCKET_NOT_FOUND and error.where == source.uri:
                raise outside(source) from error
        raise


def _preview(
    session: Session, order: Order, user: UserDocument, document: TrainingPipeline, target: LocalTarget
) -> tuple[TrainingPipeline, list[Forecast], list[str]]:
    user = with_examples(user, target.workdir / "example")
    prepared = prepared_for(session, user, document, order, target, upload=False)
    # Shown as it was written: a document with the paths of this workdir would be of no use elsewhere.
    uris = {source.name: source.uri for source in document.spec.sources if is_example(source.uri)}
    shown = prepared.desired.document
    sources = [
        source.model_copy(update={"uri": uris.get(source.name, source.uri)}) for source in shown.spec.sources
    ]
    spec = shown.spec.model_copy(update={"sources": sources})
    return shown.model_copy(update={"spec": spec}), prepared.forecasts, prepared.notes


def _print_dry_run(
    document: TrainingPipeline,
    forecasts: list[Forecast],
    notes: list[str],
    data: tuple[list[str], list[dict[str, Any]]],
    console: Console,
    *,
    as_yaml_text: bool,
) -> None:
    if not as_yaml_text:
        console.result(
            {
                "document": document.model_dump(mode="json", exclude_none=True),
                "plan": [forecast_object(forecast) for forecast in forecasts],
                "notes": notes,
                "data": data[1],
            }
        )
        return
    for line in [*(f"note: {note}" for note in notes), *forecast_lines(forecasts), *data[0]]:
        console.raw(f"# {line}\n")
    console.raw(as_yaml(document))


def forecast_object(forecast: Forecast) -> dict[str, Any]:
    """A forecast for programs."""
    return {
        "stage": forecast.stage.value,
        "action": forecast.action,
        "reason": forecast.reason,
        "key": forecast.key,
        "changes": list(forecast.changes),
    }


def announcer(console: Console) -> OnUpload:
    """Says which large files are being uploaded."""

    def announce(name: str, done: int, size: int) -> None:
        if done == 0 and size >= _SHOWN_FROM_BYTES:
            console.say(f"uploading {name} ({count(size)}B)")

    return announce
