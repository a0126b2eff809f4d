"""A document against this machine: what submit would refuse before it starts anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fine, of_error, warn
from zhongjing.codes import data, model
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline import graph

if TYPE_CHECKING:
    from zhongjing.cli.diagnosis.checks import Situation


def document(situation: Situation) -> Iterator[Finding]:
    """Makes submit's own checks, all of them: submit stops at the first that fails."""
    asked = situation.document
    if asked is None:
        return
    from zhongjing.cli.preflight.models import check_models
    from zhongjing.cli.preflight.sources import check_sources

    stages = asked.spec.stages.trained()
    for stage in stages if situation.local else ():
        yield check_capacity(asked, stage)
    try:
        graph.check(asked)
        notes = check_models(asked, stages)
    except ZhongjingError as error:
        yield of_error("models", error)
    else:
        for note in notes:
            yield warn("models", note, model.MODEL_NOT_FOUND)
        yield fine("models", "the models that stages start from fit, as far as they are on this machine")
    empty = situation.local and not situation.workdir.is_dir()
    try:
        notes = check_sources(asked, stages, empty_store=empty)
    except ZhongjingError as error:
        yield of_error("sources", error)
    else:
        for note in notes:
            yield warn("sources", note, data.NO_GOOD_RECORD)
        if not notes:
            yield fine("sources", f"{len(asked.spec.sources)} sources: what is local is there and is read")


def check_capacity(document: TrainingPipeline, stage: Stage) -> Finding:
    """Whether this machine holds a stage's workers."""
    from zhongjing.backends.kubernetes.demand import Demand
    from zhongjing.cli.preflight.fit import check_machine

    settings = document.spec.stages[stage]
    try:
        check_machine(document, [stage])
    except ZhongjingError as error:
        return of_error(f"stage {stage}", error)
    demand = Demand(stage.value, settings.workers, settings.resources)
    return fine(f"stage {stage}", f"{demand}: this machine has them")
