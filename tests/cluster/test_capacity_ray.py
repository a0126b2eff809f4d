"""The backend of a release over real Ray pods: room, tokens, stopped nodes, a head that dies."""

from __future__ import annotations

import base64
import logging
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.capacity_support import (
    FULLNAME,
    container,
    group,
    install_head,
    install_workers,
    labels,
    release,
)
from tests.cluster.kube import Cluster
from tests.cluster.own_namespace import own_namespace, wait_for
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.forward import Forward
from zhongjing.backends.kubernetes.ray_backend import ClusterBackend
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, PODS, SECRETS, SERVICES, Object
from zhongjing.backends.kubernetes.secrets import prepare_secrets
from zhongjing.backends.kubernetes.workloads import WORKER as WORKER_PODS
from zhongjing.backends.kubernetes.workloads import is_ready, pod_labels
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes import pods as codes
from zhongjing.codes.cluster import RAY_TOKEN_REFUSED
from zhongjing.config.stages import Resources, Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.backend import ImpossibleJobError, JobRequest, JobState

# Ray and its workers, started again and again: minutes.
pytestmark = [pytest.mark.cluster, pytest.mark.full]
logger = logging.getLogger(__name__)

HEAD, WORKER = f"{FULLNAME}-ray-head-0", f"{FULLNAME}-ray-cpu-"  # a worker's name has an end of its own
TOKEN = f"{FULLNAME}-ray-token"

# Stands in for jobs.rm: `quick` ends at once, anything else holds a worker until it is ended.
JOB = textwrap.dedent(
    """
    import os, sys, time

    import ray

    if sys.argv[-1] != "quick":
        ray.init(address="auto", logging_level="WARNING")

        @ray.remote(num_cpus=1)
        class Worker:
            def where(self):
                return os.getpid()

            def work(self):
                time.sleep(3600)

        worker = Worker.remote()
        print("worker", ray.get(worker.where.remote()), flush=True)
        ray.get(worker.work.remote())
    """
)


def job(attempt: int, what: str = "quick", *, workers: int = 1) -> JobRequest:
    return JobRequest(
        submission_id=f"demo-01234567-rm-a{attempt}",
        stage=Stage.RM,
        request_uri=what,
        metadata={"specHash": f"hash-{attempt}", "pipeline": "demo"},
        workers=workers,
        resources=Resources(cpus=1.0),
    )


@dataclass
class Ray:
    """A release with Ray in it."""

    api: KubeApi
    backend: ClusterBackend
    cluster: Cluster

    def pod(self, name: str) -> Object:
        """A pod that serves, by the beginning of its name."""

        def look() -> Object | None:
            pods = [pod for pod in self.api.find(PODS).items if pod["metadata"]["name"].startswith(name)]
            return next((pod for pod in pods if is_ready(pod)), None)

        return wait_for(look, f"pod {name}", 180)

    def submit(self, job: JobRequest, seconds: float = 180) -> list[BackendUnavailableError]:
        """Submits and asks for workers as the controller does: again and again; what was said in between."""
        said: list[BackendUnavailableError] = []

        def accepted() -> bool:
            try:
                self.backend.submit(job)
                self.backend.request_workers(job)
            except BackendUnavailableError as error:
                if not said or said[-1].message != error.message:
                    said.append(error)
                return False
            return True

        try:
            wait_for(accepted, f"room for {job.submission_id}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; was told: {[each.message for each in said]}") from None
        return said

    def until(self, job: JobRequest, *states: JobState, seconds: float = 90) -> None:
        def reached() -> bool:
            try:
                return self.backend.describe(job.submission_id).state in states
            except BackendUnavailableError:
                return False

        wait_for(reached, f"{job.submission_id} in {states}", seconds)

    def until_working(self, job: JobRequest) -> None:
        """Until the job's worker lives in its pod."""
        self.until(job, JobState.RUNNING)

        def works() -> bool:
            try:
                log = list(self.backend._jobs().read_log(job.submission_id))
            except BackendUnavailableError:
                return False
            return any(line.startswith("worker ") for line in log)

        wait_for(works, f"worker of {job.submission_id}")

    def in_worker(self, script: str) -> str:
        words = ("exec", self.pod(WORKER)["metadata"]["name"], "--", "python", "-c", script)
        return self.cluster.kubectl(*words, namespace=self.api.namespace)


