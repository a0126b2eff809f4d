"""Stages on two Ray nodes that share nothing but the network and the object store, as pods do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import kept_environment
from tests.pods import Pods, Run
from zhongjing.backends.local.processes import wait_until
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.pipeline.backend import JobState
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity, Progress
from zhongjing.storage.progress_writer import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

BUCKET = "s3://pods/prefix"
RAY = f"{BUCKET}/zhongjing/ray"
# As in the chart's pods; there the drain may take 300 s.
CHART = {"ZHONGJING_RAY_STORAGE": RAY, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "120"}
DOCUMENT = """
metadata: {name: pods}
spec:
  base: {tiny: {hiddenSize: 64, intermediateSize: 128, layers: 2, vocabularySize: 1024, maxPositions: 128}}
  sources: [{name: textbook, uri: "example://textbook", kind: text}]
  stages:
    pretrain:
      data: [{source: textbook}]
      precision: fp32
      epochs: 100
      maxSteps: 400
      maxLength: 48
      globalBatchSize: 4
      microBatchSize: 2
      evaluations: 2
      maxEvaluationSamples: 8
      workers: 2
      resources: {cpus: 1}
      checkpoints: {everySteps: 100}
"""


@pytest.fixture(scope="module")
def server(s3_server: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The store's endpoint, and a credentials file instead of keys in the environment."""
    environment = s3_server.environment()
    access, secret = environment.pop("AWS_ACCESS_KEY_ID"), environment.pop("AWS_SECRET_ACCESS_KEY")
    secrets = tmp_path_factory.mktemp("secret") / "credentials"
    secrets.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    with kept_environment(), pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        patch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
        given = {**environment, "AWS_SHARED_CREDENTIALS_FILE": str(secrets)}
        for name, value in given.items():
            patch.setenv(name, value)
        BucketAdmin(Storage(uri=BUCKET)).ensure_bucket(BUCKET)
        yield given


@pytest.fixture(scope="module")
def pods(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    nodes = Pods(tmp_path_factory.mktemp("logs"), {**server, **CHART})
    yield nodes
    nodes.end()


@pytest.fixture(scope="module")
def store(server: dict[str, str]) -> ObjectStore:
    return open_store(Storage(uri=BUCKET, deadline_seconds=20))


def runs_of_ray(store: ObjectStore, submission_id: str) -> list[str]:
    """What Ray Train keeps of a run in the store."""
    return [info.uri for info in store.list(RAY) if submission_id in info.uri]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def verify(pods: Pods, folder: Path, *options: str, token: str | None = None) -> tuple[int, list[str]]:
    """What ``helm test`` runs: exit status and lines."""
    release = {
        "release": "test",
        "fullname": "test-zhongjing",
        "namespace": "zhongjing",
        "chartVersion": "0",
        "image": "zhongjing:0",
        "provisioner": "static",
        "ray": {
            "cluster": "test",
            "service": "test",
            "tokenSecret": "test-zhongjing-ray-token",
            "tokenManaged": True,
            "groups": [],
            "scaling": "none",
        },
        "storage": {"bundled": True, "uri": BUCKET},
    }
    (folder / "release.yaml").write_text(json.dumps(release))
    (folder / "token").write_text(token or pods.token)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "zhongjing.controller.verify", "--config", str(folder / "release.yaml")),
            *("--ray-token", str(folder / "token"), "--ray-address", pods.jobs.address),
            *("--python", sys.executable, *options),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert pods.token not in done.stdout + done.stderr
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_helm_test_trains_a_step_and_leaves_nothing(pods: Pods, store: ObjectStore, tmp_path: Path) -> None:
    code, lines = verify(pods, tmp_path, "--zero2", "true", "--timeout", "180")
    assert code == 0, lines
    assert [line.split(":")[0] for line in lines] == [
        "fine       ray token",
        "fine       s3 access",
        "fine       s3 conditions",
        "fine       zero-2",
    ]
    assert "one step under ZeRO-2 on the CPU: loss" in lines[-1]
    assert pods.jobs.jobs() == []
    assert not [info.uri for info in store.list(BUCKET) if "verify" in info.uri]
    assert [names(pods.disk_of(node) / "scratch") for node in (0, 1)] == [[], []]

    code, lines = verify(pods, tmp_path)
    assert code == 0, lines
    assert lines[-1].startswith("not tried  zero-2: no worker with a GPU is up")


