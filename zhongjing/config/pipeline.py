"""``TrainingPipeline``: the one document that describes a run, on a laptop as on a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from zhongjing.codes.document import INVALID_REFERENCE, INVALID_VALUE, UNKNOWN_STAGE, WRONG_SOURCE_KIND
from zhongjing.config.fields import MOST, NAME_PATTERN, DocumentModel, RuleError, operational, training
from zhongjing.config.sources import Base, Kind, Source, Storage
from zhongjing.config.stages import ConstructSettings, Stage, Stages

API_GROUP = "training.zhongjing.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "TrainingPipeline"

# What a stage can be fed with. Prompts can be read off dialogues and rankings: their questions.
KINDS_OF_STAGE: dict[Stage, tuple[Kind, ...]] = {
    Stage.PRETRAIN: (Kind.TEXT, Kind.DIALOGUE),
    Stage.SFT: (Kind.DIALOGUE,),
    Stage.RM: (Kind.RANKING,),
    Stage.PPO: (Kind.PROMPTS, Kind.DIALOGUE, Kind.RANKING),
}


class Metadata(DocumentModel):
    """Name and labels, as in any Kubernetes object."""

    name: str = operational(..., "Name of the pipeline.", pattern=NAME_PATTERN, max_length=40)
    namespace: str | None = operational(
        None,
        "Kubernetes namespace; local runs use 'local'.",
        pattern=NAME_PATTERN,
        max_length=63,
    )
    labels: dict[str, str] = operational(dict, "Labels.")
    annotations: dict[str, str] = operational(dict, "Annotations.")


class PipelineSpec(DocumentModel):
    """What to train, from what, on what."""

    seed: int = training(0, "Seed of everything random.", ge=0, le=2**31 - 1)
    base: Base = training(..., "The model to start from.")
    sources: list[Source] = training(list, "Corpora, named.", max_length=256)
    stages: Stages = training(Stages, "What to run.")
    question: str | None = operational(
        None,
        "A question that base, sft and ppo answer side by side at the end of sft and ppo; both stand in the "
        "manifests. None: nothing is asked, for the data's questions may be patients'.",
        min_length=1,
        max_length=4000,
    )
    storage: Storage = operational(Storage, "Where corpora, checkpoints and results are.")
    targets: list[Stage] = operational(
        list,
        "Stages to bring about (with what they need); none: all. `submit --stage` sets it.",
        max_length=8,
    )
    suspend: bool = operational(False, "Stop with a checkpoint; false goes on.")
    force: bool = operational(
        False, "Start stages that by the plan cannot fit into memory. `submit --force` sets it."
    )
    priority: int = operational(
        0, "Where several pipelines wait for one cluster, the highest runs first.", ge=-1000000, le=1000000
    )
    backoff_limit: int | None = operational(
        None,
        "Failed attempts of all stages together before the pipeline is failed; none: the stages' retries.",
        ge=0,
        le=1000,
    )
    active_deadline_seconds: int | None = operational(
        None,
        "The pipeline is failed when it has run longer, counted from the first submission after a change.",
        unit="s",
        ge=1,
        le=MOST,
    )
    progress_deadline_seconds: int | None = operational(
        None,
        "An attempt that does nothing for so long counts as hung; none: the stages' own.",
        unit="s",
        ge=30,
        le=MOST,
    )
    ttl_seconds_after_finished: int | None = operational(
        None,
        "On a cluster: a complete pipeline's object is deleted after so long; its artifacts stay unless "
        "deletionPolicy is Delete.",
        unit="s",
        ge=0,
        le=MOST,
    )
    deletion_policy: Literal["Retain", "Delete"] = operational(
        "Retain", "On a cluster: what becomes of the artifacts when the pipeline's object is deleted."
    )
    managed_by: str | None = operational(
        None,
        "On a cluster: which release runs the pipeline; another name leaves it to another controller; none: "
        "the release that sees it first.",
        max_length=253,
    )
    reruns: dict[Stage, Annotated[int, Field(ge=0, le=1000000)]] = operational(
        dict, "Stage name to how often a re-run was forced; `submit --rerun` raises it.", max_length=8
    )

    @model_validator(mode="after")
    def _construct_where_sources_are_made(self) -> PipelineSpec:
        made = any(source.made is not None for source in self.sources)
        if self.stages.construct_ is not None and not made:
            raise RuleError(
                "no source says how it is made: give one `made`, or leave the stage out",
                code=INVALID_VALUE,
                path=("stages", "construct"),
            )
        if self.stages.construct_ is None and made:
            stages = self.stages.model_copy(update={"construct_": ConstructSettings()})
            # Pydantic's way to replace a field of a frozen model while it is validated.
            object.__setattr__(self, "stages", stages)
        return self

    @model_validator(mode="after")
    def _references(self) -> PipelineSpec:
        names = [source.name for source in self.sources]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise RuleError(
                    f"two sources are named {name!r}", code=INVALID_VALUE, path=("sources", index, "name")
                )
        by_name = {source.name: source for source in self.sources}
        for stage in self.stages.trained():
            settings = self.stages[stage]
            for index, ref in enumerate(settings.data):
                place = ("stages", stage.value, "data", index)
                source = by_name.get(ref.source)
                if source is None:
                    known = ", ".join(names) or "none"
                    raise RuleError(
                        f"no source is named {ref.source!r} (there is: {known})",
                        code=INVALID_REFERENCE,
                        path=place,
                    )
                if source.kind not in KINDS_OF_STAGE[stage]:
                    usable = ", ".join(KINDS_OF_STAGE[stage])
                    raise RuleError(
                        f"source {ref.source!r} is of kind {source.kind}, but {stage} reads {usable}",
                        code=WRONG_SOURCE_KIND,
                        path=place,
                    )
                if source.split == "test":
                    raise RuleError(
                        f"source {ref.source!r} is test data (split: test)",
                        code=INVALID_REFERENCE,
                        path=place,
                    )
        stages = self.stages
        judged = stages.rm is not None and stages.ppo is not None and stages.ppo.reward == Stage.RM
        if judged and stages.system_prompt(Stage.RM) != stages.system_prompt(Stage.PPO):
            raise RuleError(
                "rm and ppo have different system turns: the reward model would score what it never saw",
                code=INVALID_VALUE,
                path=("stages", "rm", "systemPrompt"),
            )
        for index, target in enumerate(self.targets):
            if self.stages.job(target) is None:
                raise RuleError(
                    f"the pipeline has no stage {target}", code=UNKNOWN_STAGE, path=("targets", index)
                )
        return self

    def source(self, name: str) -> Source:
        """The source called ``name``; validation has shown that it exists."""
        return next(source for source in self.sources if source.name == name)


class TrainingPipeline(DocumentModel):
    """The document."""

    api_version: Literal["training.zhongjing.dev/v1alpha1"] = operational(
        API_VERSION, "Version of the format."
    )
    kind: Literal["TrainingPipeline"] = operational(KIND, "Kind of the document.")
    metadata: Metadata = operational(..., "Name and labels.")
    spec: PipelineSpec = training(..., "What to train.")

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Namespace, ``local`` where none is given."""
        return self.metadata.namespace or "local"
