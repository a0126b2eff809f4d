"""A controller that dies at one point of a submission: ``-m tests.cluster.controller_killed POINT ...``.

It is the real one; only the call at that point is followed, or preceded, by the death of the process.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.controller.process import main
from zhongjing.pipeline.backend import JobRequest

POINTS = ("before-status", "before-submit", "after-submit")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(point: str) -> None:
    write, submit = Pipelines.write_status, RayJobsBackend.submit

    def write_status(self: Pipelines, pipeline: Pipeline, status: Object) -> Pipeline:
        stages: Object = status.get("stages") or {}
        if point == "before-status" and any(each["state"] == "Queued" for each in stages.values()):
            die()
        return write(self, pipeline, status)

    def submit_job(self: Any, job: JobRequest) -> None:
        if point == "before-submit":
            die()
        submit(self, job)
        if point == "after-submit":
            die()

    Pipelines.write_status = write_status  # type: ignore[method-assign]
    RayJobsBackend.submit = submit_job  # type: ignore[method-assign]


if __name__ == "__main__":
    assert sys.argv[1] in POINTS
    prepare(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
