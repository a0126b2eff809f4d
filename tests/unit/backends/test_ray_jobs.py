"""The Jobs API client against a scripted server: every answer that Ray gives, and those it should not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from zhongjing.backends.ray_jobs import RayJobsBackend, TokenRefusedError
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, BackendUnavailableError, TransientError
from zhongjing.pipeline.backend import ForeignJobError, JobRequest, JobState

TOKEN = "a-secret-token"
JOB = JobRequest(
    submission_id="demo-0123abcd-rm-a1",
    stage=Stage.RM,
    request_uri="s3://b/with space/a1.json",
    metadata={"specHash": "hash", "stage": "rm"},
)
TAKEN = "Traceback (most recent call last):\n  File ...\nValueError: Job with submission_id x already exists."


class Server:
    """Answers by (method, path), and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.cut_off = 0  # bytes that are promised and never come
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                outer.asked.append((self.command, self.path, dict(self.headers), body))
                status, content = outer.answers.get((self.command, self.path), (404, "does not exist"))
                if status == 0:
                    return  # the head dies before it answers
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data) + outer.cut_off))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def details(self, status: str, **fields: Any) -> None:
        job = {"submission_id": JOB.submission_id, "status": status, "metadata": JOB.metadata, **fields}
        self.answers["GET", f"/api/jobs/{JOB.submission_id}"] = (200, job)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def jobs(server: Server) -> RayJobsBackend:
    return RayJobsBackend(server.address + "/", TOKEN, python="/venv/bin/python", timeout=5)


def test_a_submission_carries_the_token_and_no_secret(server: Server, jobs: RayJobsBackend) -> None:
    server.answers["POST", "/api/jobs/"] = (200, {"submission_id": JOB.submission_id})
    jobs.submit(JOB)
    [(_, _, headers, body)] = server.asked
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert body == {
        "entrypoint": "/venv/bin/python -m jobs.rm --request 's3://b/with space/a1.json'",
        "submission_id": JOB.submission_id,
        "metadata": {"specHash": "hash", "stage": "rm"},
        "runtime_env": {"env_vars": {"ZHONGJING_ATTEMPT": JOB.submission_id}},
        "entrypoint_num_cpus": 0,
    }
    assert jobs.render(JOB) == body
    assert TOKEN not in json.dumps(body)


def test_where_other_rays_run_jobs_know_their_own() -> None:
    """Ray Train's cleaner of placement groups else ends with a traceback: several instances are active."""
    jobs = RayJobsBackend(
        "http://h:1", None, python="/venv/bin/python", launcher="/fork_client.py", cluster="127.0.0.1:7"
    )
    body = jobs.render(JOB)
    assert str(body["entrypoint"]).startswith("/venv/bin/python /fork_client.py -m jobs.rm ")
    assert body["runtime_env"] == {
        "env_vars": {"ZHONGJING_ATTEMPT": JOB.submission_id, "RAY_ADDRESS": "127.0.0.1:7"}
    }


def test_a_taken_id_is_adopted_if_it_is_ours_and_refused_if_not(server: Server, jobs: RayJobsBackend) -> None:
    server.answers["POST", "/api/jobs/"] = (500, TAKEN)
    server.details("RUNNING")
    jobs.submit(JOB)
    server.details("RUNNING", metadata={"specHash": "another"})
    with pytest.raises(ForeignJobError) as refused:
        jobs.submit(JOB)
    assert not isinstance(refused.value, TransientError)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("PENDING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("SUCCEEDED", JobState.SUCCEEDED),
        ("FAILED", JobState.FAILED),
        ("STOPPED", JobState.STOPPED),
        ("a new word", JobState.UNKNOWN),
    ],
)
def test_states(server: Server, jobs: RayJobsBackend, word: str, state: JobState) -> None:
    server.details(word, message="why")
    described = jobs.describe(JOB.submission_id)
    assert (described.state, described.message, described.metadata["specHash"]) == (state, "why", "hash")


def test_an_unknown_id_is_unknown(jobs: RayJobsBackend) -> None:
    assert jobs.describe("never-submitted").state is JobState.UNKNOWN
    jobs.stop("never-submitted")


def test_the_reason_of_a_failure_is_the_last_line(server: Server, jobs: RayJobsBackend) -> None:
    log = "last available logs (truncated to 20,000 chars):\nline 1\nModuleNotFoundError: No module named 'x'"
    server.details("FAILED", message=f"Job entrypoint command failed with exit code 1, {log}")
    expected = "the job ended with exit code 1: ModuleNotFoundError: No module named 'x'"
    assert jobs.describe(JOB.submission_id).message == expected
    server.details("FAILED", message="x" * 5000)
    assert len(jobs.describe(JOB.submission_id).message) < 1100


