"""From a document to a desired state: resolved, frozen, checked, compared with the last one.

``submit`` calls :func:`prepare`, shows the preview, and applies ``prepared.desired``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import Frozen, apply_overrides, resolve
from zhongjing.config.stages import Stage
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import FrozenInputs, absolute, freeze
from zhongjing.pipeline.local_files import OnUpload
from zhongjing.pipeline.plan import Plan, known_sources, make_plan, missing_input
from zhongjing.pipeline.records import done_stages
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import ConditionType, DesiredState, PipelineStatus, StageState, placed, stamp


@dataclass(frozen=True)
class Forecast:
    """What will become of one stage, and why. ``action`` is run, skip or wait."""

    stage: Stage
    action: str
    reason: str
    key: str | None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A desired state that can be applied, its forecast and notes."""

    desired: DesiredState
    previous: DesiredState | None
    plan: Plan
    forecasts: list[Forecast]
    notes: list[str]


def prepare(
    session: Session,
    user: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    stages: Sequence[Stage] = (),
    rerun: Sequence[Stage] = (),
    refresh_data: bool = False,
    upload: bool = True,
    on_upload: OnUpload | None = None,
    reads_store: bool = True,
) -> Prepared:
    """Makes a desired state of a document. Writes nothing but uploads.

    Args:
        session: where it shall run.
        user: the document as written.
        overrides: ``path=value`` assignments.
        stages: the stages asked for; none: what the document says, else all.
        rerun: stages to run again although they are done.
        refresh_data: list the sources anew instead of keeping what the pipeline first saw.
        upload: False: only hash local files (a dry run).
        on_upload: is told of every local file.
        reads_store: False: this user may not read the store. No source is listed, and nothing is forecast.

    Raises:
        ConfigError: the document is wrong.
        MissingInputError: a source does not exist (names the path), or a stage that is only needed was
            never made (names the command that makes it).
    """
    written = apply_overrides(user, overrides)
    name = _name(user, written)
    previous = session.desired(name)
    status = session.status(name) if previous is not None else None
    if status is not None and previous is not None and status.uid != previous.uid:
        status = None
    document = _resolve(session, user, overrides, previous)
    graph.check(document)
    targets = graph.targets(document, stages)
    complete = status is not None and status.holds(ConditionType.COMPLETE)
    if upload and not complete:
        session.warm()  # while files are hashed and uploaded
    layout = session.layout(document.name)
    frozen = FrozenInputs()
    if reads_store:
        known = {} if refresh_data else known_sources(previous, status)
        frozen = freeze(session.store, layout, document, known=known, upload=upload, on_upload=on_upload)
    going = previous is not None and in_progress(previous, status)
    if going and previous is not None:
        there = document.spec.stages.present()
        targets = graph.targets(document, [*targets, *(each for each in previous.targets if each in there)])
    reruns = {**document.spec.reruns, **(previous.reruns if previous is not None else {})}
    for stage in rerun:
        graph.targets(document, [stage])
        reruns[stage] = reruns.get(stage, 0) + 1
    now = stamp(time.time())
    desired = DesiredState(
        namespace=session.namespace,
        pipeline=document.name,
        uid=previous.uid if previous is not None else secrets.token_hex(4),
        generation=previous.generation if previous is not None else 1,
        user=dict(written),
        origin=Path(written.origin).name,
        document=document,
        sources=frozen.sources,
        waiting=frozen.waiting,
        references=frozen.references,
        targets=targets,
        reruns=reruns,
        suspend=document.spec.suspend,
        created_at=previous.created_at if previous is not None else now,
        updated_at=now,
    )
    if previous is not None:
        same = _wish(previous) == _wish(desired)
        if same and going:
            desired = previous  # attach
        else:
            desired = desired.model_copy(update={"generation": previous.generation + 1})
    if not reads_store:
        return Prepared(desired, previous, {}, [], [])
    plan = make_plan(desired)
    done = done_stages(session.store, layout, {stage: node.key for stage, node in plan.items()})
    missing = missing_input(plan, done, document.name)
    if missing is not None:
        raise missing
    return Prepared(desired, previous, plan, _forecast(plan, done, status), frozen.notes)


