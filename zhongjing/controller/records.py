"""The two documents of a pipeline on Kubernetes: the TrainingPipeline and its status."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.status_codec import (
    Extras,
    decode,
    decode_live,
    encode,
    listing_uri,
    live_progress,
)
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.codes.cluster import UNREADABLE_STATUS
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.stages import Stage
from zhongjing.controller.services import Services
from zhongjing.errors import ConflictError, StorageError
from zhongjing.pipeline.records import Versioned
from zhongjing.pipeline.state import DesiredState, PipelineStatus, StageStatus
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource
from zhongjing.storage.progress import Progress

logger = logging.getLogger(__name__)


class KubernetesRecords:
    """The desired state and the status of one pipeline; the resource version is the fence."""

    def __init__(self, services: Services, layout: Layout, pipeline: Pipeline) -> None:
        self._services = services
        self._layout = layout
        self._late: dict[str, FrozenSource] = {}
        self._live: dict[Stage, Object] = {}
        self._desired: DesiredState | None = None
        self._refused = False
        self._seed: Mapping[Stage, int] = {}
        self._sent: tuple[str, Object] = ("", {})
        self._decoded: tuple[str, PipelineStatus] | None = None  # with the version that it is of
        self._unknown: frozenset[str] = frozenset()
        self.has_news = False
        """Whether live progress was noted that no status says yet."""
        self.use(pipeline)

    def use(self, pipeline: Pipeline) -> None:
        """Goes on with another version of the object."""
        self.pipeline = pipeline
        there = pipeline.status.get("stages") or {}
        noted = {stage: live for stage, live in self._live.items() if stage.value in there}
        self._live = decode_live(pipeline.status) | noted

    def want(self, desired: DesiredState | None) -> None:
        """Sets what :meth:`desired` says; None where the document cannot be run."""
        self._desired = desired
        self._refused = desired is None

    def see(self, stage: Stage, progress: Progress) -> None:
        """Takes note of live progress for the next write; :meth:`tell` makes one."""
        live = live_progress(progress)
        before = self._live.get(stage, {})
        self._live[stage] = live
        said = ("activity", "step", "totalSteps", "metrics", "message", "sources", "warnings")
        self.has_news = self.has_news or any(live.get(name) != before.get(name) for name in said)

    def count_from(self, attempts: Mapping[Stage, int]) -> None:
        """Sets the attempts that new ones are counted from, where the status knows of none."""
        self._seed = attempts

    # Records

    def desired(self) -> DesiredState | None:
        """The desired state."""
        return self._desired

    def status(self) -> Versioned[PipelineStatus] | None:
        """The status, and the resource version of the object.

        Raises:
            StorageError: the listing of a late source cannot be read.
        """
        return Versioned(self.read(), self.pipeline.version)

    def read(self) -> PipelineStatus:
        """The status without its version.

        Raises:
            StorageError: it was edited by hand, or the listing of a late source is gone.
        """
        if self._decoded is None or self._decoded[0] != self.pipeline.version:
            self._decoded = self.pipeline.version, self._decode()
        status = self._decoded[1]
        if status.stages or not self._seed:
            return status
        seeded = {stage: StageStatus(attempt=attempt) for stage, attempt in self._seed.items()}
        return status.model_copy(update={"stages": seeded})

    def _decode(self) -> PipelineStatus:
        try:
            return decode(self.pipeline.status, self.pipeline.short_uid, self._listing)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"the status cannot be read: {' '.join(str(error).split())[:300]}",
                code=UNREADABLE_STATUS,
                where=f"{self.pipeline.namespace}/trainingpipelines/{self.pipeline.name}",
            ) from error

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        """Writes the status.

        Raises:
            ConflictError: another writer was first, or the object is gone.
        """
        assert version == self.pipeline.version, "a status is written over the version that was read"
        before = self.read()
        for source in status.sources:
            self._keep_listing(source)
        self._forget_progress(before, status)
        value = self.encoded(status)
        if self._write(value):
            self._services.on_change(self.pipeline, before, status)
        return self.pipeline.version

    def tell(self) -> None:
        """Writes live progress that was noted since the last write.

        Raises:
            ConflictError: another writer was first, or the object is gone.
        """
        self._write(self.encoded(self.read()))
        self.has_news = False

    def encoded(self, status: PipelineStatus) -> Object:
        """The object's status for ``status``."""
        desired = self._desired
        # Of a document that is refused there is none; until one was looked at, the last one's stays.
        resolved = None if self._refused else self.pipeline.status.get("resolvedSpec")
        targets = _targets(self.pipeline)
        if desired is not None:
            resolved = desired.document.spec.model_dump(mode="json", exclude_none=True)
            targets = desired.targets
        return encode(status, Extras(self._services.release, targets, resolved, self._live, self._layout))

    def _write(self, value: Object) -> bool:
        """Writes a status that says something new; whether it did.

        A definition that is older than this controller leaves out what it does not know: what was sent is
        remembered beside what came back, or the same status would be written in every pass.
        """
        version, sent = self._sent
        known = [self.pipeline.status, *([sent] if version == self.pipeline.version else [])]
        if _said(value) in [_said(each) for each in known]:
            return False
        if not self._services.may_act():
            raise ConflictError("another controller leads now", code=CONFLICT, where=self.pipeline.name)
        self.pipeline = self._services.pipelines.write_status(self.pipeline, value)
        self._sent = (self.pipeline.version, value)
        self.has_news = False
        self._tell_of_unknown(value)
        return True

    def _tell_of_unknown(self, value: Object) -> None:
        unknown = frozenset(_left_out(value, self.pipeline.status))
        if unknown - self._unknown:
            self._unknown |= unknown
            logger.warning(
                "%s: the definition of TrainingPipelines on this cluster is older than the controller, and "
                "its status is kept without %s; upgrade the definition (docs/operations.md, Upgrade)",
                self.pipeline.name,
                ", ".join(sorted(unknown)),
            )

    def _forget_progress(self, before: PipelineStatus, after: PipelineStatus) -> None:
        """A new attempt has made no step yet, whatever the last one did."""
        for stage in list(self._live):
            if before.stage(stage).attempt != after.stage(stage).attempt:
                del self._live[stage]

    def _listing(self, uri: str) -> FrozenSource:
        if uri not in self._late:
            self._late[uri] = self._services.store.get_record(uri, FrozenSource)
        return self._late[uri]

    def _keep_listing(self, source: FrozenSource) -> None:
        uri = listing_uri(self._layout, source)
        if uri not in self._late:
            self._services.store.put_record(uri, source)
            self._late[uri] = source


def _targets(pipeline: Pipeline) -> list[Stage]:
    names = str(pipeline.status.get("targets") or "").split(",")
    return [Stage(name) for name in names if name in set(Stage)]


def _said(status: Mapping[str, object]) -> dict[str, object]:
    """What a status says; when it was written is no news."""
    return {key: value for key, value in status.items() if key != "updatedAt"}


def _left_out(sent: object, kept: object, place: str = "status") -> Iterator[str]:
    """Fields of a status that did not come back."""
    if not isinstance(sent, Mapping) or not isinstance(kept, Mapping):
        return
    for key, value in sent.items():
        if value is not None and key not in kept:
            yield f"{place}.{key}"
        else:
            yield from _left_out(value, kept.get(key), f"{place}.{key}")
