"""A pipeline in a store in memory, its world, and a reconciler that is driven by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from tests.unit.pipeline.support import LAYOUT, Cluster, MemoryStore, desired_state, user_document
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.fit import Gate
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence, Reconciler
from zhongjing.pipeline.records import read_status, write
from zhongjing.pipeline.state import Condition, PipelineStatus, StageStatus

POLICY = Policy(quiet_seconds=3, backoff_seconds=2, hung_stop_seconds=4, stop_seconds=10)

C = TypeVar("C", bound=Cluster)


class World(Generic[C]):
    """A pipeline and all that its reconciler sees.

    Args:
        cluster: runs jobs, with its store.
        stages: of the document.
        waiting: sources that are not there yet.
        spec: fields of the document's spec.
        settings: of the stage sft.
    """

    def __init__(
        self,
        cluster: C,
        *,
        stages: Sequence[str] = ("sft",),
        waiting: Sequence[str] = (),
        spec: Mapping[str, Any] | None = None,
        gate: Gate | None = None,
        cadence: Cadence | None = None,
        **settings: Any,
    ) -> None:
        self.cluster = cluster
        self.memory: MemoryStore = cluster.store
        self.store = cast(Any, self.memory)
        self.stages, self.spec, self.settings = stages, dict(spec or {}), settings
        self.want(waiting=waiting)
        self.restart(gate=gate, cadence=cadence)

    def restart(self, **options: Any) -> None:
        """Another reconciler takes over."""
        self.reconciler = Reconciler(self.store, LAYOUT, self.cluster, policy=POLICY, **options)

    def want(
        self, generation: int = 1, *, suspend: bool = False, waiting: Sequence[str] = (), **settings: Any
    ) -> None:
        """Writes the desired state; ``settings`` of the stage sft are added to those that it has."""
        self.settings |= settings
        user = user_document(stages=self.stages, wait=waiting, sft=self.settings)
        user["spec"] |= self.spec
        desired = desired_state(user, generation=generation, suspend=suspend, waiting=waiting)
        head = self.memory.head(LAYOUT.desired)
        write(self.store, LAYOUT.desired, desired, head.etag if head else None)

    def once(self, blocked_by: str | None = None) -> float | None:
        """One second, and a pass."""
        self.cluster.tick()
        return self.reconciler.once(self.cluster.now, blocked_by)

    def run(self, seconds: int, blocked_by: str | None = None) -> PipelineStatus:
        """A pass a second."""
        for _ in range(seconds):
            self.once(blocked_by)
        return self.status()

    def away(self, seconds: int) -> StageStatus:
        """A pass a second, of which some tell that the backend lacks something."""
        for _ in range(seconds):
            with suppress(BackendUnavailableError):
                self.once()
        return self.stage()

    def status(self) -> PipelineStatus:
        found = read_status(self.store, LAYOUT)
        assert found is not None
        return found.value

    def stage(self) -> StageStatus:
        return self.status().stage(Stage.SFT)

    def condition(self) -> Condition:
        return condition_of(self.status())


def condition_of(status: PipelineStatus) -> Condition:
    """The condition that holds."""
    found = status.condition()
    assert found is not None
    return found


def new_world(**options: Any) -> World[Cluster]:
    """A pipeline on a cluster that does as it is asked."""
    return World(Cluster(MemoryStore()), **options)
