"""What is different about runs on a cluster: Ctrl-C, hints, what keeps them. Over a session in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession, desired_state, pipeline_status, stage_status
from zhongjing.cli.target import CLUSTER_OPENER
from zhongjing.cli.watch import follow
from zhongjing.codes.cluster import API_UNREACHABLE, FORBIDDEN
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, BackendUnavailableError
from zhongjing.pipeline.state import CLUSTER_NOT_READY, QUEUED, ConditionType, PipelineStatus, StageState

RUNS = {Stage.SFT: stage_status(StageState.RUNNING, submission_id="demo-0a1b2c3d-sft-a1")}
DONE = {Stage.SFT: stage_status(StageState.SUCCEEDED), Stage.RM: stage_status(StageState.SUCCEEDED)}
KUBECONFIG = """
current-context: prod
clusters: [{name: c, cluster: {server: https://127.0.0.1:1}}]
contexts: [{name: prod, context: {cluster: c, user: u}}]
"""


class ClusterSession(MemorySession):
    """A place that goes on without the command that watches it, and says what keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.namespace = "train"
        self.flags = "-n train"
        self.stops_on_interrupt = False
        self.dashboard_url = None
        self.found: list[str] = []
        self.asked = 0
        self.unreachable = False

    def obstacles(self, *, ignored: bool = False) -> list[str]:
        self.asked += 1
        if self.unreachable:
            raise BackendUnavailableError("no answer", code=API_UNREACHABLE)
        return self.found or (["the controller has not seen the pipeline yet"] if ignored else [])


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def update(self, view: Any) -> None: ...

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def cluster() -> Iterator[ClusterSession]:
    session = ClusterSession()
    token = CLUSTER_OPENER.set(lambda place: session)  # type: ignore[arg-type, return-value]
    yield session
    CLUSTER_OPENER.reset(token)


@pytest.fixture
def kubeconfig(command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(file))


def watch(session: ClusterSession) -> list[str]:
    notes, clock = Notes(), Clock()
    session.add(desired_state())
    follow(session, desired_state(), notes, sleep=clock.sleep, now=clock)
    return notes.lines


def frames(
    count: int, *, reason: str = "Running", message: str = "", generation: int = 1
) -> list[tuple[PipelineStatus, dict[Stage, Any]]]:
    status = pipeline_status(RUNS, reason=reason, message=message, generation=generation)
    return [(status.model_copy(update={"stages": {}}), {})] * count


END: tuple[PipelineStatus, dict[Stage, Any]] = (pipeline_status(DONE, ConditionType.COMPLETE), {})


@pytest.mark.usefixtures("kubeconfig")
def test_ctrl_c_leaves_the_run_and_says_how_to_go_on(command: CommandLine, cluster: ClusterSession) -> None:
    cluster.add(desired_state())
    cluster.frames = [(pipeline_status(RUNS), {}), KeyboardInterrupt()]
    result = command("resume", "-n", "train", "-o", "json")
    assert result.exit_code == 130
    said = json.loads(result.stdout)
    assert (said["code"], said["exitCode"], said["pipeline"]) == ("Interrupted", 130, "demo")
    assert result.stderr.splitlines()[-3:] == [
        "demo: no longer followed; the run goes on",
        "  follow it: zhongjing status demo --watch -n train",
        "  stop it:   zhongjing stop demo -n train",
    ]
    assert cluster.calls == ["resume demo"]


@pytest.mark.usefixtures("kubeconfig")
def test_hints_reach_the_same_place(command: CommandLine, cluster: ClusterSession) -> None:
    cluster.add(desired_state())
    left = command("resume", "--no-wait", "-n", "train")
    assert left.stdout == "demo: submitted; follow it with: zhongjing status demo --watch -n train\n"
    missing = command("pull", "demo/sft", "out", "-n", "train")
    assert "  remedy: make it with: zhongjing submit --pipeline demo --stage sft -n train" in missing.stderr
    failed = {
        Stage.SFT: stage_status(StageState.FAILED, reason="Diverged", message="m", submission_id="demo-a1")
    }
    cluster.frames = [(pipeline_status(failed, ConditionType.FAILED, reason="Diverged"), {})]
    shown = command("status", "demo", "-n", "train")
    assert "  log: zhongjing logs demo --stage sft -n train" in shown.stdout
    cluster.wanted.clear()
    none = command("stop", "-n", "train")
    assert "  remedy: start one with: zhongjing submit -n train" in none.stderr


@pytest.mark.parametrize(
    ("reason", "word"), [(QUEUED, "waits for its turn"), (CLUSTER_NOT_READY, "the cluster is not ready")]
)
@pytest.mark.usefixtures("kubeconfig")
def test_what_a_run_waits_for_is_shown_once(
    command: CommandLine, cluster: ClusterSession, reason: str, word: str
) -> None:
    cluster.add(desired_state())
    cluster.frames = [*frames(4, reason=reason, message="of others"), END]
    result = command("status", "demo", "--watch")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(f"{word}: of others") == 1


def test_a_controller_that_does_not_look_is_told_of(cluster: ClusterSession) -> None:
    cluster.frames = [*frames(30, generation=0), END]
    assert watch(cluster) == ["the controller has not seen the pipeline yet"]
    assert 2 <= cluster.asked <= 3, "it is asked now and then, not at every look"


def test_what_keeps_the_pods_is_told_each_once(cluster: ClusterSession) -> None:
    cluster.found = ["pod/zj-controller: cannot be pulled\n  remedy: push it", "pod/zj-s3-0: is starting"]
    cluster.frames = [*frames(40, generation=0), END]
    assert watch(cluster) == cluster.found


def test_what_the_condition_says_already_is_not_said_again(cluster: ClusterSession) -> None:
    cluster.found = ["pod/zj-0: no node fits", "pod/zj-1: no image"]
    cluster.frames = [*frames(20, reason=CLUSTER_NOT_READY, message="pod/zj-0: no node fits"), END]
    assert watch(cluster) == ["pod/zj-1: no image"]


def test_a_run_that_goes_on_asks_nothing(cluster: ClusterSession) -> None:
    cluster.frames = [*frames(30), END]
    assert watch(cluster) == []
    assert cluster.asked == 0


def test_a_place_that_cannot_be_asked_is_no_error(cluster: ClusterSession) -> None:
    cluster.unreachable = True
    cluster.frames = [*frames(30, generation=0), END]
    assert watch(cluster) == []
    assert cluster.asked > 0


@pytest.mark.usefixtures("kubeconfig")
def test_results_that_may_not_be_seen_are_left_out(
    command: CommandLine, cluster: ClusterSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pipeline: str, stage: Stage) -> None:
        raise BackendError("may not get services in the namespace train", code=FORBIDDEN)

    monkeypatch.setattr(cluster, "manifest", refused)
    cluster.add(desired_state())
    cluster.frames = [END]
    shown = command("status", "demo")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("demo: Complete")
    assert shown.stderr == "note: results are not shown: may not get services in the namespace train\n"
    told = command("status", "demo", "-o", "json")
    assert json.loads(told.stdout)["condition"] == "Complete"
