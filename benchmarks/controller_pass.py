"""What a pass of the controller over many TrainingPipelines costs, on a real API server and a real S3 server.

``KUBECONFIG=... python benchmarks/controller_pass.py [COUNT] [--fresh N]`` makes a namespace with COUNT
(1,000) complete pipelines, and prints JSON: seconds of the listing, seconds and CPU seconds of passes,
requests to the API and to Ray, memory of the process. ``--fresh`` measures what N new, suspended pipelines
cost when they are first seen. ``--queued N`` measures instead what N pipelines cost that wait while one has
the cluster: half a minute of the controller's loop, and the change of turns. The CRD must be there. Only Ray
is a stand-in: its jobs do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.events import Recorder
from zhongjing.backends.kubernetes.resources import NAMESPACES, PIPELINES
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease
from zhongjing.controller.fencing import RayCluster
from zhongjing.controller.loop import Controller
from zhongjing.controller.metrics import Metrics
from zhongjing.controller.store import ReleaseStore
from zhongjing.pipeline.backend import JobDescription, JobRequest, JobState
from zhongjing.pipeline.observe import Policy
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.client import Clients
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import open_store

BUCKET = "s3://zhongjing"


class Jobs(RayJobsBackend):
    """A Ray whose jobs run until they are told to end, and do nothing."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", None)
        self.requests = 0
        self.known: dict[str, JobDescription] = {}

    def jobs(self) -> list[JobDescription]:
        """All of them."""
        self.requests += 1
        return list(self.known.values())

    def submit(self, job: JobRequest) -> None:
        """Runs at once."""
        self.requests += 1
        name = job.submission_id
        self.known[name] = JobDescription(
            submission_id=name, state=JobState.RUNNING, metadata=dict(job.metadata)
        )

    def describe(self, submission_id: str) -> JobDescription:
        """What it does."""
        self.requests += 1
        unknown = JobDescription(submission_id=submission_id, state=JobState.UNKNOWN)
        return self.known.get(submission_id, unknown)

    def stop(self, submission_id: str) -> None:
        """Ends it."""
        job = self.known.get(submission_id)
        if job is not None:
            self.known[submission_id] = job.model_copy(update={"state": JobState.STOPPED})

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Nothing."""
        yield from ()


class Counter:
    """Counts the requests to the object store of the process."""

    def __init__(self) -> None:
        self.requests = 0
        send = Clients.call

        def counted(*arguments: Any, **options: Any) -> Any:
            self.requests += 1
            return send(*arguments, **options)

        Clients.call = counted  # type: ignore[method-assign]


def queued(controller: Controller, api: KubeApi, ray: Jobs, counter: Counter, count: int) -> dict[str, Any]:
    """What pipelines cost that wait for their turn."""
    for number in range(count + 1):
        api.create(PIPELINES, document(f"queued-{number:05d}", force=True, priority=count - number))
    controller.inventory.expire()

    def turns() -> set[str]:
        found = [each.condition() or {} for each in controller.inventory.all() if not each.is_settled]
        return {str(each.get("message" if each.get("reason") == "Queued" else "reason")) for each in found}

    def go(seconds: float, until: set[str] | None = None) -> dict[str, float]:
        """The controller's loop for so long, or until no pipeline says anything else."""
        began = (time.perf_counter(), time.process_time(), api.requests, counter.requests)
        longest = 0.0
        while time.perf_counter() - began[0] < seconds and turns() != until:
            start = time.perf_counter()
            wait = controller.once()
            longest = max(longest, time.perf_counter() - start)
            time.sleep(min(wait, 1.0))
        after = (time.perf_counter(), time.process_time(), api.requests, counter.requests)
        names = ("seconds", "cpu_seconds", "api_requests", "s3_requests")
        told = {name: round(b - a, 2) for name, a, b in zip(names, began, after, strict=True)}
        return told | {"longest_pass": round(longest, 2)}

    first, second = "queued-00000", "queued-00001"
    figures = {"first_look": go(1200, {"Running", f"waits for {first}"}), "half_a_minute": go(30)}
    api.patch(PIPELINES, first, {"spec": {"suspend": True}})
    for name in list(ray.known):
        ray.stop(name)
    controller.inventory.expire()
    figures["change_of_turns"] = go(600, {"Running", f"waits for {second}"})
    for each in controller.inventory.all():
        api.delete(PIPELINES, each.name)
    controller.inventory.expire()
    controller.once()
    return figures


