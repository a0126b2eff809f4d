"""Progress and metric points in a real store."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import StorageError
from zhongjing.storage import progress_writer
from zhongjing.storage.client import Clients
from zhongjing.storage.heartbeat import Heartbeat
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity, MetricPoint, Progress
from zhongjing.storage.progress_writer import MetricsWriter, ProgressWriter, read_metrics

pytestmark = pytest.mark.integration


def progress(step: int, activity: Activity = Activity.TRAINING) -> Progress:
    return Progress(stage=Stage.PRETRAIN, key="abc123", attempt=1, activity=activity, step=step)


def point(step: int, loss: float = 1.0) -> MetricPoint:
    return MetricPoint(kind="train", step=step, time="2026-11-22T20:00:00Z", values={"loss": loss})


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stored_step(store: ObjectStore, layout: StageLayout) -> int | None:
    found = store.find_record(layout.progress, Progress)
    return None if found is None else found.step


def test_progress_is_rate_limited_but_a_change_is_written_at_once(
    store: ObjectStore, layout: StageLayout
) -> None:
    assert store.find_record(layout.progress, Progress) is None
    writer = ProgressWriter(store, layout, interval=30)
    writer.write(progress(0, Activity.STARTING))
    assert eventually(lambda: stored_step(store, layout) == 0)
    for step in range(1, 6):
        writer.write(progress(step, Activity.STARTING))
    time.sleep(0.3)
    assert stored_step(store, layout) == 0, "within the interval nothing is written"
    writer.write(progress(6, Activity.TRAINING))
    assert eventually(lambda: stored_step(store, layout) == 6)
    writer.write(progress(7, Activity.TRAINING))
    assert writer.close()
    assert stored_step(store, layout) == 7, "close writes the newest"


def test_progress_at_the_interval(store: ObjectStore, layout: StageLayout) -> None:
    writer = ProgressWriter(store, layout, interval=0.2)
    for step in range(20):
        writer.write(progress(step))
    assert eventually(lambda: stored_step(store, layout) == 19)
    assert writer.close()


def test_work_between_two_reports_is_published_and_idleness_is_not(
    store: ObjectStore, layout: StageLayout
) -> None:
    heartbeat = Heartbeat()
    writer = ProgressWriter(store, layout, interval=0.05, heartbeat=heartbeat)
    writer.write(progress(3, Activity.EVALUATING))
    assert eventually(lambda: stored_step(store, layout) == 3)
    idle = store.find_record(layout.progress, Progress)
    time.sleep(0.4)
    assert store.find_record(layout.progress, Progress) == idle, "nothing was done, so nothing is claimed"
    heartbeat.beat(0.25)

    def told() -> tuple[int, float | None]:
        found = store.find_record(layout.progress, Progress)
        assert found is not None
        return found.beats, found.fraction

    assert eventually(lambda: told() == (1, 0.25))
    writer.write(progress(3, Activity.TRAINING))
    assert writer.close()
    assert told() == (1, None), "another activity"


def test_progress_of_an_earlier_release_is_read(store: ObjectStore, layout: StageLayout) -> None:
    old = progress(3).model_dump(mode="json", by_alias=True, exclude={"beats", "fraction"})
    store.put_json(layout.progress, old)
    assert store.find_record(layout.progress, Progress) == progress(3)


def test_an_outage_never_reaches_the_training(
    layout: StageLayout, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    gone = open_store(Storage(endpoint="http://127.0.0.1:1", deadline_seconds=0.2))
    writer = ProgressWriter(gone, layout, interval=0.05)
    metrics = MetricsWriter(gone, layout, interval=0.05)
    started = time.monotonic()
    for step in range(100):
        writer.write(progress(step))
        metrics.add(point(step))
    assert time.monotonic() - started < 0.5, "handing over does not wait for the store"
    assert eventually(
        lambda: "progress: not written" in caplog.text and "metrics: not written" in caplog.text
    )
    # The store comes back: the newest progress and every point arrive.
    gone._clients = Clients(store.connection)
    assert eventually(lambda: stored_step(store, layout) == 99)
    assert writer.close()
    assert metrics.close()
    assert [found.step for found in read_metrics(store, layout)] == list(range(100))


def test_close_tells_when_the_store_stays_away(layout: StageLayout) -> None:
    gone = open_store(Storage(endpoint="http://127.0.0.1:1", deadline_seconds=0.2))
    writer = ProgressWriter(gone, layout)
    writer.write(progress(1))
    assert not writer.close(5)


def test_metrics_while_running_and_after(
    store: ObjectStore, layout: StageLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_writer, "PART_BYTES", 500)
    assert read_metrics(store, layout) == []
    writer = MetricsWriter(store, layout, interval=30)
    points = [point(step, step / 7) for step in range(20)]
    for start in range(0, 20, 2):
        for one in points[start : start + 2]:
            writer.add(one)
        writer.flush()
        assert read_metrics(store, layout) == points[: start + 2]
    assert 2 <= len(list(store.list(f"{layout.root}/metrics"))) <= 6, "parts grow before the next begins"
    assert writer.compact() == points
    assert writer.close()
    assert read_metrics(store, layout) == points
    assert list(store.list(f"{layout.root}/metrics")) == []
    assert store.get(layout.metrics).count(b"\n") == 20


@pytest.mark.parametrize("compacted", [False, True])
def test_resume_drops_the_steps_that_are_run_again(
    compacted: bool, store: ObjectStore, layout: StageLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_writer, "PART_BYTES", 300)
    first = MetricsWriter(store, layout, interval=30)
    for step in range(12):
        first.add(point(step, 1.0))
        first.flush()
    if compacted:
        first.compact()
    first.close()

    second = MetricsWriter(store, layout, interval=30)
    second.truncate(6)
    assert [found.step for found in read_metrics(store, layout)] == list(range(7))
    for step in range(7, 15):
        second.add(point(step, 2.0))
    assert second.close()
    found = read_metrics(store, layout)
    assert [one.step for one in found] == list(range(15))
    assert [one.values["loss"] for one in found] == [1.0] * 7 + [2.0] * 8
    assert len(second.compact()) == 15


def test_fresh_start_drops_everything(store: ObjectStore, layout: StageLayout) -> None:
    first = MetricsWriter(store, layout)
    first.add(point(0))
    assert first.close()
    second = MetricsWriter(store, layout)
    second.truncate(None)
    assert read_metrics(store, layout) == []
    second.add(point(0, 3.0))
    assert second.close()
    assert [one.values["loss"] for one in read_metrics(store, layout)] == [3.0]


def test_damaged_part_names_object_and_line(store: ObjectStore, layout: StageLayout) -> None:
    line = point(1).model_dump_json().encode()
    store.put(layout.metrics_part(0), line + b"\n" + line[:20] + b"\n")
    with pytest.raises(StorageError, match="line 2") as caught:
        read_metrics(store, layout)
    assert caught.value.where == layout.metrics_part(0)


def test_points_that_a_dead_attempt_had_not_stored_come_from_its_checkpoint(
    store: ObjectStore, layout: StageLayout
) -> None:
    dead = MetricsWriter(store, layout, interval=3600)
    dead.add(point(1))
    assert eventually(lambda: [each.step for each in read_metrics(store, layout)] == [1])
    dead.add(point(2))
    dead.add(point(3))
    kept = dead.unstored()  # a checkpoint of step 3 is taken
    assert kept.count(b"\n") == 2
    dead.add(point(4))

    second = MetricsWriter(store, layout, interval=3600)
    second.truncate(3, kept)
    assert [each.step for each in read_metrics(store, layout)] == [1, 2, 3]
    # Once more: the second attempt dies before its first checkpoint. Nothing stands there twice.
    third = MetricsWriter(store, layout, interval=3600)
    third.truncate(3, kept)
    third.add(point(4, loss=0.5))
    assert [each.step for each in third.compact()] == [1, 2, 3, 4]
    for writer in (second, third):
        assert writer.close()
