"""The controller as a process on this machine, against a real API server, a real Ray and a real S3 server.

Only the stages' jobs are stand-ins (``fake_stage_jobs``), so that a pipeline takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.cluster.own_namespace import own_namespace
from tests.local_support import ALL, JOBS
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import (
    CONFIG_MAPS,
    EVENTS,
    PIPELINES,
    SECRETS,
    Object,
)
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.backends.local.processes import wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease, WorkerGroup
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore, open_store

SOURCES = {"pretrain": "texts", "sft": "dialogues", "rm": "rankings", "ppo": "dialogues"}
KINDS = {"texts": "text", "dialogues": "dialogue", "rankings": "ranking"}


@dataclass
class Place:
    """A namespace, a bucket and a Ray: where one test's release is."""

    api: KubeApi
    store: ObjectStore
    bucket: str
    s3: EmbeddedS3
    head: RayHead
    folder: Path
    release: str = "zj"
    controllers: list[ControllerHandle] = field(default_factory=list)
    groups: list[WorkerGroup] = field(default_factory=list)  # beside the one without GPUs

    @property
    def pipelines(self) -> Pipelines:
        """The namespace's objects."""
        return Pipelines(self.api)

    @property
    def jobs(self) -> RayJobsBackend:
        """Ray's jobs."""
        return self.head.backend("fake_stage_jobs")

    def layout(self, name: str) -> Layout:
        """Where a pipeline's objects are."""
        return Layout(self.bucket, self.api.namespace, name)

    def config(
        self, release: str | None = None, *, scaling: Literal["controller", "none"] = "none"
    ) -> ReleaseConfig:
        """What the chart would have written."""
        name = release or self.release
        return ReleaseConfig(
            release=name,
            fullname=f"{name}-zhongjing",
            namespace=self.api.namespace,
            chart_version="0.1.0",
            image="zhongjing:0.1.0",
            provisioner="static",
            ray=RayRelease(
                cluster=name,
                service=f"{name}-zhongjing-ray-head",
                token_secret=f"{name}-zhongjing-ray-token",
                token_managed=True,
                groups=[
                    WorkerGroup(
                        name="cpu",
                        workload=f"{name}-zhongjing-ray-cpu",
                        cpus=4,
                        gpus=0,
                        memory="8Gi",
                        min_replicas=0,
                        max_replicas=4,
                    ),
                    *self.groups,
                ],
                scaling=scaling,
                idle_seconds=1,
            ),
            storage=StorageRelease(bundled=True, uri=self.bucket, endpoint=self.s3.endpoint),
        )

    def start(
        self,
        *,
        release: str | None = None,
        module: str = "zhongjing.controller",
        options: Sequence[str] = (),
        pods: bool = False,
    ) -> ControllerHandle:
        """Starts a controller; with ``pods`` it looks after the pods of its Ray."""
        config = self.config(release, scaling="controller" if pods else "none")
        handle = ControllerHandle(self, config, module, options, pods=pods)
        self.controllers.append(handle)
        return handle

    def end(self) -> None:
        """Ends the controllers and their jobs."""
        for controller in self.controllers:
            controller.kill()
        for pipeline in self.pipelines.find()[0]:
            self.api.patch(PIPELINES, pipeline.name, {"metadata": {"finalizers": []}})
        for job in self.jobs.jobs():
            if job.metadata.get("namespace") == self.api.namespace and not job.state.is_terminal:
                self.jobs.stop(job.submission_id)

    # Pipelines

    def upload(self) -> None:
        """Puts the corpora into the bucket."""
        for source in KINDS:
            self.store.put(f"{self.bucket}/data/{source}.jsonl", f"content of {source}".encode())

    def document(self, name: str, stages: Sequence[Stage] = ALL, **fields: Any) -> Object:
        """A pipeline of stand-in stages; ``labels`` steer them, other fields go into ``spec``."""
        labels = {key.replace("_", "-"): str(value) for key, value in fields.pop("labels", {}).items()}
        used = {SOURCES[stage] for stage in stages}
        return {
            "apiVersion": "training.zhongjing.dev/v1alpha1",
            "kind": "TrainingPipeline",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "base": {"uri": "owner/base"},
                "sources": [
                    {"name": source, "kind": kind, "uri": f"{self.bucket}/data/{source}.jsonl"}
                    for source, kind in KINDS.items()
                    if source in used
                ],
                "stages": {stage.value: {"data": [{"source": SOURCES[stage]}]} for stage in stages},
                **fields,
            },
        }

    def apply(self, document: Object) -> Pipeline:
        """Makes an object."""
        return Pipeline(self.api.create(PIPELINES, document))

    def change(self, name: str, **fields: Any) -> None:
        """Changes fields of ``spec``."""
        self.api.patch(PIPELINES, name, {"spec": fields})

    def get(self, name: str) -> Pipeline:
        """An object that exists."""
        found = self.pipelines.get(name)
        assert found is not None, f"{name} is gone"
        return found

    def wait(
        self, name: str, holds: Callable[[Pipeline], object], seconds: float = 60.0, what: str = ""
    ) -> Pipeline:
        """Waits until something holds of an object."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pipeline = self.get(name)
            if holds(pipeline):
                return pipeline
            time.sleep(0.1)
        raise AssertionError(
            f"{name}: not in time: {what}\n{yaml.safe_dump(self.get(name).status)}\n{self.logs()}"
        )

    def logs(self) -> str:
        """What the controllers said."""
        return "\n".join(each.log.read_text()[-6000:] for each in self.controllers)

    def starts(self, name: str, stage: Stage) -> list[str]:
        """Every start of a process of a stage, as ``aN``."""
        listed = self.store.list(f"{self.layout(name).home}/{stage}")
        names = [item.uri.rpartition("/")[2] for item in listed if "/starts/" in item.uri]
        return sorted(each.partition("-")[0] for each in names)

    def events(self, name: str) -> list[Object]:
        """Events about an object, oldest first."""
        found = self.api.find(EVENTS, fields=f"regarding.name={name}").items
        return sorted(found, key=lambda each: str(each["eventTime"]))

    def install(self, release: str) -> None:
        """The ConfigMap that says that a release is installed."""
        labels = {
            "app.kubernetes.io/instance": release,
            "app.kubernetes.io/name": "zhongjing",
            "app.kubernetes.io/part-of": "zhongjing",
            "app.kubernetes.io/component": "config",
        }
        text = yaml.safe_dump(self.config(release).model_dump(mode="json", by_alias=True))
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{release}-zhongjing-config", "labels": labels},
            "data": {"release.yaml": text},
        }
        self.api.create(CONFIG_MAPS, body)

    def give_token(self) -> None:
        """The Secret with the token of this machine's Ray."""
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{self.release}-zhongjing-ray-token"},
            "stringData": {"auth_token": self.head.token_file.read_text()},
        }
        self.api.create(SECRETS, body)

    def uninstall(self, release: str) -> None:
        """Takes the ConfigMap of a release away."""
        self.api.delete(CONFIG_MAPS, f"{release}-zhongjing-config")


