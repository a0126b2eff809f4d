"""What ``submit`` was asked for: which document, what is changed of it, which stages."""

from __future__ import annotations

from dataclasses import dataclass

from zhongjing.cli.options import DEFAULT_RECIPE, StageTarget
from zhongjing.cli.target import Target, find
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import UserDocument, apply_overrides, load_document, recipe
from zhongjing.config.stages import Stage


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    document: str | None = None
    recipe: str | None = None
    pipeline: UserDocument | None = None  # what a pipeline that is there was applied with
    overrides: tuple[str, ...] = ()
    stage: StageTarget | None = None
    rerun: tuple[Stage, ...] = ()
    refresh_data: bool = False
    force: bool = False

    @property
    def is_default(self) -> bool:
        """Whether no document was named: the recipe that is run then is meant, and no other document."""
        return self.document is None and self.recipe is None and self.pipeline is None

    def user(self) -> UserDocument:
        """What the user wants, overrides applied. Raises ConfigError."""
        if self.pipeline is not None:
            written = self.pipeline
        elif self.document is not None:
            written = load_document(self.document)
        else:
            written = recipe(self.recipe or DEFAULT_RECIPE)
        forced = ("spec.force=true",) if self.force else ()
        return apply_overrides(written, (*self.overrides, *forced))

    def stages(self, document: TrainingPipeline) -> list[Stage]:
        """The stages asked for; none: what the document says."""
        if self.stage is None:
            return []
        return document.spec.stages.present() if self.stage is StageTarget.ALL else [Stage(self.stage.value)]


def written_of(name: str, target: Target) -> UserDocument:
    """What a pipeline that is there was applied with, its local sources by their absolute paths.

    Raises:
        ConfigError: there is no such pipeline.
        BackendError: the target cannot be reached.
    """
    with target.open() as session:
        desired = find(session, name)
    uris = {source.name: source.uri for source in desired.document.spec.sources}
    spec = dict(desired.user.get("spec") or {})
    spec["sources"] = [
        {**source, "uri": uris.get(source.get("name"), source.get("uri"))}
        for source in spec.get("sources") or ()
    ]
    return UserDocument({**desired.user, "spec": spec}, desired.origin or f"the pipeline {name}", {})
