"""``submit`` on a cluster: uploads local files, creates or changes the TrainingPipeline, follows it.

What can be found wrong on this machine is found before the cluster is asked for anything.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from zhongjing.cli.console import Console
from zhongjing.cli.display.text import count
from zhongjing.cli.errors import OK
from zhongjing.cli.launch import (
    Order,
    announcer,
    check,
    forecast_lines,
    forecast_object,
    is_applied,
    plan_lines,
    prepared_for,
    refuse_another_document,
)
from zhongjing.cli.target import ClusterTarget
from zhongjing.cli.uploads import PlannedStore, Uploads, plan_uploads, upload
from zhongjing.cli.watch import attend
from zhongjing.codes.cluster import FORBIDDEN
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.commands import Commands
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import UserDocument, resolve
from zhongjing.errors import BackendError, ConfigError, ConflictError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import OnUpload
from zhongjing.pipeline.headline import duration
from zhongjing.pipeline.prepare import Prepared, in_progress
from zhongjing.pipeline.state import DesiredState, stamp

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
    from zhongjing.storage.objects import ObjectStore

_ATTEMPTS = 5


def launch(order: Order, target: ClusterTarget, console: Console, *, wait: bool, wait_for_input: bool) -> int:
    """Brings about what was asked for; returns the exit code.

    Raises:
        ConfigError, DataError: bad input; or the API server refuses the document.
        BackendError, StorageError: the cluster, the release or its store cannot be reached.
    """
    user = order.user()
    document = resolve(user)
    notes = check_here(document, order)
    with ExitStack() as stack:
        session = stack.enter_context(target.open())
        refuse_another_document(session, order, document.name)
        console.say(f"{document.name}: runs in {where(session)}")
        uploads = plan_uploads(user, document, session.layout(document.name), stack)
        for note in [*notes, *uploads.notes]:
            console.say(f"note: {note}")
        if uploads.files:
            _send(session, uploads, console)
        for attempt in range(1, _ATTEMPTS + 1):
            prepared = _prepared(session, uploads, document, order, target)
            doubts = _check_memory(session, document, prepared)
            try:
                desired = session.apply(prepared.desired)
            except ConflictError:
                # Another command wrote first; what it wrote counts when this one is prepared again.
                if attempt == _ATTEMPTS:
                    raise
                continue
            except KeyboardInterrupt:
                if not is_applied(session, prepared.desired):
                    raise
                return attend(session, prepared.desired, console, interrupted=True)
            break
        for line in [*(f"note: {each}" for each in doubts), *plan_lines(prepared)]:
            console.say(line)
        console.say(f"Ray dashboard: {Commands(session.flags).line('dashboard')}")
        return attend(session, desired, console, wait=wait, wait_for_input=wait_for_input)


def dry_run_of(order: Order, target: ClusterTarget, console: Console, *, as_yaml_text: bool) -> int:
    """Prints what ``kubectl apply`` would take, and what would run. Nothing is uploaded or written.

    The API server is asked whether it would take it.
    """
    user = order.user()
    document = resolve(user)
    notes = check_here(document, order)
    with ExitStack() as stack:
        session = stack.enter_context(target.open())
        refuse_another_document(session, order, document.name)
        uploads = plan_uploads(user, document, session.layout(document.name), stack)
        with contextlib.suppress(BackendError):  # told with the plan, which cannot be made then
            session.use(PlannedStore(session.store, uploads.files))
        prepared = _prepared(session, uploads, document, order, target)
        session.check(prepared.desired)
        wanted = session.render(prepared.desired)
        try:
            notes += _check_memory(session, document, prepared)
        except ConfigError as error:
            notes.append(f"would be refused: {error.message}")
    notes += [*uploads.notes, *prepared.notes, *_to_send(uploads)]
    from zhongjing.cli.preflight.rehearsal import dry_run_data

    runs = [forecast.stage for forecast in prepared.forecasts if forecast.action == "run"]
    lines, data = dry_run_data(user, runs, tokenize=False)
    if not as_yaml_text:
        plan = [forecast_object(forecast) for forecast in prepared.forecasts]
        console.result({"document": wanted, "plan": plan, "notes": notes, "data": data})
        return OK
    for line in [*(f"note: {note}" for note in notes), *forecast_lines(prepared.forecasts), *lines]:
        console.raw(f"# {line}\n")
    console.raw(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=110))
    return OK


def check_here(document: TrainingPipeline, order: Order) -> list[str]:
    """Checks a document as far as this machine can; returns notes.

    Raises:
        ConfigError: the document, or what was asked for of it, is wrong.
        DataError: a local file or model cannot be used.
    """
    check(document, order)
    from zhongjing.cli.preflight.models import check_models
    from zhongjing.cli.preflight.sources import check_sources

    stages = graph.closure(document, graph.targets(document, order.stages(document)))
    return check_models(document, stages) + check_sources(document, stages)


def where(session: KubernetesSession) -> str:
    """``the namespace train (release zhongjing)``."""
    return f"the namespace {session.namespace} (release {session.release.release})"


def _prepared(
    session: KubernetesSession,
    uploads: Uploads,
    document: TrainingPipeline,
    order: Order,
    target: ClusterTarget,
) -> Prepared:
    user = uploads.user
    if order.refresh_data:
        _refuse_refresh_under_way(session, document.name)
        user = user.holding(session.with_refresh(user))
    try:
        _ = session.store
    except BackendError as error:
        if error.code is not FORBIDDEN:
            raise
        return _unseen(session, user, document, order, error)
    return prepared_for(session, user, document, order, target)


def _check_memory(session: KubernetesSession, document: TrainingPipeline, prepared: Prepared) -> list[str]:
    """Plans what will run, as far as this user can see its memory; returns notes.

    Raises:
        ConfigError: a stage cannot fit.
    """
    if prepared.desired is prepared.previous:
        return []
    from zhongjing.backends.kubernetes.memory import WorkerMemory
    from zhongjing.cli.preflight.memory import check_memory
    from zhongjing.pipeline.fit import reader

    try:
        store: ObjectStore | None = session.store
    except BackendError:
        store = None
    runs = [each.stage for each in prepared.forecasts if each.action == "run"]
    return check_memory(document, runs, WorkerMemory(session.api, session.release).terms, reader(store))


def _unseen(
    session: KubernetesSession,
    user: UserDocument,
    document: TrainingPipeline,
    order: Order,
    error: BackendError,
) -> Prepared:
    """What would be applied, by somebody who may not look into the object store: without a forecast."""
    name = document.name
    previous = session.desired(name)
    status = session.status(name)
    targets = graph.targets(document, order.stages(document))
    if previous is not None and in_progress(previous, status):
        also = [stage for stage in previous.targets if document.spec.stages.get(stage) is not None]
        targets = graph.targets(document, [*targets, *also])
    reruns = dict(previous.reruns) if previous is not None else {}
    for stage in order.reruns():
        reruns[stage] = reruns.get(stage, 0) + 1
    now = stamp(time.time())
    desired = DesiredState(
        namespace=session.namespace,
        pipeline=name,
        uid=previous.uid if previous is not None else secrets.token_hex(4),
        generation=previous.generation + 1 if previous is not None else 1,
        user=dict(user),
        origin=Path(user.origin).name,
        document=resolve(user),
        targets=targets,
        reruns=reruns,
        suspend=document.spec.suspend,
        created_at=now,
        updated_at=now,
    )
    note = f"what will run is not foretold, the object store cannot be looked into: {error.message}"
    return Prepared(desired, previous, {}, [], [note])


def _refuse_refresh_under_way(session: KubernetesSession, name: str) -> None:
    there = session.desired(name)
    if there is not None and in_progress(there, session.status(name)):
        raise ConfigError(
            f"the pipeline {name} is being worked on: its sources cannot be listed anew",
            code=INVALID_OPTION,
            where="--refresh-data",
            remedy=f"wait for it, or stop it first: `zhongjing stop {name}`",
        )


def _send(session: KubernetesSession, uploads: Uploads, console: Console) -> None:
    try:
        store = session.store
    except BackendError as error:
        if error.code is not FORBIDDEN:
            raise
        raise BackendError(
            f"the local files of the document cannot be uploaded: {error.message}",
            code=FORBIDDEN,
            where=error.where,
            remedy="have the ClusterRole edit bound in the namespace (it holds all that is needed: services, "
            "secrets, pods/portforward), or name s3:// URIs, which need no upload",
        ) from error
    began = time.monotonic()
    with announced(uploads, console) as on_upload:
        sent = upload(store, uploads.files, on_upload)
    if sent:
        size = sum(file.size for file in uploads.files)
        took = duration(time.monotonic() - began)
        console.say(f"uploaded {sent} of {len(uploads.files)} local files ({count(size)}B in all, {took})")


@contextlib.contextmanager
def announced(uploads: Uploads, console: Console) -> Iterator[OnUpload]:
    """What is told while files are sent: a bar on a terminal, else which large file it is."""
    if not console.interactive:
        yield announcer(console)
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("uploading"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=RichConsole(file=console.stream), transient=True) as bar:
        total = sum(file.size for file in uploads.files)
        task = bar.add_task("", total=total)

        def tell(name: str, done: int, size: int) -> None:
            bar.update(task, advance=done, description=name)

        yield tell


def _to_send(uploads: Uploads) -> list[str]:
    if not uploads.files:
        return []
    size = sum(file.size for file in uploads.files)
    return [
        f"the {len(uploads.files)} local files ({count(size)}B) of the sources are not uploaded by a dry run"
    ]
