"""Passes over all pipelines: one object's trouble stays its own, and a log says what is new."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.controller.loop_support import ROOT, World
from zhongjing.backends.kubernetes.failures import refused
from zhongjing.backends.kubernetes.resources import PIPELINES, Request
from zhongjing.backends.kubernetes.trainingpipeline import FINALIZER, Pipeline
from zhongjing.codes import Code
from zhongjing.codes.pods import NO_FITTING_NODE, WORKERS_STARTING
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.codes.storage import INVALID_STORAGE, WRONG_REGION
from zhongjing.config.stages import Stage
from zhongjing.controller.verify import GPUS, VERIFIES
from zhongjing.errors import BackendError, BackendUnavailableError, ConfigError, StorageError
from zhongjing.pipeline.backend import JobDescription, JobRequest, JobState
from zhongjing.storage.layout import Layout
from zhongjing.storage.progress import Activity, Progress

NOW = 1_800_000_000.0


def answer(status: int, name: str = "gone") -> Exception:
    """What the client makes of a refusal of the API server."""
    body = json.dumps({"message": "not as it was", "details": {"name": name}})
    return refused(status, body, Request("PATCH", PIPELINES, "ns", name))


@pytest.mark.parametrize("status", [404, 409])
def test_kubernetes_404_and_409_are_no_errors_of_the_store(status: int) -> None:
    error = answer(status)
    assert isinstance(error, BackendError)
    assert not isinstance(error, StorageError)


@pytest.mark.parametrize("status", [404, 409])
def test_one_object_that_was_deleted_or_changed_breaks_no_whole_pass(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.objects.apply("a-gone", deletionPolicy="Delete")
    world.objects.apply("b-here")

    def set_finalizer(pipeline: Pipeline, wanted: bool) -> None:
        raise answer(status, pipeline.name)

    monkeypatch.setattr(world.objects, "set_finalizer", set_finalizer)
    world.run(NOW)
    assert world.objects.condition("b-here")[:2] == ("Progressing", "Running")


def test_a_status_that_cannot_be_read_breaks_no_whole_pass() -> None:
    """A newer release with one more stage was rolled back."""
    world = World()
    world.objects.apply("a-newer")
    world.objects.apply("b-here")
    raw = world.objects.items["a-newer"].raw
    newer = {"stages": {"distil": {"state": "Pending", "progress": {"activity": "training"}}}}
    world.objects.items["a-newer"] = Pipeline(raw | {"status": newer})
    world.run(NOW)
    assert world.objects.condition("b-here")[:2] == ("Progressing", "Running")


@pytest.mark.parametrize("wrong", [INVALID_STORAGE, WRONG_REGION])
def test_settings_of_the_store_that_a_deletion_finds_wrong_break_no_whole_pass(
    wrong: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a ConfigError, not a StorageError."""
    world = World()
    world.objects.apply("a-going", deletionPolicy="Delete")
    world.objects.apply("b-here")
    raw = world.objects.items["a-going"].raw
    metadata = raw["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}
    world.objects.items["a-going"] = Pipeline(raw | {"metadata": metadata})

    def delete_folder(uri: str) -> int:
        raise ConfigError("the bucket is elsewhere", code=wrong)

    monkeypatch.setattr(world.store, "delete_folder", delete_folder, raising=False)
    world.run(NOW)
    assert world.objects.condition("b-here")[:2] == ("Progressing", "Running")


LEFT_OVER = {
    "namespace": "ns",
    "release": "zj",
    "stage": "sft",
    "key": "k",
    "attempt": "1",
    "pipeline": "gone",
}


def left_over(world: World, name: str, **metadata: str) -> None:
    """A job that runs, of a pipeline that is gone unless its metadata say otherwise."""
    world.jobs.known[name] = JobDescription(
        submission_id=name, state=JobState.RUNNING, metadata=LEFT_OVER | metadata
    )


def test_a_job_left_over_that_cannot_be_asked_to_stop_breaks_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.objects.apply("here")
    left_over(world, "gone-1-sft-a1")
    left_over(world, "odd", release="", **{VERIFIES: "zj", GPUS: "half of one"})

    def exists(uri: str) -> bool:
        raise ConfigError("the bucket is elsewhere", code=WRONG_REGION)

    monkeypatch.setattr(world.store, "exists", exists)
    world.run(NOW)
    assert world.objects.condition("here")[:2] == ("Progressing", "Queued")


@pytest.mark.parametrize("metadata", [{"namespace": "other"}, {"release": "other"}])
def test_what_others_have_on_the_same_ray_is_left_alone(metadata: dict[str, str]) -> None:
    world = World()
    world.objects.apply("here")
    left_over(world, "gone-1-sft-a1", **metadata)
    world.run(NOW)
    assert world.objects.condition("here")[:2] == ("Progressing", "Running")
    assert "gone-1-sft-a1" in world.jobs.known


def test_a_workload_that_was_deleted_breaks_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.objects.apply("here")

    def look_after(ray: object, **what: Any) -> None:
        raise answer(404, "zj-ray-gpu")

    monkeypatch.setattr("zhongjing.controller.fencing.RayCluster.look_after", look_after)
    world.run(NOW)
    assert world.objects.condition("here")[:2] == ("Progressing", "Running")


class Headless:
    """A Ray without a head: nothing is known there, and a submission says what is missing."""

    def __init__(self, world: World) -> None:
        self.error: BackendUnavailableError | None = None
        jobs = world.jobs
        self._submit, self._describe = jobs.submit, jobs.describe
        jobs.submit, jobs.describe = self.submit, self.describe  # type: ignore[method-assign]

    def submit(self, job: JobRequest) -> None:
        if self.error is not None:
            raise self.error
        self._submit(job)

    def describe(self, submission_id: str) -> JobDescription:
        if self.error is not None:
            raise BackendUnavailableError("Ray does not answer: [Errno 111]", code=RAY_UNREACHABLE)
        return self._describe(submission_id)


def test_what_goes_on_being_so_is_logged_once_and_then_once_in_ten_minutes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("zhongjing.pipeline.repeats.time", SimpleNamespace(monotonic=lambda: clock[0]))
    world = World()
    ray = Headless(world)
    ray.error = BackendUnavailableError("no node can ever hold the head", code=NO_FITTING_NODE)
    world.objects.apply("held")
    with caplog.at_level(logging.INFO):
        for number in range(0, 3600, 20):
            clock[0] = float(number)
            world.run(NOW + number)
        told = [each for each in caplog.records if "no node" in each.getMessage()]
        assert {each.levelno for each in told} == {logging.WARNING}
        assert len(told) == 6, "an hour"
        assert not [each for each in caplog.messages if "submitt" in each], "nothing was submitted"
        caplog.clear()
        ray.error = BackendUnavailableError("0 of 1 worker pods are ready", code=WORKERS_STARTING)
        for number in range(3600, 3700, 20):
            world.run(NOW + number)
        assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
            (logging.INFO, "held: 0 of 1 worker pods are ready")
        ]
        assert world.objects.condition("held")[1] == "ClusterStarting"
        caplog.clear()
        ray.error = None
        for number in range(3700, 3800, 20):
            world.run(NOW + number)
    [submitted, recovered] = caplog.messages
    assert submitted.startswith("submitted held-")
    assert submitted.endswith("-pretrain-a1")
    assert recovered == "held: recovered"