def ray_container(cluster: Cluster, command: str, port: int, path: str, memory: str) -> Object:
    return container(
        image=f"{cluster.image}:{cluster.tag}",
        command=["/bin/bash", "-c", f"exec ray start --block --disable-usage-stats {command}"],
        env=[
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN_PATH", "value": "/token/auth_token"},
            {"name": "RAY_DASHBOARD_ENABLE_PROFILING", "value": "1"},
            {"name": "PYTHONPATH", "value": "/stand-in"},
        ],
        readinessProbe={"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 5},
        resources={"limits": {"memory": memory}, "requests": {"cpu": "10m"}},
        volumeMounts=[
            {"name": "token", "mountPath": "/token"},
            {"name": "jobs", "mountPath": "/stand-in/stand_in"},
        ],
    )


@pytest.fixture(scope="module")
def ray(cluster: Cluster) -> Iterator[Ray]:
    with own_namespace("ray") as api:
        config = release(api, group("cpu", cpus=1.0, memory="2Gi", most=2))
        assert prepare_secrets(api, config) == []
        files = {"__init__.py": "", "rm.py": JOB}
        api.create(
            CONFIG_MAPS,
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "jobs"}, "data": files},
        )
        ports = [{"name": name, "port": port} for name, port in (("gcs", 6379), ("dashboard", 8265))]
        service = {"selector": labels("ray-head"), "ports": ports, "publishNotReadyAddresses": True}
        metadata = {"name": f"{FULLNAME}-ray-head"}
        api.create(SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
        volumes = [
            {"name": "token", "secret": {"secretName": TOKEN}},
            {"name": "jobs", "configMap": {"name": "jobs"}},
        ]
        flags = "--head --port=6379 --dashboard-host=0.0.0.0 --num-cpus=0 --object-store-memory=100000000"
        head = ray_container(cluster, flags, 8265, "/api/gcs_healthz", "4Gi")
        install_head(api, containers=[head], volumes=volumes)
        address = f"--address={FULLNAME}-ray-head:6379 --num-cpus=1 --object-store-memory=100000000"
        worker = ray_container(cluster, address, 52365, "/api/local_raylet_healthz", "2Gi")
        install_workers(api, "cpu", replicas=0, containers=[worker], volumes=volumes)
        wait_for(lambda: is_ready(api.get(PODS, HEAD) or {"metadata": {}}), "head", 180)
        with Forward(api, f"{FULLNAME}-ray-head", 8265) as forward:
            backend = ClusterBackend(api, config, address=forward.url, package="stand_in")
            yield Ray(api, backend, cluster)


def test_a_submission_takes_no_worker_and_what_is_prepared_waits_for_them(ray: Ray) -> None:
    ray.pod(HEAD)
    first = job(1)
    # The head is all that a job needs to begin: it prepares.
    ray.backend.submit(first)
    assert not ray.api.find(PODS, labels=pod_labels(ray.backend._release, WORKER_PODS)).items
    said = ray.submit(first)
    assert "0 of 1 worker pods of group cpu are ready" in said[0].message
    assert said[0].code is codes.WORKERS_STARTING
    ray.until(first, JobState.SUCCEEDED)
    # What was submitted is adopted, and what never fits is refused for good.
    ray.backend.submit(first)
    with pytest.raises(ImpossibleJobError, match="holds 2 at most"):
        ray.backend.submit(job(2, workers=3))
    assert [each.submission_id for each in ray.backend.jobs()] == [first.submission_id]
    assert ray.backend.jobs()[0].metadata["pipeline"] == "demo"


def test_an_idle_cluster_takes_a_job_at_the_first_request(ray: Ray) -> None:
    ray.pod(WORKER)
    third = job(3, "work")
    began = time.monotonic()
    ray.backend.submit(third)
    submitted = time.monotonic() - began
    ray.until(third, JobState.RUNNING)
    running = time.monotonic() - began
    logger.info("submitted after %.2f s, running after %.2f s", submitted, running)
    ray.backend.stop(third.submission_id)
    ray.until(third, JobState.STOPPED)


def test_another_token_in_the_secret_is_waited_out(ray: Ray) -> None:
    ray.pod(HEAD)
    [first] = [each for each in ray.backend.jobs() if each.submission_id.endswith("a1")]
    right = ray.api.get(SECRETS, TOKEN)
    assert right is not None
    # Not Ray's own: the kubelet would bring a change into its pods, and Ray would refuse itself.
    data = {"auth_token": base64.b64encode(b"another").decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "spare"}, "data": data}
    ray.api.create(SECRETS, secret)
    config = ray.backend._release
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"token_secret": "spare"})})
    # A controller that was started just now knows only what the Secret says.
    fresh = ClusterBackend(ray.api, config, address=ray.backend._address)
    questions: list[Callable[[], object]] = [
        fresh.jobs,
        lambda: fresh.describe(first.submission_id),
        lambda: fresh.stop(first.submission_id),
        lambda: list(fresh.tail_logs(first.submission_id)),
    ]
    for ask in questions:
        with pytest.raises(BackendUnavailableError) as refused:
            ask()
        assert refused.value.code is RAY_TOKEN_REFUSED
        assert "another" not in str(refused.value)
    ray.api.patch(SECRETS, "spare", {"data": right["data"]})
    assert fresh.describe(first.submission_id).state is JobState.SUCCEEDED


