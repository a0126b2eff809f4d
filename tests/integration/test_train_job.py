"""The driver of a stage's job, as far as it goes without Ray."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.pods import Run
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Activity, Progress
from zhongjing.train.job import attempt, driver, ray_storage
from zhongjing.train.job.scratch import VARIABLE

pytestmark = pytest.mark.integration

DOCUMENT = """
metadata: {name: driver}
spec:
  base: {tiny: {hiddenSize: 64, intermediateSize: 128, layers: 2, vocabularySize: 1024, maxPositions: 128}}
  sources: [{name: textbook, uri: "example://textbook", kind: text}]
  stages: {pretrain: {data: [{source: textbook}], precision: fp32, maxLength: 48}}
"""


def test_a_stop_is_heard_while_the_data_are_prepared(
    store: ObjectStore, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    monkeypatch.setenv(VARIABLE, str(scratch))
    monkeypatch.setattr(attempt, "OTHERS_POLL_SECONDS", 0.01)
    run = Run(store, storage, DOCUMENT, tmp_path)
    layout = run.stage_layout(Stage.PRETRAIN)
    _, uri = run.request(Stage.PRETRAIN, 1)
    store.put_json(layout.stop(1), {"reason": "Suspended", "message": ""})
    assert driver.main(Stage.PRETRAIN, ["--request", uri]) == 0
    progress = store.find_record(layout.progress, Progress)
    assert progress is not None
    assert (progress.activity, progress.attempt, progress.step) == (Activity.SUSPENDED, 1, 0)
    assert progress.failure is None
    assert [path.name for path in scratch.iterdir()] in ([], ["models"])


def test_a_stop_is_heard_while_workers_are_waited_for(
    store: ObjectStore, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.setattr(attempt, "OTHERS_POLL_SECONDS", 0.01)
    monkeypatch.setattr(driver, "prepare", lambda *_: SimpleNamespace(warnings=[], counts=[]))
    run = Run(store, storage, DOCUMENT, tmp_path)
    layout = run.stage_layout(Stage.PRETRAIN)
    _, uri = run.request(Stage.PRETRAIN, 1)
    asked: list[list[dict[str, float]]] = []
    gone: list[object] = []

    class Never:
        """A request that Ray cannot grant."""

        def wait(self, seconds: float) -> bool:
            progress = store.find_record(layout.progress, Progress)
            if progress is not None:
                assert (progress.activity, progress.message) == (Activity.PREPARED, "waits for 1 worker")
                store.put_json(layout.stop(1), {"reason": "Suspended", "message": ""})
            time.sleep(0.02)
            return False

    def ask(bundles: list[dict[str, float]], strategy: str) -> Never:
        asked.append(bundles)
        return Never()

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.placement_group", ask)
    monkeypatch.setattr("ray.util.remove_placement_group", gone.append)
    assert driver.main(Stage.PRETRAIN, ["--request", uri]) == 0
    assert asked == [[{"CPU": 1.0}]]
    assert len(gone) == 1
    progress = store.find_record(layout.progress, Progress)
    assert progress is not None
    assert (progress.activity, progress.failure) == (Activity.SUSPENDED, None)


def test_what_ray_train_hands_to_other_processes_holds_no_key(
    bucket_uri: str, s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ray_storage.VARIABLE, f"{bucket_uri}/ns/ray/")
    place = ray_storage.ray_storage(Storage(uri=bucket_uri), tmp_path)
    assert place.path == f"{bucket_uri.removeprefix('s3://')}/ns/ray"
    travels = pickle.dumps(place.filesystem)
    assert s3_environment["AWS_ENDPOINT_URL"].removeprefix("http://").encode() in travels
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3_environment[name].encode() not in travels
