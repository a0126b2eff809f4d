"""What all pipelines of a controller share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.controller.fencing import FencedBackend
from zhongjing.controller.outage import Outage
from zhongjing.controller.spec import Specs
from zhongjing.pipeline.fit import Gate
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.pipeline.state import PipelineStatus
from zhongjing.storage.objects import ObjectStore


@dataclass(frozen=True)
class Services:
    """What all pipelines of a controller share.

    ``may_act`` says whether this process still leads. ``on_change`` is called after a write with the object,
    its status before and its status after.
    """

    pipelines: Pipelines
    store: ObjectStore
    outage: Outage
    specs: Specs
    backend: FencedBackend
    gate: Gate
    release: str
    policy: Policy
    cadence: Cadence
    may_act: Callable[[], bool]
    on_change: Callable[[Pipeline, PipelineStatus, PipelineStatus], None]