def test_the_log_of_an_ended_job(server: Server, jobs: RayJobsBackend) -> None:
    server.details("SUCCEEDED")
    server.answers["GET", f"/api/jobs/{JOB.submission_id}/logs"] = (200, {"logs": "one\ntwo\n"})
    assert list(jobs.tail_logs(JOB.submission_id)) == ["one", "two"]
    with pytest.raises(BackendError, match="does not know"):
        next(jobs.tail_logs("never-submitted"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_said_without_showing_it(
    server: Server, jobs: RayJobsBackend, status: int
) -> None:
    server.answers["GET", f"/api/jobs/{JOB.submission_id}"] = (status, "Unauthorized")
    with pytest.raises(TokenRefusedError, match="refuses the token") as refused:
        jobs.describe(JOB.submission_id)
    assert not isinstance(refused.value, TransientError)
    assert TOKEN not in str(refused.value)


def test_other_parts_of_the_dashboard_can_be_asked(server: Server, jobs: RayJobsBackend) -> None:
    server.answers["GET", "/nodes?view=summary"] = (200, {"data": {"summary": []}})
    assert jobs.query("/nodes?view=summary") == {"data": {"summary": []}}
    server.answers["GET", "/nodes/x"] = (200, "<html>")
    with pytest.raises(BackendError, match="no JSON"):
        jobs.query("/nodes/x")


def test_where_the_workers_of_a_job_are(server: Server, jobs: RayJobsBackend) -> None:
    missing = jobs.stacks(JOB.submission_id)
    assert missing.startswith(f"the workers of {JOB.submission_id} could not be listed")
    server.details("RUNNING", job_id="0100")
    worker = {"class_name": "Worker", "pid": 7, "node_id": "n", "state": "ALIVE"}
    listed = [worker, {**worker, "pid": 8, "state": "DEAD"}, {**worker, "pid": None}]
    path = "/api/v0/actors?detail=1&filter_keys=job_id&filter_predicates=%3D&filter_values=0100"
    server.answers["GET", path] = (200, {"data": {"result": {"result": listed}}})
    # Ray's own words where it may not look.
    server.answers["GET", "/worker/traceback?node_id=n&pid=7"] = (500, "Failed to execute: no permission\n")
    told = jobs.stacks(JOB.submission_id)
    assert "Worker, process 7 on node n\nFailed to execute: no permission" in told
    assert "could not be looked at" in told
    assert "process 8" not in told


def test_what_passes_is_transient_and_what_does_not_is_not(server: Server, jobs: RayJobsBackend) -> None:
    server.answers["POST", "/api/jobs/"] = (500, "No available agent to submit job, please try again later.")
    with pytest.raises(BackendUnavailableError):
        jobs.submit(JOB)
    server.answers["POST", "/api/jobs/"] = (400, "Traceback ...\nTypeError: entrypoint must be a string")
    with pytest.raises(BackendError, match="entrypoint must be a string") as refused:
        jobs.submit(JOB)
    assert not isinstance(refused.value, TransientError)
    assert jobs.is_ready() is False
    server.answers["GET", "/api/jobs/"] = (200, [])
    assert jobs.is_ready() is True


def test_ray_s_colours_do_not_get_into_messages(server: Server, jobs: RayJobsBackend) -> None:
    said = "last lines:\n\x1b[36m(Worker pid=7)\x1b[0m ValueError: \x1b[1;31mno\x1b[0m data"
    server.details("FAILED", message=f"Job entrypoint command failed with exit code 1, {said}")
    assert jobs.describe(JOB.submission_id).message == (
        "the job ended with exit code 1: (Worker pid=7) ValueError: no data"
    )


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_is_cut_off_is_no_answer(server: Server, jobs: RayJobsBackend, status: int) -> None:
    """``http.client.IncompleteRead`` is no OSError."""
    server.answers["GET", "/api/jobs/"] = (status, [])
    server.cut_off = 9
    with pytest.raises(BackendUnavailableError, match="Ray does not answer"):
        jobs.jobs()
    assert jobs.is_ready() is False


def test_a_connection_that_is_closed_is_told_without_the_library_s_objects(
    server: Server, jobs: RayJobsBackend
) -> None:
    server.answers["GET", "/api/jobs/"] = (0, "")
    with pytest.raises(BackendUnavailableError) as closed:
        jobs.jobs()
    assert closed.value.message == "Ray does not answer: Remote end closed connection without response"


def test_an_answer_of_another_server_is_no_answer(server: Server, jobs: RayJobsBackend) -> None:
    server.answers["GET", "/api/jobs/"] = (200, "<html>")
    with pytest.raises(BackendUnavailableError, match="no JSON"):
        jobs.jobs()


def test_nobody_there_is_transient() -> None:
    with Server().http as http:
        address = f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
    gone = RayJobsBackend(address, TOKEN, timeout=2)
    with pytest.raises(BackendUnavailableError) as refused:
        gone.describe("x")
    assert TOKEN not in str(refused.value)
    assert gone.is_ready() is False


def test_loopback_never_goes_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.details("RUNNING")
    assert RayJobsBackend(server.address, TOKEN).describe(JOB.submission_id).state is JobState.RUNNING
