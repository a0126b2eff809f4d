"""Real local backends in tests: supervisor, S3 and Ray are real, the stages' jobs are stand-ins."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zhongjing.backends.local.processes import marked, wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.session import LocalSession
from zhongjing.backends.local.workdir import SupervisorRecord
from zhongjing.config.stages import Stage
from zhongjing.errors import TransientError
from zhongjing.pipeline.prepare import prepare
from zhongjing.pipeline.state import DesiredState, PipelineStatus, StageState

JOBS = str(Path(__file__).parent / "integration")
ALL = (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO)


# ``zhongjing``, for tests that send it signals. Where they are started with signals ignored (a background
# shell, nohup), it would not hear them.
_HEARING = """\
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
runpy.run_module("zhongjing", run_name="__main__", alter_sys=True)
"""
ZHONGJING = (sys.executable, "-c", _HEARING)


def end_supervisor(path: Path) -> None:
    session = LocalSession.open(path, start=True, idle_seconds=30)
    record = session.workdir.live_record()
    assert record is not None
    os.kill(record.process.pid, signal.SIGTERM)
    assert wait_until(lambda: not record.process.is_alive, 30)
    assert not marked(RayHead(path).mark), "Ray processes are left behind"


def open_session(path: Path, *, idle_seconds: float = 120) -> LocalSession:
    return LocalSession.open(path, start=True, idle_seconds=idle_seconds, package="fake_stage_jobs")


def document(data: Path, name: str, *, stages: tuple[Stage, ...] = ALL, **labels: str) -> dict[str, Any]:
    sources = {"pretrain": "texts", "sft": "dialogues", "rm": "rankings", "ppo": "dialogues"}
    files = {"texts": ("text", "txt"), "dialogues": ("dialogue", "jsonl"), "rankings": ("ranking", "jsonl")}
    used = {sources[stage] for stage in stages}
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": name, "labels": {key.replace("_", "-"): value for key, value in labels.items()}},
        "spec": {
            "base": {"uri": "owner/base"},
            "sources": [
                {"name": source, "kind": kind, "uri": str(data / f"{source}.{suffix}")}
                for source, (kind, suffix) in files.items()
                if source in used
            ],
            "stages": {
                stage.value: {"data": [{"source": sources[stage]}], "progressDeadlineSeconds": 30}
                for stage in stages
            },
        },
    }


def submit(session: LocalSession, user: dict[str, Any], **options: Any) -> DesiredState:
    return session.apply(prepare(session, user, **options).desired)


def follow(
    session: LocalSession,
    desired: DesiredState,
    until: Callable[[PipelineStatus], bool] | None = None,
    timeout: float = 120,
) -> PipelineStatus:
    """Waits until the pipeline is settled, or ``until`` holds."""
    deadline = time.monotonic() + timeout
    status = None
    with session.heartbeat():
        while time.monotonic() < deadline:
            try:
                status = session.status(desired.pipeline)
            except TransientError:  # the store is being started again
                continue
            if status is not None and status.observed_generation >= desired.generation:
                if until is not None and until(status):
                    return status
                if status.settled(desired):
                    assert until is None or until(status), status.model_dump_json(indent=1)
                    return status
            time.sleep(0.1)
    raise AssertionError(f"not in time: {status.model_dump_json(indent=1) if status else None}")


def starts(session: LocalSession, name: str, stage: Stage) -> list[str]:
    """Every start of a process of a stage, as ``aN``."""
    listed = session.store.list(f"{session.layout(name).home}/{stage}")
    names = [item.uri.rpartition("/")[2] for item in listed if "/starts/" in item.uri]
    return [each.partition("-")[0] for each in names]


def is_running(stage: Stage) -> Callable[[PipelineStatus], bool]:
    return lambda status: status.stage(stage).state is StageState.RUNNING


def wait_for_step(session: LocalSession, name: str, step: int) -> None:
    """Waits until the SFT job of a pipeline has made ``step`` steps."""
    assert wait_until(
        lambda: (found := session.progress(name, Stage.SFT)) is not None and found.step >= step, 60
    )


def live(session: LocalSession) -> SupervisorRecord:
    record = session.workdir.live_record()
    assert record is not None
    return record


def job_process(session: LocalSession, stage: Stage) -> psutil.Process:
    """The Python process of the stage's job."""
    for process in marked(RayHead(session.workdir.path).mark):
        words = process.cmdline()
        if f"fake_stage_jobs.{stage}" in words:
            return process
    raise AssertionError(f"no process of {stage}")
