"""What all checks know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.children import Children

if TYPE_CHECKING:
    from zhongjing.cli.target import ClusterTarget
    from zhongjing.config.pipeline import TrainingPipeline
    from zhongjing.config.sources import Storage


@dataclass(frozen=True)
class Situation:
    """What was asked for.

    Attributes:
        local: whether runs are meant to happen on this machine.
        workdir: of local runs; need not exist.
        children: runs the child processes.
        cluster: the release to look at; none without a kubeconfig, and with ``local``.
        storage: the object store to try; none where none was named, and with ``local`` the workdir's.
        document: the document to hold against this machine or the cluster.
        origin: the document's file.
        deep: whether a Ray is started to try it.
        environment: of the command.
    """

    local: bool
    workdir: Path
    children: Children
    cluster: ClusterTarget | None = None
    storage: Storage | None = None
    document: TrainingPipeline | None = None
    origin: str = ""
    deep: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
