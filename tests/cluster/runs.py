"""Pipelines on a release, as users have them: the command line, kubectl, and the results in the store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.kube import Cluster, Object, Release
from tests.faults.observe import STAGES, Result
from zhongjing.backends.kubernetes.services import Services
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.backend import JobState
from zhongjing.storage.progress_writer import read_metrics

ENDED = ("Complete", "Failed", "Suspended")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass
class Run:
    """One pipeline on a release."""

    release: Release
    name: str
    document: Path

    @property
    def cluster(self) -> Cluster:
        """Where it runs."""
        return self.release.cluster

    def command(self, *words: str, timeout: float = 600.0) -> Done:
        """``zhongjing ...`` from this machine, as a user of the namespace gives it."""
        done = subprocess.run(
            [sys.executable, "-m", "zhongjing", *words, "-n", self.release.namespace],
            env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
            cwd=self.document.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def submit(self, *words: str, timeout: float = 900.0) -> Done:
        """``submit -f`` of the document."""
        return self.command("submit", "-f", str(self.document), *words, timeout=timeout)

    def object(self) -> Object:
        """The TrainingPipeline as it is now."""
        return self.cluster.get("trainingpipeline", self.name, namespace=self.release.namespace)

    def stage(self, stage: Stage) -> Object:
        """What the status says of a stage; empty before the controller has looked."""
        status = self.object().get("status") or {}
        return dict((status.get("stages") or {}).get(stage.value) or {})

    def condition(self) -> Object:
        """The condition that holds; empty before there is one."""
        conditions = (self.object().get("status") or {}).get("conditions") or []
        return next((dict(each) for each in conditions if each["status"] == "True"), {})

    def wait(self, kind: str, *, seconds: float) -> Object:
        """Until the condition ``kind`` holds; another end fails at once."""

        def looked() -> Object | None:
            found = self.condition()
            assert found.get("type") in (kind, "Progressing", None), found
            return found if found.get("type") == kind else None

        return dict(self.cluster.until(looked, f"{self.name} is {kind}", seconds=seconds, every=1.0))

    @contextmanager
    def session(self) -> Iterator[KubernetesSession]:
        """As the command line opens it."""
        before = os.environ.get("KUBECONFIG")
        os.environ["KUBECONFIG"] = str(self.cluster.kubeconfig)
        try:
            with KubernetesSession.open(namespace=self.release.namespace) as session:
                yield session
        finally:
            if before is None:
                del os.environ["KUBECONFIG"]
            else:
                os.environ["KUBECONFIG"] = before

    def results(self, stages: Sequence[Stage] = STAGES) -> dict[Stage, Result]:
        """Manifests and metric points of the stages, read through the API server."""
        found: dict[Stage, Result] = {}
        with self.session() as session:
            for stage in stages:
                manifest = session.manifest(self.name, stage)
                assert manifest is not None, f"{stage} has no result"
                place = session.layout(self.name).stage(stage, manifest.key)
                found[stage] = Result(manifest, tuple(read_metrics(session.store, place)))
        return found


@dataclass
class JobWatch:
    """Looks at Ray's jobs all the time: no stage twice at once, one stage at a time on the cluster."""

    run: Run
    looks: int = 0
    crowds: list[list[str]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> JobWatch:
        self._thread = threading.Thread(target=self._watch, name="job-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                with self.run.session() as session:
                    services = Services(session.api, session.release)
                    try:
                        while not self._ended.wait(1.0):
                            self._look(services.jobs(timeout=5.0))
                    finally:
                        services.close()
            except (ZhongjingError, OSError):
                # The head, the API server or the token has just been taken away: that is the test.
                self._ended.wait(1.0)

    def _look(self, jobs: RayJobsBackend) -> None:
        alive = [job.submission_id for job in jobs.jobs() if job.state is JobState.RUNNING]
        self.looks += 1
        if len(alive) > 1:
            self.crowds.append(alive)


def wait_for_step(run: Run, stage: Stage, fraction: float, *, seconds: float = 300.0) -> dict[str, Any]:
    """Until the stage has made ``fraction`` of its steps, with a checkpoint; returns what the status says.

    Raises:
        AssertionError: the stage was over before.
    """

    def there() -> Object | None:
        entry = run.stage(stage)
        assert entry.get("state") not in ("Succeeded", "Skipped", "Failed"), f"too late: {entry}"
        live = entry.get("progress") or {}
        total = live.get("totalSteps") or 0
        return entry if total and live.get("step", 0) >= fraction * total else None

    what = f"{fraction:.0%} of {stage}"
    return dict(run.cluster.until(there, what, seconds=seconds, every=0.5))


def pods(cluster: Cluster, namespace: str, component: str) -> list[Object]:
    """The pods of a component of a release."""
    selector = f"app.kubernetes.io/component={component}"
    return list(cluster.get("pods", "--selector", selector, namespace=namespace)["items"])


def end_pods(cluster: Cluster, namespace: str, component: str) -> None:
    """As a node's death ends them: at once, without a word."""
    names = [pod["metadata"]["name"] for pod in pods(cluster, namespace, component)]
    assert names, f"no pod of {component}"
    cluster.kubectl(
        *("delete", "pod", *names, "--grace-period", "0", "--force", "--wait=false"), namespace=namespace
    )


def still(seconds: float) -> None:
    """Lets an outage last: how long is what the test is about."""
    time.sleep(seconds)