def test_a_document_that_an_older_controller_refused_is_looked_at_again() -> None:
    """A change of the release that can mend it is another version of the controller."""
    world = World()
    world.objects.apply("newer", stages={"pretrain": {"data": [{"source": "texts"}], "noSuchField": 1}})
    world.run(NOW)
    assert world.objects.condition("newer")[:2] == ("Failed", "UnknownField")
    settled = world.objects.items["newer"]
    asked = len(world.store.asked)
    world.run(NOW + 60)
    assert (world.objects.writes, len(world.store.asked)) == (1, asked), "by the same controller it is not"
    # The next controller knows the field, which stands for any that the definition and it know.
    spec = settled.spec | {"stages": {"pretrain": {"data": [{"source": "texts"}]}}}
    upgraded = World()
    upgraded.objects.items["newer"] = Pipeline(settled.raw | {"spec": spec})
    upgraded.objects.version = int(settled.version)
    upgraded.run(NOW + 120)
    assert upgraded.objects.condition("newer")[:2] == ("Progressing", "Running")


def test_a_document_that_is_refused_still_costs_one_look() -> None:
    world = World()
    world.objects.apply("wrong", stages={"pretrain": {"data": [{"source": "texts"}], "noSuchField": 1}})
    world.run(NOW)
    again = World()
    again.objects.items, again.objects.version = dict(world.objects.items), world.objects.version
    for second in range(5):
        again.run(NOW + second)
    assert again.objects.writes == 0
    assert again.objects.condition("wrong")[:2] == ("Failed", "UnknownField")


def test_live_progress_that_came_too_soon_after_a_write_is_told_later_though_nothing_new_came() -> None:
    """A step may take an hour, and be told two seconds after another write."""
    world = World()
    world.objects.apply("here")
    for seconds in (0, 2):
        world.run(NOW + seconds)
    key = world.objects.items["here"].status["stages"]["pretrain"]["key"]
    place = Layout(ROOT, "ns", "here").stage(Stage.PRETRAIN, key).progress
    first = Progress(
        stage=Stage.PRETRAIN,
        key=key,
        attempt=1,
        activity=Activity.PREPARING,
        step=0,
        total_steps=10,
        updated_at="2026-01-01T00:00:00Z",
    )
    world.store.put_record(place, first)
    world.run(NOW + 4)
    world.store.put_record(place, first.model_copy(update={"metrics": {"loss": 2.0}}))
    for seconds in (6, 8, 10):
        world.run(NOW + seconds)
    told = world.objects.items["here"].status["stages"]["pretrain"]["progress"]
    assert told["metrics"] == {"loss": 2.0}
