"""``zhongjing plan --history``: what the last stages took of memory, beside what was planned for them."""

from __future__ import annotations

import re
from typing import Any

from zhongjing.cli.console import Console
from zhongjing.cli.display.text import table
from zhongjing.cli.errors import OK
from zhongjing.cli.target import Target, find
from zhongjing.config.stages import Stage
from zhongjing.pipeline.records import find_record
from zhongjing.pipeline.session import Session
from zhongjing.planning.hardware import size_text
from zhongjing.storage.manifest import StageManifest

LAST = 20
"""Results that are listed."""

_MANIFEST = re.compile(rf"/({'|'.join(Stage)})/[0-9a-z]+/manifest\.json$")


def history(target: Target, name: str | None, console: Console) -> int:
    """Lists plan, peak and error of the last results, of one pipeline or of all.

    Raises:
        BackendError, StorageError: the target or its store cannot be reached.
        ConfigError: there is no such pipeline.
    """
    with target.open() as session:
        names = [find(session, name).pipeline] if name is not None else session.pipelines()
        found = [each for pipeline in names for each in _manifests(session, pipeline)]
    found = sorted(found, key=lambda each: each.finished_at)[-LAST:]
    if console.json_mode:
        console.result({"runs": [_object(each) for each in found]})
        return OK
    if not found:
        console.warn("no stage has been measured here yet")
        return OK
    console.say_lines(
        table(
            ["finished", "pipeline", "stage", "workers", "memory", "plan", "peak", "error"],
            [_row(each) for each in found],
            right=(3, 5, 6, 7),
        )
    )
    return OK


def _manifests(session: Session, pipeline: str) -> list[StageManifest]:
    """Results of a pipeline that were measured, also those that are no longer in use."""
    store, home = session.store, session.layout(pipeline).home
    uris = [info.uri for info in store.list(home) if _MANIFEST.search(info.uri)]
    found = (find_record(store, uri, StageManifest) for uri in uris)
    return [each for each in found if each is not None and each.memory is not None]


def _row(manifest: StageManifest) -> list[str]:
    memory = manifest.memory
    assert memory is not None, "only results that were measured are listed"
    return [
        manifest.finished_at[:19].replace("T", " "),
        manifest.pipeline,
        manifest.stage.value,
        str(manifest.lineage.workers),
        memory.device,
        size_text(memory.plan) if memory.plan is not None else "-",
        size_text(memory.peak),
        f"{100 * memory.error:+.1f} %" if memory.error is not None else "-",
    ]


def _object(manifest: StageManifest) -> dict[str, Any]:
    memory = manifest.memory
    assert memory is not None, "only results that were measured are listed"
    return {
        "pipeline": manifest.pipeline,
        "stage": manifest.stage.value,
        "key": manifest.key,
        "finishedAt": manifest.finished_at,
        "workers": manifest.lineage.workers,
        **memory.model_dump(mode="json"),
        "errorPercent": round(100 * memory.error, 2) if memory.error is not None else None,
    }