def test_helm_test_says_what_is_wrong(pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
    )
    code, lines = verify(pods, tmp_path, token="0" * 64)
    assert code == 1
    assert lines[0].startswith("failed     ray token: ")
    assert "test-zhongjing-ray-token is not what Ray was started with" in lines[1]
    assert [line.split(":")[0] for line in lines if line.startswith("failed")] == [
        "failed     ray token",
        "failed     s3 access",
        "failed     s3 conditions",
    ]
    assert lines[-1] == "not tried  zero-2: Ray does not answer"


def test_a_stage_whose_node_is_drained_stops_and_goes_on_where_no_disk_is_shared(
    pods: Pods, store: ObjectStore, tmp_path: Path
) -> None:
    run = Run(store, store.storage, DOCUMENT, tmp_path)
    layout = run.stage_layout(Stage.PRETRAIN)
    first, uri = run.request(Stage.PRETRAIN, 1)
    pods.submit(first, uri)

    def training() -> bool:
        progress = store.find_record(layout.progress, Progress)
        return progress is not None and progress.activity is Activity.TRAINING and progress.step > 0

    assert wait_until(training, 180)
    assert runs_of_ray(store, first.submission_id)
    assert wait_until(lambda: "ray_zhongjing_checkpoint_lag_steps{" in pods.metrics(), 60, 0.2)
    served = pods.metrics()
    for name in ("train_loss", "train_tokens_per_second", "step", "checkpoint_timestamp_seconds"):
        found = re.search(rf"^ray_zhongjing_{name}\{{(.*)\}} \S+$", served, re.M)
        assert found, name
        assert 'pipeline="pods"' in found[1]
        assert 'stage="pretrain"' in found[1]
    leaving = pods.drain_worker()
    job = pods.wait_for(first.submission_id)
    log = pods.log(first.submission_id)
    assert job.state is JobState.SUCCEEDED, log
    assert "stops with a checkpoint: node" in log
    progress = store.find_record(layout.progress, Progress)
    assert progress is not None
    assert progress.activity is Activity.SUSPENDED, log
    assert progress.checkpoint_step == progress.step < 400
    # What a node needs again is the base; everything else is gone, from the store too.
    assert names(pods.disk_of(0) / "scratch") == ["models"]
    assert not runs_of_ray(store, first.submission_id)
    leaving.wait(60)  # nothing runs there any more: it does not sit its time out

    second, uri = run.request(Stage.PRETRAIN, 2)
    pods.submit(second, uri)

    def prepared() -> bool:
        progress = store.find_record(layout.progress, Progress)
        return progress is not None and (progress.attempt, progress.activity) == (2, Activity.PREPARED)

    # It prepares without a worker, and waits for one.
    assert wait_until(prepared, 180), pods.log(second.submission_id)
    pods.start_worker()
    job = pods.wait_for(second.submission_id)
    log = pods.log(second.submission_id)
    assert job.state is JobState.SUCCEEDED, log
    manifest = store.find_record(layout.manifest, StageManifest)
    assert manifest is not None
    assert (manifest.steps, manifest.attempt, manifest.lineage.workers) == (400, 2, 2)
    assert manifest.memory is not None
    assert manifest.memory.device == "cpu"
    assert 2**28 < manifest.memory.peak < 2**32
    assert manifest.memory.plan is not None
    steps = [point.step for point in read_metrics(store, layout) if point.kind == "train"]
    assert steps == sorted(set(steps))
    assert "no checkpoint" not in log
    assert [names(pods.disk_of(node) / "scratch") for node in (0, 1)] == [["models"], ["models"]]