def in_progress(desired: DesiredState, status: PipelineStatus | None) -> bool:
    """Whether a pipeline is being worked on, or will be as soon as the reconciler sees it."""
    if status is None or status.uid != desired.uid or status.observed_generation < desired.generation:
        return not desired.suspend
    if any(entry.state.is_active for entry in status.stages.values()):
        return True
    condition = status.condition()
    if condition is None:
        return True
    return condition.type is ConditionType.PROGRESSING and not status.stands_still


def changed_under_way(old: DesiredState, new: DesiredState, status: PipelineStatus | None) -> list[str]:
    """Training fields that differ for stages of a pipeline that is being worked on, as ``path: old -> new``.

    Empty: ``new`` is the document that runs (operational fields may differ).
    """
    late = status.sources if status is not None else []
    before = make_plan(old, late)
    after = make_plan(new, late)
    changes: list[str] = []
    for stage, node in before.items():
        other = after.get(stage)
        if other is not None and node.key is not None and other.key is not None and node.key != other.key:
            changes += [
                line if line.startswith("spec.") else f"spec.stages.{stage}: {line}"
                for line in other.changes_since(node.fields)
            ]
    return changes


def _name(user: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    metadata = written.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    # A document without a valid name is refused by resolve, which says so better.
    return name if isinstance(name, str) else resolve(user).name


def _resolve(
    session: Session, user: Mapping[str, Any], overrides: Sequence[str], previous: DesiredState | None
) -> TrainingPipeline:
    document = resolve(user, overrides, defaults_of(previous))
    # Another process must find the local files.
    folder = Path.cwd()
    sources = [source.placed(absolute(source.place, folder)) for source in document.spec.sources]
    spec = document.spec.model_copy(update={"sources": sources})
    return placed(document.model_copy(update={"spec": spec}), session.namespace, session.storage)


def defaults_of(previous: DesiredState | None) -> Frozen | None:
    """The defaults that a pipeline was first resolved with: another release's re-run nothing."""
    return Frozen(previous.user, previous.document.model_dump(mode="json")) if previous is not None else None


def _wish(desired: DesiredState) -> tuple[Any, ...]:
    """What makes two desired states different; a source that came late does not."""
    frozen = {source.name: source.digest for source in desired.sources}
    for name in desired.waiting:
        frozen[name] = ""
    late = {source.name for source in desired.document.spec.sources if source.wait}
    return (
        desired.document.model_dump(mode="json", exclude={"spec": {"targets", "suspend"}}),
        {name: digest for name, digest in frozen.items() if name not in late},
        desired.references,
        desired.targets,
        desired.reruns,
        desired.suspend,
    )


def _forecast(plan: Plan, done: Mapping[Stage, bool], status: PipelineStatus | None) -> list[Forecast]:
    forecasts: list[Forecast] = []
    runs: set[Stage] = set()
    waits: set[Stage] = set()
    for stage, node in plan.items():
        entry = status.stage(stage) if status is not None else None
        changes: tuple[str, ...] = ()
        if entry is not None and entry.fields and entry.key not in (None, node.key) and node.fields:
            changes = tuple(node.changes_since(entry.fields))
        if done[stage]:
            forecasts.append(Forecast(stage, "skip", "is done", node.key))
            continue
        if node.waiting:
            waits.add(stage)
            forecasts.append(Forecast(stage, "wait", f"waits for {', '.join(node.waiting)}", None))
            continue
        stuck = [up for up in node.upstream if up in waits]
        if stuck:
            waits.add(stage)
            forecasts.append(Forecast(stage, "wait", f"needs {', '.join(stuck)}, which waits", None))
            continue
        runs.add(stage)
        forecasts.append(Forecast(stage, "run", _why(entry, node.key, changes), node.key, changes))
    return forecasts


def _why(entry: Any, key: str | None, changes: tuple[str, ...]) -> str:
    if len(changes) > 1:
        return f"{len(changes)} changes"  # each is told on a line of its own
    if changes:
        return changes[0] if changes[0].endswith(" changed") else f"changed: {changes[0]}"
    if entry is None or entry.key is None:
        return "was never run"
    if entry.key == key and entry.state.is_active:
        return f"is running (attempt {entry.attempt})"
    if entry.key == key and entry.state in (StageState.SUSPENDED, StageState.PENDING):
        return "goes on from its checkpoint"
    if entry.key == key:
        return "failed before, tries again"
    return "was never run with these settings"
