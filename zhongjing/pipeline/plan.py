"""From the desired state to a plan: each stage with its key, its inputs and what it waits for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zhongjing.codes.data import MISSING_INPUT
from zhongjing.config.keys import base_key, digest, explain_change, key_fields, source_digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.errors import MissingInputError
from zhongjing.pipeline.graph import (
    BASE,
    Need,
    closure,
    made_sources,
    needs,
    read_sources,
    required_sources,
    visible_sources,
)
from zhongjing.pipeline.state import DesiredState, PipelineStatus
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, MadeSource, StageInput, StageRequest


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan.

    ``key`` is None while a source, or a stage upstream, is still waited for. ``fields`` is what the key is a
    hash of. ``wanted`` is False for a stage that is only needed: it is not run, it must be done. ``sources``
    are the names of its data, in the document's order; ``made`` of what it is shown that construct makes.
    """

    stage: Stage
    wanted: bool
    needs: tuple[Need, ...]
    waiting: tuple[str, ...]
    key: str | None
    fields: Mapping[str, Any]
    input_keys: Mapping[str, str]
    sources: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    @property
    def upstream(self) -> tuple[Stage, ...]:
        """The stages that this one needs directly."""
        models = tuple(need.stage for need in self.needs if need.stage is not None)
        return (Stage.CONSTRUCT, *models) if self.made else models

    def changes_since(self, fields: Mapping[str, Any]) -> list[str]:
        """What differs from an earlier result, by the fields that its key was a hash of."""
        names: dict[str, str] = {
            need.role: need.stage or ("the base" if need.reference == BASE else need.reference)
            for need in self.needs
        }
        return explain_change(fields, self.fields, names, self.sources)


Plan = dict[Stage, StagePlan]


def make_plan(desired: DesiredState, late: Sequence[FrozenSource] = ()) -> Plan:
    """The stages that ``desired`` needs, in an order in which they can run.

    Args:
        desired: the desired state.
        late: sources that arrived after they were waited for (from the status).

    Raises:
        ConfigError: an input is named wrongly.
    """
    document = desired.document
    sources = frozen_sources(desired, late)
    plan: Plan = {}
    for stage in closure(document, desired.targets):
        seen = visible_sources(document, stage)
        stage_needs = needs(document, stage)
        waiting = tuple(name for name in required_sources(document, stage) if name not in sources)
        digests = {name: _digest(document, stage, sources[name]) for name in seen if name in sources}
        input_keys = {need.role: _input_key(desired, need, plan, digests) for need in stage_needs}
        known: dict[str, str] = {role: key for role, key in input_keys.items() if key is not None}
        fields: dict[str, Any] = {}
        key = None
        if not waiting and len(known) == len(input_keys):
            rerun = desired.reruns.get(stage, 0)
            fields = key_fields(document, stage, digests, known, rerun)
            key = digest(fields)
        names = tuple(read_sources(document, stage))
        made = () if stage is Stage.CONSTRUCT else tuple(made_sources(document, stage))
        wanted = stage in desired.targets
        plan[stage] = StagePlan(stage, wanted, stage_needs, waiting, key, fields, known, names, made)
    return plan


def _digest(document: TrainingPipeline, stage: Stage, frozen: FrozenSource) -> str:
    if stage is Stage.CONSTRUCT:
        return frozen.digest
    return source_digest(document.spec.source(frozen.name), frozen.digest)


def frozen_sources(desired: DesiredState, late: Sequence[FrozenSource] = ()) -> dict[str, FrozenSource]:
    """All frozen sources by name; one that arrived late counts when it was still waited for."""
    found = {source.name: source for source in late if source.name in desired.waiting}
    return {**found, **{source.name: source for source in desired.sources}}


def known_sources(
    previous: DesiredState | None, status: PipelineStatus | None
) -> dict[str, tuple[str, FrozenSource]]:
    """Sources frozen before, with their URIs: a pipeline reads the same objects in every re-run."""
    if previous is None:
        return {}
    uris = {source.name: source.place for source in previous.document.spec.sources}
    late = status.sources if status is not None else []
    return {
        name: (uris[name], source) for name, source in frozen_sources(previous, late).items() if name in uris
    }


