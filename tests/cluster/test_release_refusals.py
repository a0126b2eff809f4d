"""What cannot be trained, on a release: Failed with the field and a remedy, and nobody else is held up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def beside(release: Release, folder: Path) -> Run:
    """One that has nothing wrong."""
    return pipeline(release, folder, "beside")


def test_a_learning_rate_that_diverges(release: Release, folder: Path, beside: Run) -> None:
    stage = "spec.stages.pretrain"
    changes = (f"{stage}.learningRate=10", f"{stage}.checkpoints={{everySteps: 2, keep: 3}}")
    wild = pipeline(release, folder, "wild")
    done = wild.submit(
        *("--stage", "pretrain", "-o", "json"), *(word for each in changes for word in ("--set", each))
    )
    assert done.code == 1, done
    condition = wild.condition()
    assert condition["type"] == "Failed"
    assert json.loads(done.out)["code"] == condition["reason"] == "Diverged"
    assert "last good checkpoint: step " in condition["message"]
    assert "lower learningRate" in condition["remedy"]
    done = beside.submit("--stage", "pretrain", "--set", f"{stage}.maxSteps=20")
    assert done.code == 0, done.err
    assert beside.stage(Stage.PRETRAIN)["state"] == "Succeeded"


def test_a_base_that_is_not_there(beside: Run) -> None:
    done = beside.submit("--stage", "pretrain", "-o", "json", "--set", f"spec.base={{uri: {BASE}}}")
    assert done.code == 2, done
    shown = json.loads(done.out)
    assert (shown["code"], shown["where"]) == ("ModelNotFound", "spec.base.uri")
    # What kubectl applies is not looked at before, so the object says it.
    spec = {**beside.object()["spec"], "base": {"uri": BASE}}
    applied = {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": "baseless", "namespace": beside.release.namespace},
        "spec": spec,
    }
    beside.cluster.apply(applied)
    baseless = Run(beside.release, "baseless", beside.document)
    condition = beside.cluster.until(baseless.condition, "a condition of baseless")
    assert (condition["type"], condition["reason"]) == ("Failed", "ModelNotFound")
    assert f"spec.base.uri: there is no model at {BASE}" in condition["message"]
    assert "config.json" in condition["remedy"]