def test_a_node_that_was_stopped_with_the_job_on_it_is_replaced(ray: Ray) -> None:
    fourth = job(4, "work")
    ray.submit(fourth)
    ray.until_working(fourth)
    uid = ray.pod(WORKER)["metadata"]["uid"]
    # Ray's own node process with it: nobody in the pod can end the worker any more.
    stopped = ray.in_worker(
        "import psutil\n"
        "for each in psutil.process_iter():\n"
        "    words = each.cmdline() or ['']\n"
        "    if words[0].startswith('ray::Worker') or words[0].endswith('/raylet'):\n"
        "        each.suspend(); print(each.pid)\n"
    )
    assert len(stopped.split()) == 2, stopped
    ray.backend.stop(fourth.submission_id)
    ray.until(fourth, JobState.STOPPED, JobState.FAILED)
    fifth = job(5)
    said = ray.submit(fifth)
    assert any("what an earlier attempt left there is ending" in each.message for each in said)
    assert any("replaced" in each.message and WORKER in each.message for each in said)
    assert ray.pod(WORKER)["metadata"]["uid"] != uid
    ray.until(fifth, JobState.SUCCEEDED)


def test_pods_in_which_an_attempt_hung_are_replaced_if_it_was_killed(ray: Ray) -> None:
    uid = ray.pod(WORKER)["metadata"]["uid"]
    heeded, killed = job(8, "work"), job(9, "work")
    for each in (heeded, killed):
        ray.submit(each)
        ray.until_working(each)
        # What the sequencer asks for where an attempt hangs.
        assert "Worker, process" in ray.backend.stacks(each.submission_id)
        assert ray.pod(WORKER)["metadata"]["uid"] == uid
        if each is heeded:
            # It stopped after all, without being killed by us.
            RayJobsBackend.stop(ray.backend._jobs(), each.submission_id)
        else:
            ray.backend.stop(each.submission_id)
        ray.until(each, JobState.STOPPED)
    said = ray.submit(job(10))
    assert any("replaced, because an attempt hung there" in each.message for each in said)
    assert ray.pod(WORKER)["metadata"]["uid"] != uid
    ray.until(job(10), JobState.SUCCEEDED)


def test_a_job_whose_head_died_is_lost_and_the_next_runs_on_new_workers(ray: Ray) -> None:
    sixth = job(6, "work")
    ray.submit(sixth)
    ray.until(sixth, JobState.RUNNING)
    head, worker = (ray.pod(name)["metadata"]["uid"] for name in (HEAD, WORKER))
    ray.api.delete(PODS, HEAD, grace_seconds=1)

    def forgotten() -> bool:
        try:
            return ray.backend.describe(sixth.submission_id).state is JobState.UNKNOWN
        except BackendUnavailableError:
            return False

    wait_for(forgotten, "a head that knows nothing", 120)
    assert ray.pod(HEAD)["metadata"]["uid"] != head
    ray.submit(job(7))
    ray.until(job(7), JobState.SUCCEEDED)
    # The worker was one of the old head's, so it was replaced, or it gave up and started again.
    fresh = ray.pod(WORKER)
    restarts = fresh["status"]["containerStatuses"][0]["restartCount"]
    assert fresh["metadata"]["uid"] != worker or restarts > 0
    assert ray.backend.describe(sixth.submission_id).lost
