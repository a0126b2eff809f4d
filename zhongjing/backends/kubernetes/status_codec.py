"""A pipeline's status as the status of a TrainingPipeline object, and back.

What the sequencer needs to go on stands in it in full: ``decode(encode(status)) == status``. Beside that
stands what people read: columns for ``kubectl get``, live progress, the resolved document. Listings of
sources stay in the object store: etcd takes 1.5 MiB an object, and a listing may have ten thousand entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.alias_generators import to_camel

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.config.stages import Stage
from zhongjing.pipeline.headline import describe, duration
from zhongjing.pipeline.state import (
    RUNNING,
    Condition,
    ConditionType,
    PipelineStatus,
    StageState,
    StageStatus,
)
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, MixtureCounts, Record, SourceCounts
from zhongjing.storage.progress import Activity, Progress

MESSAGE_CHARACTERS = 4096
"""Messages are cut to so many characters: some hold the end of a log."""

_METRICS = 32


@dataclass(frozen=True)
class Extras:
    """What a TrainingPipeline's status has beside a :class:`PipelineStatus`."""

    release: str  # which release took the pipeline up
    targets: Sequence[Stage] = ()  # stages asked for
    resolved: Object | None = None  # the resolved `spec`; None while there is none
    # Progress of stages, from :func:`live_progress`.
    live: Mapping[Stage, Object] = field(default_factory=dict)
    layout: Layout | None = None  # where the listings of late sources are; needed where there are any


def encode(status: PipelineStatus, extras: Extras) -> Object:
    """The ``status`` of a TrainingPipeline."""
    condition = status.condition()
    complete = condition is not None and condition.type is ConditionType.COMPLETE
    value: Object = {
        "release": extras.release,
        "observedGeneration": status.observed_generation,
        **columns(status, extras),
        "startTime": status.started_at,
        "completionTime": condition.since if condition is not None and complete else None,
        "failures": status.failures,
        "updatedAt": status.updated_at,
        "conditions": [_condition(each, status.observed_generation) for each in status.conditions],
        "stages": {
            stage.value: _stage(entry, extras.live.get(stage)) for stage, entry in status.stages.items()
        },
        "sources": [_late(source, extras.layout) for source in status.sources],
        "resolvedSpec": extras.resolved,
    }
    return {key: each for key, each in value.items() if each not in (None, [], {})}


def decode(value: Mapping[str, Any], uid: str, load: Callable[[str], FrozenSource]) -> PipelineStatus:
    """The status that was encoded.

    Raises:
        StorageError: a listing cannot be read.
    """
    stages = {
        Stage(name): StageStatus.model_validate(_known(StageStatus, each))
        for name, each in (value.get("stages") or {}).items()
    }
    return PipelineStatus(
        uid=uid,
        observed_generation=int(value.get("observedGeneration") or 0),
        conditions=[_read_condition(each) for each in value.get("conditions") or []],
        stages=stages,
        sources=[load(str(each["listingUri"])) for each in value.get("sources") or []],
        started_at=value.get("startTime"),
        failures=int(value.get("failures") or 0),
        updated_at=str(value.get("updatedAt") or ""),
    )


def decode_live(value: Mapping[str, Any]) -> dict[Stage, Object]:
    """The live progress that stands in a status. Stages that only a newer release knows are passed over."""
    stages = value.get("stages") or {}
    return {
        Stage(name): each["progress"]
        for name, each in stages.items()
        if each.get("progress") and name in set(Stage)
    }


def progress_of(live: Mapping[str, Any], stage: Stage, entry: StageStatus) -> Progress:
    """Progress, as far as :func:`live_progress` told it; what a newer release adds is passed over."""
    known = live.get("activity") in set(Activity)
    fields = {
        "stage": stage,
        "key": entry.key or "",
        "attempt": entry.attempt,
        "activity": live["activity"] if known else Activity.STARTING,
        "sources": [{"digest": ""} | _known(SourceCounts, each) for each in live.get("sources") or []],
        "mixture": [_known(MixtureCounts, each) for each in live.get("mixture") or []],
    }
    return Progress.model_validate(_known(Progress, live) | fields)


def _known(kind: type[Record], value: Mapping[str, Any]) -> Object:
    """The fields of a record that this release has: a newer one may have written more."""
    names = [to_camel(name) for name in kind.model_fields]
    return {name: value[name] for name in names if name in value}


