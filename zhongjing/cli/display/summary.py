"""The end of a run: held-out metrics before and after, where the artifacts are, one question answered."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from zhongjing.cli.display.counts import count_lines, count_object, validation_line
from zhongjing.cli.display.text import filled, table
from zhongjing.cli.display.view import RunView, StageView
from zhongjing.config.stages import Stage
from zhongjing.pipeline.headline import duration, interval, main_metrics, number
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.manifest import StageManifest

ANSWERS = "answers"
"""Key of ``StageManifest.extra`` under which a stage keeps one question and its answers."""

_ROLES = ("base", "sft", "ppo")


def summary(view: RunView, manifests: Mapping[Stage, StageManifest]) -> list[str]:
    """Lines for people: the table, the artifacts, the answers. Empty when no stage has a result."""
    if not manifests:
        return []
    lines = metric_table(view.stages, manifests)
    found = count_lines(view.stages, manifests)
    lines += ["", *found] if found else []
    lines += ["", "artifacts"]
    for stage, manifest in manifests.items():
        uris = [each.uri for each in (manifest.model, *manifest.made.values()) if each is not None]
        lines += [f"  {stage:<8} {uri}" for uri in uris]
    measured = {stage: each.memory for stage, each in manifests.items() if each.memory is not None}
    if measured:
        lines += ["", "memory of a worker"]
        lines += [f"  {stage:<8} {memory}" for stage, memory in measured.items()]
    answers = answers_of(manifests)
    if answers is not None:
        lines += ["", *answer_lines(answers)]
    return lines


def metric_table(stages: Sequence[StageView], manifests: Mapping[Stage, StageManifest]) -> list[str]:
    """The table of held-out metrics: one row a metric, the stage named in its first row."""
    rows: list[list[str]] = []
    for stage in stages:
        manifest = manifests.get(stage.stage)
        if manifest is None:
            rows.append([stage.stage.value, stage.doing, *[""] * 6])
            continue
        names = main_metrics(stage.stage, manifest.metrics)
        for index, name in enumerate(names or [""]):
            first = index == 0
            rows.append(
                [
                    stage.stage.value if first else "",
                    stage.doing if first else "",
                    name,
                    *(_cell(each, name) for each in _measures(manifest)),
                    str(manifest.steps) if first else "",
                    duration(max(manifest.seconds, stage.seconds or 0.0)) if first else "",
                ]
            )
            found = [interval(name, each) for each in _measures(manifest)]
            if any(found):
                spreads = [f"{each}, {each.n:.0f}" if each else "" for each in found]
                rows.append(["", "", "  95 %, n", *spreads, "", ""])
    header = ["stage", "state", "held-out", "before", "after", "test", "steps", "time"]
    return table(header, rows, right=(3, 4, 5, 6, 7))


def _change(stage: Stage, manifest: StageManifest) -> str:
    """``loss 6.5 -> 3.25``: the metric that tells most, before and after."""
    names = main_metrics(stage, manifest.metrics, limit=1)
    return " ".join(
        f"{name} {_cell(manifest.metrics_before, name)} -> {_cell(manifest.metrics, name)}" for name in names
    )


def _measures(manifest: StageManifest) -> tuple[Mapping[str, float], ...]:
    return manifest.metrics_before, manifest.metrics, manifest.test_metrics


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return number(metrics[name]) if name in metrics else "-"


def answers_of(manifests: Mapping[Stage, StageManifest]) -> dict[str, str] | None:
    """The question and its answers from the last stage that has them."""
    for stage in reversed(list(Stage)):
        manifest = manifests.get(stage)
        found: Any = manifest.extra.get(ANSWERS) if manifest is not None else None
        if isinstance(found, Mapping) and found.get("question"):
            return {str(key): str(value) for key, value in found.items() if value is not None}
    return None


def answer_lines(answers: Mapping[str, str]) -> list[str]:
    """One question, and what base, SFT and PPO say, one below the other."""
    lines = ["the same question to each of them", *_speech("question", answers["question"])]
    roles = [role for role in _ROLES if role in answers]
    roles += [role for role in answers if role not in (*_ROLES, "question")]
    for role in roles:
        lines += _speech(role, answers[role] or "(nothing)")
    return lines


def _speech(role: str, text: str) -> list[str]:
    # A random base writes noise: control characters would move the cursor.
    clean = "".join(char if char.isprintable() else " " for char in text.replace("\n", " ")).strip()
    # 44 characters, because a Chinese one takes two columns.
    pieces = textwrap.wrap(clean, width=44, drop_whitespace=True) or [""]
    return [f"  {role:<10}{pieces[0]}", *(f"{'':12}{piece}" for piece in pieces[1:])]


def result(view: RunView, manifests: Mapping[Stage, StageManifest]) -> dict[str, Any]:
    """The object that ``-o json`` prints."""
    condition = view.status.condition() if view.status is not None else None
    return {
        "pipeline": view.name,
        "namespace": view.desired.namespace,
        "condition": condition.type.value if condition is not None else None,
        "reason": condition.reason if condition is not None else None,
        "message": condition.message if condition is not None else "",
        "remedy": condition.remedy if condition is not None else None,
        "dashboardUrl": view.dashboard_url,
        "stages": {stage.stage.value: _stage_result(stage, manifests) for stage in view.stages},
        "answers": answers_of(manifests),
    }


def _stage_result(stage: StageView, manifests: Mapping[Stage, StageManifest]) -> dict[str, Any]:
    manifest = manifests.get(stage.stage)
    status = stage.status
    return {
        "state": stage.state.value,
        "attempt": status.attempt,
        "key": status.key,
        "reason": status.reason,
        "message": status.message,
        "remedy": status.remedy,
        "manifestUri": status.manifest_uri,
        "modelUri": status.model_uri or (manifest.model.uri if manifest and manifest.model else None),
        "made": {name: made.uri for name, made in manifest.made.items()} if manifest else {},
        "metricsBefore": dict(manifest.metrics_before) if manifest is not None else {},
        "metrics": dict(manifest.metrics) if manifest is not None else {},
        "testMetrics": dict(manifest.test_metrics) if manifest is not None else {},
        **count_object(stage, manifest),
        "seconds": manifest.seconds if manifest is not None else None,
        "memory": manifest.memory.model_dump(mode="json")
        if manifest is not None and manifest.memory is not None
        else None,
        "step": manifest.steps if manifest is not None else stage.step,
        "totalSteps": manifest.steps if manifest is not None else stage.total_steps,
    }


def overview_lines(views: Sequence[RunView]) -> list[str]:
    """Several runs, a line each: the stage that tells most, and how far it is."""
    rows = []
    for view in views:
        condition = view.status.condition() if view.status is not None else None
        state = condition.type.value if condition is not None else "not looked at yet"
        if condition is not None and condition.type is ConditionType.PROGRESSING:
            state = condition.reason
        stage = _telling(view)
        row = [view.name, state, "", "", "", ""]
        if stage is not None:
            steps = f"{stage.step}/{stage.total_steps}" if stage.total_steps else ""
            row = [view.name, state, f"{stage.stage} {stage.stands}", steps, stage.headline, stage.eta]
        rows.append(row)
    return filled(["pipeline", "state", "stage", "step", "training", "left"], rows)


def _telling(view: RunView) -> StageView | None:
    """The stage that a line about a run is about: the active one, else the first that is not done."""
    active = [stage for stage in view.stages if stage.state.is_active]
    undone = [stage for stage in view.stages if not stage.state.is_done]
    return next(iter(active or undone or view.stages[-1:]), None)


def status_lines(view: RunView, manifests: Mapping[Stage, StageManifest]) -> list[str]:
    """The run as it is now, as a table: for ``zhongjing status``. Done stages show what they brought."""
    condition = view.status.condition() if view.status is not None else None
    state = condition.type.value if condition is not None else "not looked at yet"
    if condition is not None and condition.reason not in ("", condition.type.value):
        state = f"{state} ({condition.reason})"
    lines = [f"{view.name}: {state}"]
    if view.dashboard_url is not None:
        lines.append(f"Ray dashboard: {view.dashboard_url}")
        if view.dashboard_login:
            lines.append(view.dashboard_login)
    rows = []
    for stage in view.stages:
        steps = f"{stage.step}/{stage.total_steps}" if stage.total_steps else ""
        held_out = validation_line(stage).removeprefix("held-out ")
        manifest = manifests.get(stage.stage)
        if manifest is not None:
            steps, held_out = str(manifest.steps), _change(stage.stage, manifest)
        attempt = str(stage.status.attempt) if stage.status.attempt else ""
        rows.append(
            [
                stage.stage.value,
                stage.stands,
                attempt,
                steps,
                stage.headline,
                held_out,
                stage.speed,
                stage.eta,
            ]
        )
    header = ["stage", "state", "attempt", "step", "training", "held-out", "speed", "left"]
    found = count_lines(view.stages, manifests)
    return [*lines, *filled(header, rows), *(["", *found] if found else [])]