class ControllerHandle:
    """A controller process."""

    def __init__(
        self, place: Place, config: ReleaseConfig, module: str, options: Sequence[str], *, pods: bool
    ) -> None:
        number = len(place.controllers)
        file = place.folder / f"release-{number}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
        self.log = place.folder / f"controller-{number}.log"
        assert place.head.record is not None
        command = [
            *(sys.executable, "-m", module, *options, "--config", str(file), "--port", "0"),
            *("--ray-address", place.head.record.dashboard_url),
            *([] if pods else ["--ray-token", str(place.head.token_file)]),
            *("--ray-package", "fake_stage_jobs", "--cadence", "0.3", "--lease", "5"),
        ]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))
        }
        environment |= {**place.s3.environment(), "PYTHONPATH": str(Path.cwd())}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def says(self, text: str, seconds: float = 30.0) -> None:
        """Waits until its log has ``text``."""
        assert wait_until(lambda: text in self.log.read_text(), seconds), self.log.read_text()[-4000:]

    @property
    def port(self) -> int:
        """Of its health endpoints."""
        self.says("health on port ")
        return int(self.log.read_text().partition("health on port ")[2].split()[0])

    def fetch(self, path: str) -> tuple[int, str]:
        """Status and body of one of its endpoints."""
        request = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def kill(self) -> None:
        """Kills it without warning."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 30.0) -> int:
        """Ends it in order; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def ray_and_store(folder: Path) -> Iterator[tuple[RayHead, EmbeddedS3]]:
    """A Ray head and an S3 server for a module (about 12 s)."""
    with EmbeddedS3(folder / "s3") as s3:
        before = dict(os.environ)
        os.environ["PYTHONPATH"] = os.pathsep.join([JOBS, str(Path.cwd())])
        # Jobs are started as `python`, which in the image is the one that has the packages.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        head = RayHead(folder / "ray", s3.environment())
        try:
            head.start(cpus=4)
        finally:
            os.environ.clear()
            os.environ.update(before)
        try:
            yield head, s3
        finally:
            head.stop()


@contextlib.contextmanager
def place(head: RayHead, s3: EmbeddedS3, folder: Path) -> Iterator[Place]:
    """A namespace and a bucket of a test's own."""
    with own_namespace("controller") as api, _place(api, head, s3, folder) as made:
        yield made


@contextlib.contextmanager
def _place(api: KubeApi, head: RayHead, s3: EmbeddedS3, folder: Path) -> Iterator[Place]:
    bucket = f"s3://{api.namespace}"
    before = dict(os.environ)
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        del os.environ[key]
    os.environ.update(s3.environment())
    made = None
    try:
        BucketAdmin(Storage(uri=bucket)).ensure_bucket(bucket)
        store = open_store(Storage(uri=bucket, deadline_seconds=20))
        made = Place(api, store, bucket, s3, head, folder)
        made.upload()
        yield made
    finally:
        if made is not None:
            made.end()
        os.environ.clear()
        os.environ.update(before)
