"""Run as a child by :mod:`zhongjing.cli.diagnosis.ray`: starts a Ray of its own, submits a job, ends it."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.cli.diagnosis.children import end_with_parent, remove, tell
from zhongjing.cli.diagnosis.ray_job import RANKS, RESULT
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.backend import JobState

JOB_SECONDS = 90.0
_JOB = "zhongjing-doctor"


def main() -> None:
    """Sends how long Ray took, what it holds, and what the job said."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("zhongjing").setLevel(logging.ERROR)
    head = RayHead(options.folder)

    def clean_up() -> None:
        head.stop()
        remove(options.folder)

    end_with_parent(clean_up)
    began = time.monotonic()
    try:
        head.start(RANKS)
        tell(ready=time.monotonic() - began)
        tell(**_job(head))
    except ZhongjingError as error:
        tell(error=error.message, where=error.where, remedy=error.remedy, code=error.code.name)
    finally:
        head.stop()


def _job(head: RayHead) -> dict[str, Any]:
    """Submits the job, waits for it, and returns its result or why there is none."""
    began = time.monotonic()
    jobs = head.backend("jobs")
    jobs.start(_JOB, ["-m", "zhongjing.cli.diagnosis.ray_job"], {})
    job = jobs.describe(_JOB)
    while not job.state.is_terminal and time.monotonic() - began < JOB_SECONDS:
        time.sleep(0.2)
        job = jobs.describe(_JOB)
    if job.state is not JobState.SUCCEEDED:
        return {"job_error": f"{job.state}: {job.message}".rstrip(": ")}
    return {"job_seconds": time.monotonic() - began, **_result(jobs)}


def _result(jobs: RayJobsBackend) -> dict[str, Any]:
    for line in jobs.read_log(_JOB):
        if line.startswith(RESULT):
            found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return found
    return {"job_error": "the job ended well and said nothing"}


if __name__ == "__main__":
    main()