@contextmanager
def namespace() -> Iterator[KubeApi]:
    """One of its own."""
    api = connect(namespace=f"pass-{uuid.uuid4().hex[:8]}", seconds=60)
    api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": api.namespace}})
    try:
        yield api
    finally:
        api.delete(NAMESPACES, api.namespace)


def release(api: KubeApi, endpoint: str) -> ReleaseConfig:
    """What the chart would have written."""
    return ReleaseConfig(
        release="zj",
        fullname="zj-zhongjing",
        namespace=api.namespace,
        chart_version="0",
        image="zhongjing",
        provisioner="static",
        ray=RayRelease(
            cluster="zj",
            service="ray",
            token_secret="none",  # noqa: S106
            token_managed=False,
            groups=[],
            scaling="none",
        ),
        storage=StorageRelease(bundled=True, uri=BUCKET, endpoint=endpoint),
    )


def document(name: str, **spec: Any) -> dict[str, Any]:
    """A pipeline of four stages without sources that could be missing."""
    data = [{"source": "prompts"}]
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": name},
        "spec": {
            "base": {"uri": f"{BUCKET}/base"},
            "sources": [{"name": "prompts", "kind": "dialogue", "uri": f"{BUCKET}/data/prompts.jsonl"}],
            "stages": {"pretrain": {"data": data}, "sft": {"data": data}},
            **spec,
        },
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--fresh", type=int, default=50)
    parser.add_argument("--queued", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedS3(Path(folder)) as s3, namespace() as api:
        os.environ.update(s3.environment())  # as a pod of the chart has it
        settings = release(api, s3.endpoint)
        BucketAdmin(settings.storage.storage()).ensure_bucket(BUCKET)
        store = open_store(settings.storage.storage())
        store.put(f"{BUCKET}/data/prompts.jsonl", b"{}")
        store.put(f"{BUCKET}/base/config.json", b"{}")
        ray, counter = Jobs(), Counter()
        controller = Controller(
            Pipelines(api),
            settings,
            ReleaseStore(api, settings),
            RayCluster(ray),
            may_act=lambda: True,
            recorder=Recorder(api, "benchmark"),
            metrics=Metrics(),
            policy=Policy(),
        )

        def measure(passes: int) -> dict[str, float]:
            before = (time.perf_counter(), time.process_time(), api.requests, ray.requests)
            for _ in range(passes):
                controller.once()
            after = (time.perf_counter(), time.process_time(), api.requests, ray.requests)
            names = ("seconds", "cpu_seconds", "api_requests", "ray_requests")
            return {name: round((b - a) / passes, 4) for name, a, b in zip(names, before, after, strict=True)}

        figures: dict[str, Any] = {"pipelines": options.count}
        if options.queued:
            found = queued(controller, api, ray, counter, options.queued)
            print(json.dumps({"queued": options.queued} | found, indent=2))
            return
        # What a first look costs, each with its listing of sources and its two documents.
        for number in range(options.fresh):
            api.create(PIPELINES, document(f"fresh-{number}", suspend=True))
        controller.inventory.expire()
        began = (time.perf_counter(), time.process_time(), api.requests)
        while (
            not all(each.is_settled for each in controller.inventory.all()) or not controller.inventory.all()
        ):
            controller.once()
        count = max(options.fresh, 1)
        figures["fresh"] = {
            "seconds": round((time.perf_counter() - began[0]) / count, 4),
            "cpu_seconds": round((time.process_time() - began[1]) / count, 4),
            "api_requests": round((api.requests - began[2]) / count, 2),
        }
        known = controller.inventory.all()[0].status
        entry = {"state": "Succeeded", "attempt": 1, "key": "0" * 16, "submissionId": "x" * 40}
        conditions = [
            {
                "type": "Complete",
                "status": "True",
                "reason": "Complete",
                "message": "everything asked for is done",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]
        status = known | {"conditions": conditions, "stages": {"pretrain": entry, "sft": entry}}
        pipelines = Pipelines(api)

        def complete(number: int) -> None:
            made = Pipeline(api.create(PIPELINES, document(f"complete-{number}")))
            pipelines.write_status(made, status)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(complete, range(options.count)))
        controller.inventory.expire()
        before = (time.perf_counter(), time.process_time(), api.requests)
        controller.inventory.refresh()
        figures["listing"] = {
            "seconds": round(time.perf_counter() - before[0], 3),
            "cpu_seconds": round(time.process_time() - before[1], 3),
            "api_requests": api.requests - before[2],
        }
        figures["first_pass_after_listing"] = measure(1)
        figures["pass"] = measure(20)
        controller.inventory.expire()
        figures["pass_with_listing"] = measure(1)
        figures["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