def _input_key(desired: DesiredState, need: Need, plan: Plan, digests: Mapping[str, str]) -> str | None:
    if need.stage is not None:
        return plan[need.stage].key
    references = {reference.reference: reference for reference in desired.references}
    if need.reference == BASE:
        named = _base_references(desired.document)
        folders = {name: references[each].digest for name, each in named.items() if each in references}
        return base_key(desired.document, digests, folders)
    frozen = references.get(need.reference)
    return frozen.digest[:16] if frozen else digest({"reference": need.reference})


def _base_references(document: TrainingPipeline) -> dict[str, str]:
    """What the document's base names that may be a folder of this machine, by field."""
    base = document.spec.base
    named = {"uri": base.uri, "delta": base.delta, "root": base.root}
    return {name: reference for name, reference in named.items() if reference is not None}


def missing_input(plan: Plan, done: Mapping[Stage, bool], pipeline: str) -> MissingInputError | None:
    """The first stage that is only needed and was never made, as an error naming the command that makes it.

    Args:
        plan: from :func:`make_plan`.
        done: whether the result of each stage of the plan exists.
        pipeline: its name.
    """
    for node in plan.values():
        if node.wanted or done.get(node.stage, False):
            continue
        if not _needed(plan, done, node.stage):
            continue
        dependants = ", ".join(other.stage for other in plan.values() if node.stage in other.upstream)
        return MissingInputError(
            f"{dependants} needs the result of {node.stage}, which does not exist for this document",
            code=MISSING_INPUT,
            where=f"spec.stages.{node.stage}",
            remedy=f"make it with: `zhongjing submit --pipeline {pipeline} --stage {node.stage}`, "
            f"or everything with: `zhongjing submit --pipeline {pipeline} --stage all`",
        )
    return None


def _needed(plan: Plan, done: Mapping[Stage, bool], stage: Stage) -> bool:
    """Whether a stage that is not done stands (directly or not) on ``stage``, all between undone too."""
    return any(
        stage in node.upstream
        and not done.get(node.stage, False)
        and (node.wanted or _needed(plan, done, node.stage))
        for node in plan.values()
    )


def make_request(
    desired: DesiredState,
    late: Sequence[FrozenSource],
    node: StagePlan,
    layout: Layout,
    *,
    attempt: int,
    submission_id: str,
    made: Mapping[str, MadeSource] | None = None,
) -> StageRequest:
    """What a job is asked to do. Local folders stand in it by the place they were uploaded to.

    Args:
        desired: the desired state.
        late: sources that arrived after they were waited for.
        node: the stage.
        layout: the pipeline.
        attempt: its number.
        submission_id: its id.
        made: what construct made, by source; of a stage that is shown such sources.
    """
    assert node.key is not None
    sources = frozen_sources(desired, late)
    made = made or {}
    sources |= {name: made[name].frozen(name) for name in node.made}
    references = {reference.reference: reference.uri for reference in desired.references}
    document = desired.document
    named = _base_references(document)
    moved = {name: references[each] for name, each in named.items() if each in references}
    if moved:
        base = document.spec.base.model_copy(update=moved)
        spec = document.spec.model_copy(update={"base": base})
        document = document.model_copy(update={"spec": spec})
    if node.made:
        listed = [
            source.read_back(made[source.name].uri) if source.name in node.made else source
            for source in document.spec.sources
        ]
        # With nothing left to make there is no such stage.
        stages = document.spec.stages.model_copy(update={"construct_": None})
        spec = document.spec.model_copy(update={"sources": listed, "stages": stages})
        document = document.model_copy(update={"spec": spec})
    inputs = []
    for need in node.needs:
        key = node.input_keys[need.role]
        uri = (
            layout.stage(need.stage, key).model
            if need.stage is not None
            else references.get(need.reference, need.reference)
        )
        inputs.append(StageInput(role=need.role, uri=uri, key=key, stage=need.stage))
    return StageRequest(
        stage=node.stage,
        key=node.key,
        attempt=attempt,
        submission_id=submission_id,
        document=document,
        sources=[sources[name] for name in visible_sources(document, node.stage) if name in sources],
        inputs=inputs,
        key_fields=dict(node.fields),
    )
