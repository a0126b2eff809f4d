"""From a TrainingPipeline object to the desired state: resolved, checked, sources frozen, once a generation.

The result is kept as ``pipeline.json`` in the store, so that etcd never holds a listing, a restart of the
controller lists nothing again, and a release with other defaults re-runs nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from zhongjing.backends.kubernetes.trainingpipeline import REFRESH_ANNOTATION, Pipeline
from zhongjing.codes.cluster import LOCAL_PATH, RESERVED_NAME
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import resolve
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import freeze, local_references
from zhongjing.pipeline.plan import known_sources
from zhongjing.pipeline.prepare import defaults_of
from zhongjing.pipeline.records import Versioned, read_desired, write
from zhongjing.pipeline.state import DesiredState, PipelineStatus, placed, stamp
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

RESERVED = frozenset({"cache", "uploads", "ray"})
"""Folders beside the pipelines' own: deleting the artifacts of such a pipeline would delete them."""

_REMOTE = ("s3", "hf")
_REQUEST = re.compile(rf"/({'|'.join(Stage)})/[0-9a-z]+/requests/a(\d+)\.json$")


class Specs:
    """Makes and remembers the desired state of each pipeline.

    ``storage`` is the section that documents get: the release decides where artifacts are.
    """

    def __init__(self, store: ObjectStore, storage: Storage) -> None:
        self._store = store
        self._storage = storage
        self._known: dict[str, tuple[int, DesiredState]] = {}

    def layout(self, pipeline: Pipeline) -> Layout:
        """Where the pipeline's objects are in the store."""
        return Layout(self._storage.uri, pipeline.namespace, pipeline.name)

    def forget(self, uid: str) -> None:
        """Lets go of a pipeline that is gone."""
        self._known.pop(uid, None)

    def desired(self, pipeline: Pipeline, status: PipelineStatus | None, now: float) -> DesiredState:
        """The desired state of the object's generation.

        Args:
            pipeline: the object.
            status: has the late sources of its earlier generations.
            now: seconds since the epoch.

        Raises:
            ZhongjingError: the document cannot be run (ConfigError, DataError: it must be corrected), or the
                store did not answer (StorageUnavailableError).
        """
        found = self._known.get(pipeline.uid)
        if found is not None and found[0] == pipeline.generation:
            return found[1]
        layout = self.layout(pipeline)
        if pipeline.name in RESERVED:
            raise ConfigError(
                f"a pipeline cannot be called {pipeline.name!r}", code=RESERVED_NAME, where="metadata.name"
            )
        stored = read_desired(self._store, layout)
        previous = self._of(pipeline, stored)
        if previous is not None and previous.generation == pipeline.generation:
            desired = previous
        else:
            desired = self._make(pipeline, layout, previous, status, now)
            write(self._store, layout.desired, desired, stored.etag if stored is not None else None)
            logger.info("%s: generation %d accepted", pipeline.name, pipeline.generation)
        self._known[pipeline.uid] = (pipeline.generation, desired)
        return desired

    def previous(self, pipeline: Pipeline) -> DesiredState | None:
        """The last desired state of this very object in the store, of any generation."""
        return self._of(pipeline, read_desired(self._store, self.layout(pipeline)))

    def attempts(self, pipeline: Pipeline) -> dict[Stage, int]:
        """The highest attempt of each stage that any pipeline of this name ever made.

        Attempts of an object that was deleted and made again go on counting: a stop that was meant for an
        attempt of the old one must never reach one of the new.
        """
        highest: dict[Stage, int] = {}
        for info in self._store.list(self.layout(pipeline).home):
            made = _REQUEST.search(info.uri)
            if made is not None:
                stage = Stage(made[1])
                highest[stage] = max(highest.get(stage, 0), int(made[2]))
        return highest

    def _of(self, pipeline: Pipeline, stored: Versioned[DesiredState] | None) -> DesiredState | None:
        """What is stored of this object, with today's storage: an upgrade may have moved the endpoint."""
        if stored is None or stored.value.uid != pipeline.short_uid:
            return None
        document = placed(stored.value.document, pipeline.namespace, self._storage)
        return stored.value.model_copy(update={"document": document})

    def _make(
        self,
        pipeline: Pipeline,
        layout: Layout,
        previous: DesiredState | None,
        status: PipelineStatus | None,
        now: float,
    ) -> DesiredState:
        user = pipeline.document()
        resolved = resolve(user, frozen=defaults_of(previous), submitted=True)
        document = placed(resolved, pipeline.namespace, self._storage)
        _refuse_local_paths(document)
        graph.check(document)
        targets = graph.targets(document)
        known = {} if _refreshes(user, previous) else known_sources(previous, status)
        frozen = freeze(self._store, layout, document, known=known)
        for note in frozen.notes:
            logger.info("%s: %s", pipeline.name, note)
        return DesiredState(
            namespace=pipeline.namespace,
            pipeline=pipeline.name,
            uid=pipeline.short_uid,
            generation=pipeline.generation,
            user=user,
            document=document,
            sources=frozen.sources,
            waiting=frozen.waiting,
            references=frozen.references,
            targets=targets,
            reruns=dict(document.spec.reruns),
            suspend=document.spec.suspend,
            created_at=pipeline.created,
            updated_at=stamp(now),
        )


def _refreshes(user: Mapping[str, Any], previous: DesiredState | None) -> bool:
    """Whether the user asked that sources are listed anew, since the last generation."""
    before = previous.user["metadata"] if previous is not None else {}
    wanted = user["metadata"]["annotations"].get(REFRESH_ANNOTATION)
    return wanted is not None and wanted != (before.get("annotations") or {}).get(REFRESH_ANNOTATION)


def _refuse_local_paths(document: TrainingPipeline) -> None:
    for index, source in enumerate(document.spec.sources):
        scheme, separator, _ = source.place.partition("://")
        if not separator or scheme not in _REMOTE:
            raise ConfigError(
                f"{source.uri} is not on the network", code=LOCAL_PATH, where=f"spec.sources[{index}].uri"
            )
    for reference, where in local_references(document):
        raise ConfigError(f"{reference} is a path", code=LOCAL_PATH, where=where)
