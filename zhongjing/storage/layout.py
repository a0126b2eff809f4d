"""Where everything stands in the object store: the one place that knows the names.

::

    <root>/<namespace>/<pipeline>/pipeline.json                 desired state (written by submit)
                                 /status.json                   status (written by the reconciler)
                                 /<stage>/current.json          which result is in use (If-Match)
                                 /<stage>/<key>/manifest.json   completion: written last, If-None-Match
                                               /model/          Hugging Face or PEFT format
                                               /checkpoints/step-N/
                                               /progress.json   /metrics/part-N.jsonl   /metrics.jsonl
                                               /requests/aN.json   /stop/aN.json   /logs/   /curves/
                                               /quarantine.jsonl
    <root>/<namespace>/cache/tokens/<key>/                      token shards; parts/ while they are made
    <root>/<namespace>/cache/bases/<key>/                       bases made once (tiny, delta + root, uploads)
    <root>/<namespace>/sources/<key>/                           sources that construct made
    <root>/<namespace>/uploads/<sha256>/<file name>             local sources, content addressed
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zhongjing.config.stages import Stage

_RESULT = re.compile(rf"/({'|'.join(Stage)})/[0-9a-z]+/(?:manifest\.json$|model(?:/|$))")


class _Below:
    """An object or folder of that name in the folder of a layout; no trailing slash."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layout: StageLayout, owner: object = None) -> str:
        return f"{layout.root}/{self._name}"


@dataclass(frozen=True)
class StageLayout:
    """URIs of one run of one stage; ``root`` is ``.../<stage>/<key>``, without a trailing slash."""

    root: str

    manifest = _Below("manifest.json")  # completion and lineage (StageManifest)
    model = _Below("model")
    checkpoints = _Below("checkpoints")
    progress = _Below("progress.json")  # live (Progress)
    precision = _Below("precision.json")  # what "precision: auto" became at the first attempt
    metrics = _Below("metrics.jsonl")  # of the finished stage
    quarantine = _Below("quarantine.jsonl")  # records that could not be read: source, position, reason
    logs = _Below("logs")
    curves = _Below("curves")

    def metrics_part(self, part: int) -> str:
        """One flushed piece of the metric points of the running stage."""
        return f"{self.root}/metrics/part-{part:05d}.jsonl"

    def checkpoint(self, step: int) -> str:
        """Folder of the checkpoint of optimizer step ``step``."""
        return f"{self.checkpoints}/step-{step:08d}"

    def request(self, attempt: int) -> str:
        """What a job is asked to do (:class:`zhongjing.storage.manifest.StageRequest`)."""
        return f"{self.root}/requests/a{attempt}.json"

    def stop(self, attempt: int) -> str:
        """Exists when attempt ``attempt`` should stop with a checkpoint."""
        return f"{self.root}/stop/a{attempt}.json"


@dataclass(frozen=True)
class Layout:
    """URIs of one pipeline. ``root`` is ``spec.storage.uri``."""

    root: str
    namespace: str
    pipeline: str

    @property
    def home(self) -> str:
        """Folder of the pipeline."""
        return f"{self.root.rstrip('/')}/{self.namespace}/{self.pipeline}"

    @property
    def desired(self) -> str:
        """The desired state (:class:`zhongjing.pipeline.state.DesiredState`)."""
        return f"{self.home}/pipeline.json"

    @property
    def status(self) -> str:
        """The status (:class:`zhongjing.pipeline.state.PipelineStatus`)."""
        return f"{self.home}/status.json"

    def stage(self, stage: Stage, key: str) -> StageLayout:
        """URIs of the run of ``stage`` with ``key``."""
        return StageLayout(f"{self.home}/{stage.value}/{key}")

    def current(self, stage: Stage) -> str:
        """Which result of ``stage`` is in use: ``{"key": ..., "manifestUri": ...}``."""
        return f"{self.home}/{stage.value}/current.json"

    @property
    def cache(self) -> str:
        """Folder of the namespace's shared caches."""
        return f"{self.root.rstrip('/')}/{self.namespace}/cache"

    def tokens(self, key: str) -> str:
        """Folder of a token cache."""
        return f"{self.cache}/tokens/{key}"

    def base(self, key: str) -> str:
        """Folder of a base model that was made or uploaded once."""
        return f"{self.cache}/bases/{key}"

    def source(self, key: str) -> str:
        """Folder of a source that was made, shared by the namespace's pipelines."""
        return f"{self.root.rstrip('/')}/{self.namespace}/sources/{key}"

    def upload(self, sha256: str, file_name: str) -> str:
        """A local source file, addressed by its content."""
        return f"{self.root.rstrip('/')}/{self.namespace}/uploads/{sha256[:32]}/{file_name}"


def made_by(uri: str) -> Stage | None:
    """The stage whose result an object is part of: its manifest or its model."""
    found = _RESULT.search(uri)
    return Stage(found.group(1)) if found else None
