"""The controller takes real TrainingPipelines through their stages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.capacity_support import install_head, install_workers
from tests.cluster.controller_killed import POINTS
from tests.cluster.controller_support import Place, place, ray_and_store
from tests.cluster.crd_support import with_crd
from tests.local_support import ALL
from zhongjing.backends.kubernetes.resources import DEPLOYMENTS, LEASES, NODES, PIPELINES, PODS
from zhongjing.backends.kubernetes.trainingpipeline import FINALIZER, Pipeline
from zhongjing.backends.kubernetes.workloads import is_ready
from zhongjing.backends.local.processes import wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.manifest import StageRequest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RM = [Stage.RM]
RSS_BYTES = 180 * 2**20


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, EmbeddedS3]]:
    with with_crd("default"), ray_and_store(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture
def here(services: tuple[RayHead, EmbeddedS3], tmp_path: Path) -> Iterator[Place]:
    with place(*services, tmp_path) as made:
        yield made


def is_complete(pipeline: Pipeline) -> bool:
    return pipeline.holds(ConditionType.COMPLETE)


def is_failed(pipeline: Pipeline) -> bool:
    return pipeline.holds(ConditionType.FAILED) and pipeline.is_settled


def reason(pipeline: Pipeline) -> str:
    return str((pipeline.condition() or {}).get("reason"))


def runs(stage: Stage, step: int = 0) -> Callable[[Pipeline], bool]:
    def check(pipeline: Pipeline) -> bool:
        entry = (pipeline.status.get("stages") or {}).get(stage.value) or {}
        return entry.get("state") == "Running" and (entry.get("progress") or {}).get("step", 0) >= step

    return check


def test_a_pipeline_runs_to_complete_and_its_object_tells_how(here: Place) -> None:
    controller = here.start()
    assert controller.fetch("/healthz") == (200, "ok\n")
    applied = here.apply(here.document("whole", labels={"steps": 10, "step_seconds": 0.2}))
    running = here.wait("whole", runs(Stage.PRETRAIN, 1))
    assert running.status["release"] == "zj"
    assert (running.status["stage"], running.status["state"]) == ("pretrain", "Running")
    progress = running.status["stages"]["pretrain"]["progress"]
    assert running.status["progress"] == f"{progress['percent']}%"
    assert (progress["totalSteps"], progress["activity"]) == (10, "training")
    assert running.status["resolvedSpec"]["stages"]["rm"]["learningRate"] > 0
    status, text = controller.fetch("/metrics")
    assert status == 200
    assert 'zhongjing_controller_pipelines{state="Running"} 1.0' in text
    assert "zhongjing_controller_leader 1.0" in text
    assert psutil.Process(controller.pid).memory_info().rss < RSS_BYTES

    done = here.wait("whole", is_complete, 120)
    assert [here.starts("whole", stage) for stage in ALL] == [["a1"]] * 4
    assert {each["state"] for each in done.status["stages"].values()} == {"Succeeded"}
    assert done.status["targets"] == "pretrain,sft,rm,ppo"
    assert (done.status["state"], done.status["progress"]) == ("Complete", "100%")
    assert applied.created <= done.status["startTime"][:19] + "Z" <= done.status["completionTime"][:19] + "Z"
    assert done.status["stages"]["ppo"]["submissionId"] == f"whole-{applied.uid[:8]}-ppo-a1"
    assert wait_until(lambda: here.events("whole")[-1]["reason"] == "Complete", 10)
    told = [each["reason"] for each in here.events("whole")]
    assert told.count("StageSubmitted") == told.count("StageSucceeded") == 4
    # Nothing is left to do: it costs no request but the listing, and no write.
    version = done.version
    assert controller.terminate() == 0
    assert here.get("whole").version == version
    lease = here.api.get(LEASES, "zj-zhongjing-controller")
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")


def test_suspend_stops_with_a_checkpoint_and_resume_goes_on(here: Place) -> None:
    here.start()
    here.apply(here.document("pause", RM, labels={"steps": 40, "step_seconds": 0.2}))
    here.wait("pause", runs(Stage.RM, 2))
    here.change("pause", suspend=True)
    stopped = here.wait("pause", lambda each: each.holds(ConditionType.SUSPENDED) and each.is_settled)
    entry = stopped.status["stages"]["rm"]
    assert entry["state"] == "Suspended"
    assert "checkpoint at step" in entry["message"]
    assert here.jobs.describe(entry["submissionId"]).state is JobState.SUCCEEDED
    here.api.patch(PIPELINES, "pause", {"metadata": {"labels": {"step-seconds": "0.01"}}})
    here.change("pause", suspend=False)
    done = here.wait("pause", is_complete)
    assert here.starts("pause", Stage.RM) == ["a1", "a2"]
    assert done.status["stages"]["rm"]["attempt"] == 2


def test_the_cluster_is_given_by_priority_and_bad_input_stops_nobody(here: Place) -> None:
    slow = {"steps": 30, "step_seconds": 0.1}
    here.start()
    here.apply(here.document("first", RM, labels=slow))
    here.wait("first", runs(Stage.RM))
    bad = here.document("bad", RM)
    bad["spec"]["sources"][0]["uri"] = f"{here.bucket}/nothing-here.jsonl"
    here.apply(bad)
    local = here.document("local", RM)
    local["spec"]["sources"][0]["uri"] = "/home/me/rankings.jsonl"
    here.apply(local)
    variable = here.document("variable", RM)
    variable["spec"]["base"] = {"uri": "s3://${AWS_SECRET_ACCESS_KEY}/base"}
    here.apply(variable)
    here.apply(here.document("cache", RM))
    here.apply(here.document("low", RM))
    here.apply(here.document("high", RM, priority=5))
    here.apply(here.document("edited", RM, priority=9))
    nonsense = {"stages": {"rm": {"state": "Nonsense", "attempt": 1}}}
    here.wait("edited", lambda each: reason(each) == "Queued")
    here.api.patch(PIPELINES, "edited", {"status": nonsense}, subresource="status")
    waiting = here.wait("low", lambda each: reason(each) == "Queued")
    condition = waiting.condition()
    assert condition is not None
    assert condition["message"] == "waits for first"
    for name, code, where in (
        ("bad", "SourceNotFound", "spec.sources.rankings.uri"),
        ("local", "LocalPath", "spec.sources[0].uri"),
        ("variable", "UnsetVariable", "spec.base.uri"),
        ("cache", "ReservedName", "metadata.name"),
    ):
        refused = here.wait(name, is_failed).condition()
        assert refused is not None
        assert refused["reason"] == code
        assert where in refused["message"]
        assert refused["remedy"]
        assert "zhongjing-test" not in refused["message"]
    for name in ("first", "high", "low"):
        here.wait(name, is_complete)
    times = {name: here.get(name).status["startTime"] for name in ("first", "high", "low")}
    assert times["first"] < times["high"] < times["low"]
    ended = here.get("first").status["completionTime"]
    assert times["high"] >= ended, "two pipelines had the cluster at once"
    # Corrected, the bad one runs.
    here.change("bad", sources=here.document("bad", RM)["spec"]["sources"])
    here.wait("bad", is_complete)


def test_retained_artifacts_outlive_the_object_and_its_job_stops(here: Place) -> None:
    here.start()
    applied = here.apply(here.document("kept", RM, labels={"steps": 300, "step_seconds": 0.1}))
    here.wait("kept", runs(Stage.RM, 2))
    assert FINALIZER not in (here.get("kept").metadata.get("finalizers") or [])
    here.apply(here.document("next", RM))
    here.api.delete(PIPELINES, "kept")
    assert wait_until(lambda: here.pipelines.get("kept") is None, 10)
    job = f"kept-{applied.short_uid}-rm-a1"
    assert wait_until(lambda: here.jobs.describe(job).state is JobState.SUCCEEDED, 30), (
        "it was not asked to stop"
    )
    here.wait("next", is_complete)
    left = {info.uri.rpartition("/")[2] for info in here.store.list(here.layout("kept").home)}
    assert "step.json" in left
    # Made again, its attempts count on: the stop of the old a1 means no new attempt.
    here.apply(here.document("kept", RM))
    done = here.wait("kept", is_complete)
    assert done.status["stages"]["rm"]["attempt"] == 2
    assert here.starts("kept", Stage.RM) == ["a1", "a2"]


def test_artifacts_go_with_the_object_where_that_is_wanted(here: Place) -> None:
    here.start()
    document = here.document("gone", RM, deletionPolicy="Delete", labels={"steps": 300, "step_seconds": 0.1})
    here.apply(document)
    running = here.wait("gone", runs(Stage.RM, 2))
    assert running.has_finalizer
    shared = f"{here.bucket}/{here.api.namespace}/cache/tokens/x/shard"
    here.store.put(shared, b"of others")
    here.api.delete(PIPELINES, "gone")
    assert wait_until(lambda: here.pipelines.get("gone") is None, 40), here.logs()
    assert not list(here.store.list(here.layout("gone").home))
    assert here.store.exists(shared)
    job = running.status["stages"]["rm"]["submissionId"]
    assert here.jobs.describe(job).state is JobState.SUCCEEDED, "it was not stopped with a checkpoint"
    # The finalizer follows the policy.
    document = here.document("changed", RM, deletionPolicy="Delete", suspend=True)
    here.apply(document)
    here.wait("changed", lambda each: each.has_finalizer and each.holds(ConditionType.SUSPENDED))
    here.change("changed", deletionPolicy="Retain")
    here.wait("changed", lambda each: not each.has_finalizer)


@pytest.mark.parametrize("point", POINTS)
def test_a_controller_that_dies_in_a_submission_starts_no_second_attempt(here: Place, point: str) -> None:
    first = here.start(module="tests.cluster.controller_killed", options=[point])
    here.apply(here.document("once", RM, labels={"steps": 20, "step_seconds": 0.1}))
    assert first.process.wait(60) == -9
    known = here.get("once").status.get("stages") or {}
    assert bool(known.get("rm", {}).get("submissionId")) == (point != "before-status")
    here.start()
    done = here.wait("once", is_complete, 90)
    assert here.starts("once", Stage.RM) == ["a1"]
    assert done.status["stages"]["rm"]["attempt"] == 1


def test_a_second_controller_takes_over_and_adopts_the_job(here: Place) -> None:
    first = here.start()
    first.says("this process leads")
    second = here.start()
    here.apply(here.document("handed", RM, labels={"steps": 80, "step_seconds": 0.2}))
    here.wait("handed", runs(Stage.RM, 1))
    assert "leads" not in second.log.read_text()
    assert second.fetch("/readyz")[0] == 200
    first.kill()
    killed = time.monotonic()
    second.says("this process leads", 40)
    assert time.monotonic() - killed >= 3, "the lease was taken before it was over"
    done = here.wait("handed", is_complete)
    assert here.starts("handed", Stage.RM) == ["a1"]
    assert done.status["stages"]["rm"]["attempt"] == 1


def test_what_another_release_runs_is_left_alone(here: Place) -> None:
    here.install("zj")
    here.install("other")
    here.start()
    theirs = here.document("theirs", RM, managedBy="other")
    here.apply(theirs)
    taken = here.document("taken", RM)
    here.apply(taken)
    here.wait("taken", is_complete)
    assert not here.get("theirs").status
    other = here.start(release="other")
    here.wait("theirs", is_complete)
    assert here.get("theirs").release == "other"
    assert here.get("taken").release == "zj"
    other.terminate()
    # Given back to nobody in particular, it stays with who took it up ...
    here.change("theirs", managedBy=None, seed=1)
    here.apply(here.document("mine", RM))
    here.wait("mine", is_complete)
    assert here.get("theirs").status["observedGeneration"] == 1
    # ... until that one is uninstalled.
    here.uninstall("other")
    again = here.wait("theirs", lambda each: each.release == "zj" and is_complete(each))
    assert again.status["observedGeneration"] == 2


def test_a_source_that_is_waited_for_is_frozen_when_it_comes(here: Place) -> None:
    here.start()
    document = here.document("patient", RM)
    document["spec"]["sources"][0] |= {"wait": True, "uri": f"{here.bucket}/later/*.jsonl"}
    here.apply(document)
    here.wait("patient", lambda each: reason(each) == "WaitingForInput")
    here.apply(here.document("busy", RM))
    here.wait("busy", is_complete)  # who waits for data does not keep the cluster
    for number in range(3):
        here.store.put(f"{here.bucket}/later/{number}.jsonl", b"ranked")
    done = here.wait("patient", is_complete, 60)
    late = done.status["sources"][0]
    assert (late["name"], late["objects"]) == ("rankings", 3)
    uri = done.status["stages"]["rm"]
    request = here.store.get_record(
        here.layout("patient").stage(Stage.RM, uri["key"]).request(1), StageRequest
    )
    assert [len(source.objects) for source in request.sources] == [3]
    here.apply(here.document("brief", RM, ttlSecondsAfterFinished=1))
    assert wait_until(lambda: here.pipelines.get("brief") is None, 60), "its time to live is over"


def test_a_stage_that_cannot_fit_into_the_nodes_gpus_waits_until_it_is_forced(here: Place) -> None:
    pool = {"zhongjing.test/pool": here.api.namespace}
    group: Any = {
        "workload": "gpu",
        "cpus": 4,
        "gpus": 1,
        "memory": "64Gi",
        "min_replicas": 0,
        "max_replicas": 1,
    }
    here.groups.append(WorkerGroup(name="gpu", node_selector=pool, **group))
    node: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"gpu-{here.api.namespace}",
            "labels": {**pool, "nvidia.com/gpu.memory": "23028"},  # as GPU feature discovery labels an A10
        },
        "spec": {"unschedulable": True},
        "status": {"capacity": {"nvidia.com/gpu": "1"}},
    }
    here.api.create(NODES, node)
    try:
        here.start()
        document = here.document("large", RM, base={"uri": "huggyllama/llama-13b"})
        document["spec"]["stages"]["rm"]["resources"] = {"gpus": 1}
        here.apply(document)
        waits = here.wait("large", lambda each: reason(each) == "DoesNotFit")
    finally:
        here.api.delete(NODES, node["metadata"]["name"])
    condition = waits.condition() or {}
    assert condition["type"] == "Progressing"
    assert re.search(r"rm cannot fit: a GPU would need \d\d\.\d GiB of 21\.9 GiB", condition["message"])
    assert "set spec.stages.rm." in condition["remedy"]
    assert waits.status["stages"]["rm"]["state"] == "Blocked"
    assert here.starts("large", Stage.RM) == []
    here.apply(here.document("small", RM))
    here.wait("small", is_complete)  # who does not fit does not keep the cluster
    here.change("large", force=True)
    here.wait("large", is_complete)


def test_an_edit_that_cannot_be_run_lets_the_running_stage_end(here: Place) -> None:
    here.start()
    stages = [Stage.SFT, Stage.RM]
    here.apply(here.document("edited", stages, labels={"steps": 30, "step_seconds": 0.2}))
    here.wait("edited", runs(Stage.SFT, 1))
    sources = here.document("edited", stages)["spec"]["sources"]
    # A running stage's own source may not change at all ...
    with pytest.raises(BackendError, match="runs"):
        here.change("edited", sources=[{**each, "uri": f"{here.bucket}/no"} for each in sources])
    # ... another stage's may, to something that is not there.
    wrong = [{**each, "uri": f"{here.bucket}/no"} if each["name"] == "rankings" else each for each in sources]
    here.change("edited", sources=wrong)
    failed = here.wait("edited", is_failed)
    assert reason(failed) == "SourceNotFound"
    assert failed.status["stages"]["sft"]["state"] in ("Succeeded", "Skipped")
    assert here.starts("edited", Stage.SFT) == ["a1"]
    here.change("edited", sources=sources)
    here.wait("edited", is_complete)
    assert here.starts("edited", Stage.SFT) == ["a1"]


def test_the_store_goes_away_and_every_pipeline_says_so(here: Place) -> None:
    here.start()
    here.apply(here.document("running", RM, labels={"steps": 60, "step_seconds": 0.2}))
    here.wait("running", runs(Stage.RM, 1))
    here.s3.kill()
    try:
        here.apply(here.document("queued", RM))
        here.apply(here.document("queued-too", RM))
        for name in ("queued", "queued-too", "running"):
            told = here.wait(name, lambda each: reason(each) == "StorageUnreachable", 60).condition()
            assert told is not None
            assert (told["type"], bool(told["remedy"])) == ("Progressing", True)
    finally:
        here.s3.start()
    for name in ("running", "queued", "queued-too"):
        here.wait(name, is_complete)
    assert here.starts("running", Stage.RM) == ["a1"]


def test_worker_pods_come_when_a_stage_is_prepared_and_go_when_they_are_idle(here: Place) -> None:
    def workers() -> int:
        found = here.api.get(DEPLOYMENTS, "zj-zhongjing-ray-cpu")
        return int(found["spec"]["replicas"]) if found is not None else 0

    def activity(pipeline: Pipeline) -> str:
        entry = (pipeline.status.get("stages") or {}).get("rm") or {}
        return str((entry.get("progress") or {}).get("activity"))

    def goes_on(mark: str) -> None:
        key = here.get("patient").status["stages"]["rm"]["key"]
        here.store.put(f"{here.layout('patient').stage(Stage.RM, key).root}/{mark}", b"")

    here.give_token()
    controller = here.start(pods=True)
    here.apply(here.document("patient", RM, labels={"prepares": "slowly"}))
    waiting = here.wait("patient", lambda each: reason(each) == "ClusterNotReady").condition()
    assert waiting is not None
    assert "cpu" in waiting["message"]
    assert waiting["type"] == "Progressing"
    install_head(here.api)
    head = "zj-zhongjing-ray-head-0"  # without one, workers are asked for at once
    assert wait_until(lambda: is_ready(here.api.get(PODS, head) or {"metadata": {}}), 60)
    install_workers(here.api, "cpu")
    preparing = here.wait("patient", lambda each: activity(each) == "preparing")
    assert not wait_until(lambda: workers() > 0, 4), "workers were asked for before the stage was prepared"
    assert 'zhongjing_controller_worker_pods{group="cpu"} 0.0' in controller.fetch("/metrics")[1]
    condition = here.get("patient").condition()
    assert condition is not None
    assert "no workers are asked for yet" in condition["message"]
    assert preparing.status["state"] == "Running"

    goes_on("prepared")
    waiting = here.wait("patient", lambda each: reason(each) == "ClusterStarting").condition()
    assert waiting is not None
    assert "0 of 1 worker pods of group cpu are ready" in waiting["message"]
    assert workers() == 1
    here.wait("patient", lambda each: each.status["stages"]["rm"]["state"] == "Running")
    goes_on("workers")
    done = here.wait("patient", is_complete, 90)
    assert here.starts("patient", Stage.RM) == ["a1"]
    assert done.status["stages"]["rm"]["attempt"] == 1
    assert "ClusterNotReady" in [each["reason"] for each in here.events("patient")]
    assert wait_until(lambda: workers() == 0, 30), "idle workers were kept"
