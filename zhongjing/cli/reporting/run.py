"""What the store and the session know of a run: documents, manifests, metrics, logs of every attempt.

Everything is read through a session, so that the same serves a workdir and a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zhongjing.cli.reporting.bundle import LOG_BYTES, Bundle
from zhongjing.cli.reporting.streams import Readable, joined, stored_object
from zhongjing.cli.reporting.structured import metric_line, quarantine_line
from zhongjing.errors import NotFoundError, StorageUnavailableError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.config.stages import Stage
    from zhongjing.pipeline.session import Session
    from zhongjing.pipeline.state import PipelineStatus
    from zhongjing.storage.objects import ObjectInfo

METRICS_BYTES = 50 * 2**20
QUARANTINE_BYTES = 2 * 2**20

_DOCUMENTS = re.compile(
    r"[^/]+/(?:current\.json"
    r"|[^/]+/(?:manifest|progress)\.json"
    r"|[^/]+/(?:requests|stop)/[^/]+\.json"
    r"|[^/]+/checkpoints/[^/]+/manifest\.json)"
)
_LOGS = re.compile(r"[^/]+/[^/]+/logs/.+\.(?:log|txt)")
_METRICS = re.compile(r"([^/]+/[^/]+)/metrics(?:\.jsonl|/part-\d+\.jsonl)")
_QUARANTINE = re.compile(r"[^/]+/[^/]+/quarantine\.jsonl")
_DRIVER = re.compile(r"([^/]+)/[^/]+/logs/driver-a(\d+)\.log")


@dataclass(frozen=True, slots=True)
class _Object:
    name: str  # below the pipeline's folder
    info: ObjectInfo


def collect_run(bundle: Bundle, session: Session, name: str, kept_drivers: Iterable[str]) -> None:
    """Packs what is stored of a pipeline. Weights, token shards and sources are only listed.

    Args:
        bundle: what is filled.
        session: through which the run is read.
        name: the pipeline.
        kept_drivers: submission ids whose driver's log was packed from elsewhere.

    Raises:
        StorageUnavailableError: the store does not answer (any more).
    """
    _record(bundle, "pipeline.json", lambda: session.desired(name), session, session.layout(name).desired)
    status = _record(
        bundle, "status.json", lambda: session.status(name), session, session.layout(name).status
    )
    home = session.layout(name).home
    objects = [_Object(info.uri.removeprefix(f"{home}/"), info) for info in session.store.list(home)]
    bundle.text("objects.txt", _listing(objects, home))
    readable = {each.name: stored_object(session.store, each.info) for each in objects}
    for each in objects:
        if _DOCUMENTS.fullmatch(each.name):
            bundle.document(f"run/{each.name}", readable[each.name])
        elif _QUARANTINE.fullmatch(each.name):
            bundle.lines(f"run/{each.name}", readable[each.name], QUARANTINE_BYTES, quarantine_line)
    for folder, parts in _metrics(readable).items():
        bundle.lines(f"run/{folder}/metrics.jsonl", joined(parts), METRICS_BYTES, metric_line)
    logs = [each for each in objects if _LOGS.fullmatch(each.name)]
    for each in sorted(logs, key=lambda each: each.info.last_modified, reverse=True):
        bundle.log(f"run/{each.name}", readable[each.name])
    if status is not None:
        for stage, attempt in _without_log(status, objects, set(kept_drivers)):
            _collect_driver(bundle, session, name, stage, attempt)


def _record(bundle: Bundle, name: str, read: Callable[[], Any], session: Session, uri: str) -> Any:
    """A record through the session; if it is damaged or of another release, as it lies in the store."""
    try:
        record = read()
    except StorageUnavailableError:
        raise
    except ZhongjingError as error:
        bundle.gap(name, error)
        info = session.store.head(uri)
        if info is not None:
            bundle.document(name, stored_object(session.store, info))
        return None
    if record is None:
        bundle.gap(name, "there is none")
    else:
        bundle.json(name, record.model_dump(mode="json", by_alias=True))
    return record


def _metrics(readable: dict[str, Readable]) -> dict[str, list[Readable]]:
    """Metrics by folder: the finished file if there is one, else the parts of a stage that runs."""
    found: dict[str, list[Readable]] = {}
    for name in sorted(readable):
        match = _METRICS.fullmatch(name)
        if match is not None and (
            name.endswith("/metrics.jsonl") or f"{match[1]}/metrics.jsonl" not in readable
        ):
            found.setdefault(match[1], []).append(readable[name])
    return found


def _listing(objects: list[_Object], home: str) -> str:
    lines = [f"what lies below {home}: bytes, last change (UTC), name; weights are listed, never packed", ""]
    lines += [
        f"{each.info.size:>14}  {each.info.last_modified:%Y-%m-%dT%H:%M:%SZ}  {each.name}" for each in objects
    ]
    return "\n".join([*lines, ""])


def _without_log(
    status: PipelineStatus, objects: list[_Object], kept_drivers: set[str]
) -> list[tuple[Stage, int]]:
    """Attempts that did not come to store their log: they run, or were killed."""
    stored = {(match[1], int(match[2])) for each in objects if (match := _DRIVER.fullmatch(each.name))}
    found: list[tuple[Stage, int]] = []
    for stage, entry in status.stages.items():
        prefix = (entry.submission_id or "").rpartition("-a")[0]
        for attempt in range(1, entry.attempt + 1):
            if (stage.value, attempt) not in stored and f"{prefix}-a{attempt}" not in kept_drivers:
                found.append((stage, attempt))
    return found


def _collect_driver(bundle: Bundle, session: Session, name: str, stage: Stage, attempt: int) -> None:
    member = f"run/{stage}/driver-a{attempt}.log"
    try:
        bundle.live_log(member, session.logs(name, stage, attempt=attempt), LOG_BYTES)
    except NotFoundError:
        bundle.gap(member, "no log of this attempt was kept: it was killed, and its Ray with it")
    except StorageUnavailableError:
        raise
    except ZhongjingError as error:
        bundle.gap(member, error)