def live_progress(progress: Progress) -> Object:
    """What a status tells of a stage's progress."""
    finite = {name: each for name, each in progress.metrics.items() if math.isfinite(each)}
    value: Object = {
        "activity": progress.activity.value,
        "step": progress.step,
        "totalSteps": progress.total_steps,
        "percent": _percent(progress),
        "etaSeconds": _eta(progress),
        "metrics": dict(list(finite.items())[:_METRICS]),
        "message": _cut(progress.message),
        "sources": [_counts(each) for each in progress.sources],
        "mixture": [each.model_dump(mode="json") for each in progress.mixture],
        "warnings": [_cut(each) for each in progress.warnings],
        "updatedAt": progress.updated_at,
    }
    return {key: each for key, each in value.items() if each not in (None, "", {}, [])}


def _counts(source: SourceCounts) -> Object:
    empty = {name for name in ("unused", "layouts", "tied") if not getattr(source, name)}
    return source.model_dump(mode="json", exclude={"digest", *empty})


def _percent(progress: Progress) -> int | None:
    """How much of the stage is done, in whole percent; None while its length is unknown."""
    if progress.activity is Activity.DONE:
        return 100
    if progress.total_steps <= 0:
        return None
    return min(100, int(100 * progress.step / progress.total_steps))


def listing_uri(layout: Layout, source: FrozenSource) -> str:
    """Where the listing of a late source is kept, addressed by its content."""
    return f"{layout.home}/sources/{source.name}-{source.digest}.json"


def columns(status: PipelineStatus, extras: Extras) -> Object:
    """What ``kubectl get tp`` shows: targets, stage, state, progress, eta, metric. All are text."""
    condition = status.condition()
    state = "Pending"
    if condition is not None:
        progressing = condition.type is ConditionType.PROGRESSING
        state = condition.reason if progressing else condition.type.value
    value = {"targets": ",".join(extras.targets), "state": state}
    stage = _shown(status)
    if stage is None:
        return value
    entry = status.stage(stage)
    live = extras.live.get(stage) or {}
    value["stage"] = stage.value
    if entry.state.is_done:
        value["progress"] = "100%"
    elif "percent" in live:
        value["progress"] = f"{live['percent']}%"
    # Without its workers no time of arrival holds.
    if entry.state is StageState.RUNNING and state == RUNNING and "etaSeconds" in live:
        value["eta"] = duration(float(live["etaSeconds"]))
    if live.get("metrics"):
        value["metric"] = describe(stage, live["metrics"], limit=1)
    return value


def _shown(status: PipelineStatus) -> Stage | None:
    """The stage that a line about the pipeline is about: the active one, a failed one, the next, the last."""

    def rank(stage: Stage) -> int:
        state = status.stage(stage).state
        if state.is_active:
            return 0
        return {StageState.FAILED: 1, StageState.BLOCKED: 3}.get(state, 2)

    stages = [stage for stage in Stage if stage in status.stages]
    left = [stage for stage in stages if not status.stage(stage).state.is_done]
    return min(left, key=rank) if left else next(reversed(stages), None)


def _eta(progress: Progress) -> int | None:
    left = progress.eta_seconds
    return max(0, round(left)) if left is not None and math.isfinite(left) else None


def _condition(condition: Condition, generation: int) -> Object:
    value = condition.model_dump(mode="json", exclude={"since"}, exclude_none=True)
    return _bounded(value) | {
        "status": str(condition.status),
        "lastTransitionTime": condition.since,
        "observedGeneration": generation,
    }


def _read_condition(value: Mapping[str, Any]) -> Condition:
    read = {"status": value["status"] == "True", "since": value.get("lastTransitionTime") or ""}
    return Condition.model_validate(_known(Condition, value) | read)


_DEFAULTS = StageStatus().model_dump(mode="json")
_SAID = ("state", "attempt")  # always there, for those who read the object with jsonpath


def _stage(entry: StageStatus, live: Object | None) -> Object:
    dumped = entry.model_dump(mode="json")
    value = {name: each for name, each in dumped.items() if name in _SAID or each != _DEFAULTS[name]}
    return _bounded(value) | ({} if live is None else {"progress": live})


def _bounded(value: Object) -> Object:
    """The same with its messages cut."""
    texts = [name for name in ("message", "remedy") if isinstance(value.get(name), str)]
    return value | {name: _cut(value[name]) for name in texts}


def _late(source: FrozenSource, layout: Layout | None) -> Object:
    assert layout is not None, "late sources need a place for their listings"
    return {
        "name": source.name,
        "digest": source.digest,
        "objects": len(source.objects),
        "listingUri": listing_uri(layout, source),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 3] + "..."
