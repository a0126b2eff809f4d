"""Reads TrainingPipelines with no more requests than it must."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.codes.command import UNKNOWN_PIPELINE
from zhongjing.errors import ConfigError

RECENT_SECONDS = 0.5
"""A command that shows a run asks for its parts one after the other: they are of one object."""


class PipelineReader:
    """The TrainingPipelines of a release.

    Args:
        api: its namespace is the release's.
        release: name of the release.
    """

    def __init__(self, api: KubeApi, release: str) -> None:
        self._pipelines = Pipelines(api)
        self._mine = (None, release)
        self._recent: tuple[float, Pipeline] | None = None
        self._still: dict[str, Pipeline] | None = None

    def mine(self) -> list[Pipeline]:
        """The pipelines of the release, and those that no release has taken up yet."""
        if self._still is not None:
            return list(self._still.values())
        found, _ = self._pipelines.find()
        return [each for each in found if (each.managed_by or each.release) in self._mine]

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """While entered, all pipelines are seen as they were at its beginning, by one request."""
        self._still = {each.name: each for each in self.mine()}
        try:
            yield
        finally:
            self._still = None

    def get(self, name: str, *, recent: bool = False) -> Pipeline | None:
        """A pipeline, or None if there is none.

        Args:
            name: of the pipeline.
            recent: whether an object that was just read will do.
        """
        if self._still is not None:
            return self._still.get(name)
        if recent and self._recent is not None:
            seen, pipeline = self._recent
            if pipeline.name == name and time.monotonic() - seen < RECENT_SECONDS:
                return pipeline
        found = self._pipelines.get(name)
        if found is None:
            self._recent = None
        else:
            self.take(found)
        return found

    def there(self, name: str) -> Pipeline:
        """A pipeline that must be there.

        Raises:
            ConfigError: it is not.
        """
        found = self.get(name)
        if found is None:
            raise ConfigError(
                f"there is no pipeline {name!r}",
                code=UNKNOWN_PIPELINE,
                remedy="`zhongjing status` lists them",
            )
        return found

    def take(self, pipeline: Pipeline) -> None:
        """Goes on with the object that a write returned."""
        self._recent = (time.monotonic(), pipeline)
