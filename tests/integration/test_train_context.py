"""The loop's world over a real S3: progress, metrics, checkpoints, stop; and TensorBoard files."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.training_jobs import toy_engine
from tests.training_support import start_forked
from zhongjing.backends.local.processes import wait_until
from zhongjing.codes import storage as codes
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import StorageError
from zhongjing.storage.artifacts import request_stop
from zhongjing.storage.checkpoint_records import Ranges
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageRequest
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity, MetricPoint, Progress
from zhongjing.storage.progress_writer import read_metrics
from zhongjing.train.job.ray_context import RayRunContext, TensorBoard
from zhongjing.train.state import TRAINER_FILE, wanted_ranges

pytestmark = pytest.mark.integration

DOCUMENT = """
metadata: {name: x}
spec:
  base: {tiny: {}}
  sources: [{name: talks, uri: talks.jsonl, kind: dialogue}]
  stages: {sft: {data: [{source: talks}]}}
"""


@pytest.fixture
def layout(bucket_uri: str) -> StageLayout:
    return Layout(bucket_uri, "local", "x").stage(Stage.SFT, "k" * 16)


def context(
    store: ObjectStore, storage: Storage, layout: StageLayout, spool: Path, attempt: int = 1, rank: int = 0
) -> RayRunContext:
    document = resolve(parse_document(DOCUMENT, "x"))
    spec = document.spec.model_copy(update={"storage": storage})
    request = StageRequest(
        stage=Stage.SFT,
        key="k" * 16,
        attempt=attempt,
        submission_id=f"x-00000000-sft-a{attempt}",
        document=document.model_copy(update={"spec": spec}),
        sources=[],
        inputs=[],
    )
    return RayRunContext(
        request,
        layout,
        store,
        spool / str(attempt),
        spool / "checkpoints",
        rank=rank,
        world_size=rank + 1,
        local_rank=rank,
        device=torch.device("cpu"),
        keep=2,
    )


def nothing(folder: Path) -> Ranges:
    """No file of these checkpoints is read in parts."""
    return {}


def write_state(folder: Path) -> None:
    (folder / "state").write_text("three")


def test_an_attempt_goes_on_where_the_last_one_saved(
    store: ObjectStore, storage: Storage, layout: StageLayout, tmp_path: Path
) -> None:
    first = context(store, storage, layout, tmp_path)
    assert first.latest(nothing) is None
    for step in range(1, 5):
        first.log("train", step, {"loss": 1.0 / step})
        if step == 3:
            first.save(step, write_state)
    first.wait_saved()
    first.report(Activity.TRAINING, step=4, total_steps=9, message="on its way")
    first.close()
    progress = store.find_record(layout.progress, Progress)
    assert progress is not None
    assert (progress.step, progress.checkpoint_step, progress.message) == (4, 3, "on its way")

    second = context(store, storage, layout, tmp_path, attempt=2)
    folder = second.latest(nothing)
    assert folder is not None
    assert (folder / "state").read_text() == "three"
    second.log("train", 4, {"loss": 0.2})
    second.report(Activity.TRAINING, step=4)
    points = second.compact_metrics()
    second.close()
    # The step after the checkpoint was taken again, and stands there once.
    assert [(point.step, point.values["loss"]) for point in points] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.2),
    ]
    assert read_metrics(store, layout) == points
    progress = store.find_record(layout.progress, Progress)
    assert progress is not None
    assert (progress.attempt, progress.message, progress.checkpoint_step) == (2, "", 3)


def test_a_checkpoint_of_an_earlier_build_says_how_to_begin_again(
    store: ObjectStore, storage: Storage, layout: StageLayout, tmp_path: Path
) -> None:
    first = context(store, storage, layout, tmp_path)
    assert first.latest(nothing) is None

    def write(folder: Path) -> None:
        (folder / TRAINER_FILE).write_text('{"version": 1}')

    first.save(3, write)
    first.wait_saved()
    first.close()
    second = context(store, storage, layout, tmp_path, attempt=2)
    with pytest.raises(StorageError, match="an earlier build made this checkpoint") as caught:
        second.latest(partial(wanted_ranges, toy_engine()))
    second.close()
    assert caught.value.code is codes.DAMAGED_CHECKPOINT
    assert "zhongjing submit --pipeline NAME --rerun STAGE" in str(caught.value.remedy)


def write_megabytes(folder: Path) -> None:
    (folder / "state").write_bytes(bytes(9 << 20))


def die_suddenly(storage: Storage, layout: StageLayout, spool: Path) -> None:
    first = context(open_store(storage), storage, layout, spool)
    assert first.latest(nothing) is None
    for step in range(1, 6):
        first.log("train", step, {"loss": 1.0 / step})
        if step == 4:
            first.save(step, write_megabytes)
    os._exit(9)  # the uploader lives on, the points of the last seconds were never stored


def test_an_attempt_that_died_suddenly_loses_no_point_and_no_snapshot(
    store: ObjectStore, storage: Storage, layout: StageLayout, tmp_path: Path
) -> None:
    died = start_forked(die_suddenly, storage, layout, tmp_path)
    died.join(240)
    assert died.exitcode == 9
    second = context(store, storage, layout, tmp_path, attempt=2)
    folder = second.latest(nothing)
    assert folder is not None
    assert (folder / "state").stat().st_size == 9 << 20
    second.log("train", 5, {"loss": 0.2})
    assert [point.step for point in second.compact_metrics()] == [1, 2, 3, 4, 5]
    second.close()


def test_a_stop_of_this_attempt_is_seen_and_of_another_is_not(
    store: ObjectStore, storage: Storage, layout: StageLayout, tmp_path: Path
) -> None:
    second = context(store, storage, layout, tmp_path, attempt=2)
    try:
        request_stop(store, layout.stop(1), "Suspended", "an earlier one")
        time.sleep(2.5)
        assert not second.stop_requested()
        request_stop(store, layout.stop(2), "Suspended", "this one")
        deadline = time.monotonic() + 30
        while not second.stop_requested():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        second.close()


def hang(storage: Storage, layout: StageLayout, spool: Path, begun: Path) -> None:
    pytest.MonkeyPatch().setattr("zhongjing.train.job.ray_context.OTHERS_POLL_SECONDS", 0.1)
    taken = threading.Lock()

    def waits_for_ever() -> None:
        begun.touch()
        taken.acquire()

    taken.acquire()
    context(open_store(storage), storage, layout, spool, attempt=2, rank=1)
    waits_for_ever()


def test_a_worker_that_hangs_leaves_its_stacks(
    store: ObjectStore, storage: Storage, layout: StageLayout, tmp_path: Path
) -> None:
    uri = f"{layout.logs}/stacks-a2-rank1.txt"
    begun = tmp_path / "begun"
    worker = start_forked(hang, storage, layout, tmp_path, begun)
    try:
        assert wait_until(begun.exists, 240)
        # As the sequencer writes it; an earlier attempt's says nothing to this one.
        store.put_json(layout.stop(1), {"reason": "Hung", "message": ""})
        store.put_json(layout.stop(2), {"reason": "Hung", "message": "made no step"})
        assert wait_until(lambda: store.exists(uri), 30)
    finally:
        worker.kill()
        worker.join()
    text = store.get(uri).decode()
    assert text.startswith(f"rank1: process {worker.pid} on ")
    main = text.split("\n\n")[1]
    assert main.startswith("thread MainThread:")
    assert "in waits_for_ever" in main
    assert not store.exists(f"{layout.logs}/stacks-a1-rank1.txt")


def test_tensorboard_files_hold_every_value(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for step in (1, 2):
        board(MetricPoint(kind="train", step=step, time="", values={"loss": float(step)}))
    board(MetricPoint(kind="validation", step=2, time="", values={"loss": 5.0}))
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("validation/loss")] == [(2, 5.0)]
