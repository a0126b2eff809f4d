"""A document against this machine: what submit would refuse before it starts anything."""

from __future__ import annotations

from collections.abc import Iterable

from zhongjing.cli.diagnosis.finding import Finding, fine, of_error, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import data, model
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline import graph


def check(situation: Situation) -> Iterable[Finding]:
    """Makes submit's own checks, all of them: submit stops at the first that fails."""
    document = situation.document
    if document is None:
        return
    from zhongjing.cli.preflight.models import check_models
    from zhongjing.cli.preflight.sources import check_sources

    stages = document.spec.stages.present()
    if situation.local:
        for stage in stages:
            yield check_room(document, stage)
    try:
        graph.check(document)
        notes = check_models(document, stages)
    except ZhongjingError as error:
        yield of_error("models", error)
    else:
        for note in notes:
            yield warn("models", note, model.MODEL_NOT_FOUND)
        yield fine("models", "the models that stages start from fit, as far as they are on this machine")
    empty = situation.local and not situation.workdir.is_dir()
    try:
        notes = check_sources(document, stages, empty_store=empty)
    except ZhongjingError as error:
        yield of_error("sources", error)
    else:
        for note in notes:
            yield warn("sources", note, data.NO_GOOD_RECORD)
        if not notes:
            count = len(document.spec.sources)
            yield fine(
                "sources", f"{count} sources of {situation.origin}: what is local is there and is read"
            )


def check_room(document: TrainingPipeline, stage: Stage) -> Finding:
    """Whether a stage's workers find room on this machine."""
    from zhongjing.cli.preflight.fit import check_machine

    settings = document.spec.stages[stage]
    resources = settings.resources
    each = [f"{resources.cpus:g} core{'s' if resources.cpus > 1 else ''}"]
    if resources.gpus:
        each.append(f"{resources.gpus} GPU")
    if resources.memory:
        each.append(f"{resources.memory} of memory")
    try:
        check_machine(document, [stage])
    except ZhongjingError as error:
        return of_error(f"stage {stage}", error)
    workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    return fine(f"stage {stage}", f"{workers} with {', '.join(each)} each: this machine has them")
