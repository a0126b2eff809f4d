"""What cannot be trained, on a release: Failed with the field and a remedy, and nobody else is held up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import Cluster, Release, installed
from tests.cluster.runs import Run
from tests.faults import document
from zhongjing.config.stages import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(900)]

BASE = "s3://zhongjing/bases/nothing-here"


@pytest.fixture(scope="module")
def release(cluster: Cluster, module_namespace: str) -> Iterator[Release]:
    with installed(cluster, module_namespace, {"ray": {"provisioner": "static"}}) as found:
        found.wait_ready(seconds=300)
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused")


def pipeline(release: Release, folder: Path, name: str) -> Run:
    path = folder / f"{name}.yaml"
    path.write_text(document.cluster(name))
    return Run(release, name, path)


def refused(run: Run, code: int, *settings: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submits what must fail with an exit code; returns what the command and what the condition say."""
    changes = [word for each in settings for word in ("--set", each)]
    done = run.submit("--stage", "pretrain", "-o", "json", *changes)
    assert done.code == code, done
    condition = run.condition()
    assert condition["type"] == "Failed"
    return dict(json.loads(done.out)), condition


def test_a_learning_rate_that_diverges(release: Release, folder: Path) -> None:
    beside = pipeline(release, folder, "beside")
    stage = "spec.stages.pretrain"
    shown, condition = refused(
        pipeline(release, folder, "wild"),
        1,
        *(f"{stage}.learningRate=10", f"{stage}.checkpoints={{everySteps: 2, keep: 3}}"),
    )
    assert shown["code"] == condition["reason"] == "Diverged"
    assert "last good checkpoint: step " in condition["message"]
    assert "lower learningRate" in condition["remedy"]
    done = beside.submit("--stage", "pretrain", "--set", f"{stage}.maxSteps=20")
    assert done.code == 0, done.err
    assert beside.stage(Stage.PRETRAIN)["state"] == "Succeeded"


def test_a_base_that_is_not_there(release: Release, folder: Path) -> None:
    shown, condition = refused(pipeline(release, folder, "baseless"), 2, f"spec.base={{uri: {BASE}}}")
    assert shown["code"] == condition["reason"] == "ModelNotFound"
    assert f"spec.base.uri: there is no model at {BASE}" in condition["message"]
    assert "config.json" in condition["remedy"]
