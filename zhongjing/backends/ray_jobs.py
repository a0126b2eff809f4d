"""Stage jobs on the Ray Jobs REST API: a local Ray head and a cluster's are driven by the same calls.

Plain HTTP instead of Ray's own client: importing ``ray`` costs a second and 80 MB in a process that has to
watch for days, and its client raises one ``RuntimeError`` for everything. What Ray 2.60 answers:

==========================  ============================================================================
submission id taken         500, "already exists": adopt it if ``metadata.specHash`` is ours
unknown id                  404
no agent ready yet          500, "No available agent": try again
wrong or missing token      401 or 403
job is stopped              200; SIGTERM, then SIGKILL after ``RAY_JOB_STOP_WAIT_TIME_S`` (3 s)
==========================  ============================================================================

``runtime_env`` and metadata are shown in clear by the dashboard, so no secret is ever put there: jobs get
their credentials from the environment of Ray's processes.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from zhongjing.codes.ray import FOREIGN_JOB, RAY_REFUSED, RAY_UNREACHABLE
from zhongjing.errors import BackendError, BackendUnavailableError, ZhongjingError
from zhongjing.pipeline.backend import ForeignJobError, JobDescription, JobRequest, JobState
from zhongjing.pipeline.escapes import without_escapes

# Ray's own words for the states of a job.
_STATES = {state.name: state for state in JobState if state not in (JobState.UNKNOWN, JobState.UNREACHABLE)}

ATTEMPT_VARIABLE = "ZHONGJING_ATTEMPT"

_MESSAGE_CHARACTERS = 1000
_CHUNK_BYTES = 2**18  # of a log
_STACKS_SECONDS = 30.0
_STACKS = 24  # workers of a job that are looked into
# What Ray says of a job that failed, before the end of its log.
_FAILED = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")


class TokenRefusedError(BackendError):
    """Ray was started with another token."""


class RayJobsBackend:
    """The jobs of one Ray cluster.

    Args:
        address: of the dashboard, ``http://host:port``.
        token: of Ray's token authentication; None where it is off.
        python: the interpreter that entry points run in, as a path or a name on the cluster.
        launcher: a script that starts them, given to the interpreter; none unless given.
        cluster: address of Ray's GCS, ``host:port``, for jobs that run where other Rays run too: Ray Train's
            PlacementGroupCleaner asks "the" Ray of a machine and cannot tell which; None where there is one.
        package: package of the entry points: stage ``rm`` is ``<package>.rm``.
        timeout: of one request, in seconds.
    """

    def __init__(
        self,
        address: str,
        token: str | None,
        *,
        python: str = "python",
        launcher: str | None = None,
        cluster: str | None = None,
        package: str = "jobs",
        timeout: float = 30.0,
    ) -> None:
        self.address = address.rstrip("/")
        self._variables = {"RAY_ADDRESS": cluster} if cluster else {}
        self._program = [python, launcher] if launcher else [python]
        self._package = package
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Its own connections: a proxy of the environment is for the world outside, never for a Ray of ours.
        self._http = urllib3.PoolManager(timeout=timeout, retries=False)

    def submit(self, job: JobRequest) -> None:
        """Submits, or adopts a job of the same id and spec hash."""
        if self._submit(self.render(job)):
            return
        there = self.describe(job.submission_id)
        if there.metadata.get("specHash") != job.metadata.get("specHash"):
            raise ForeignJobError(
                f"the submission id {job.submission_id} belongs to another job",
                code=FOREIGN_JOB,
                where=self.address,
            )

    def start(self, submission_id: str, arguments: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Submits a program that is no stage, or finds it submitted; ``arguments`` are the interpreter's.

        Raises:
            BackendUnavailableError: no answer, or the head is still starting.
            BackendError: Ray refuses the job.
        """
        self._submit(
            {
                "entrypoint": shlex.join([*self._program, *arguments]),
                "submission_id": submission_id,
                "metadata": dict(metadata),
                "entrypoint_num_cpus": 0,
            }
        )

    def _submit(self, body: dict[str, Any]) -> bool:
        """Whether Ray takes a job; False where it has one of that id."""
        status, answer = self._call("POST", "/api/jobs/", body)
        if status != 200 and "already exists" not in answer:
            raise self._error(status, answer, f"submitting {body['submission_id']}")
        return status == 200

    def delete(self, submission_id: str) -> None:
        """Ends a job, and removes it from Ray's list where it is over."""
        self.stop(submission_id)
        self._call("DELETE", f"/api/jobs/{quote(submission_id)}")

    def request_workers(self, job: JobRequest) -> None:
        """Nothing to ask for: the nodes of this Ray are not looked after."""

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job; UNKNOWN if Ray has never heard of it, or forgot it with its head."""
        doing = f"asking for {submission_id}"
        status, body = self._call("GET", f"/api/jobs/{quote(submission_id)}")
        if status == 404:
            return JobDescription(submission_id=submission_id, state=JobState.UNKNOWN)
        return _description(submission_id, self._parsed(status, body, doing))

    def jobs(self) -> list[JobDescription]:
        """All jobs that Ray knows and that were submitted through this interface, ended ones too."""
        listed = [details for details in self.query("/api/jobs/") if details.get("submission_id")]
        return [_description(str(details["submission_id"]), details) for details in listed]

    def stop(self, submission_id: str) -> None:
        """Ends a job at once; one that is unknown or over already is left alone."""
        status, body = self._call("POST", f"/api/jobs/{quote(submission_id)}/stop", {})
        if status not in (200, 404):
            raise self._error(status, body, f"stopping {submission_id}")

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log from its beginning, following until the job ends."""
        job = self.describe(submission_id)
        if job.state is JobState.UNKNOWN:
            raise BackendError(
                f"Ray does not know the job {submission_id}", code=RAY_REFUSED, where=self.address
            )
        yield from self.read_log(submission_id) if job.state.is_terminal else self._follow(submission_id)

    def read_log(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log as it is now."""
        doing = f"reading the log of {submission_id}"
        with self._open("GET", f"/api/jobs/{quote(submission_id)}/logs") as answer:
            if answer.status != 200:
                raise self._error(answer.status, answer.data.decode(errors="replace"), doing)
            try:
                yield from log_lines(answer.stream(_CHUNK_BYTES))
            except ValueError as error:
                raise BackendUnavailableError(
                    f"{error} ({doing})", code=RAY_UNREACHABLE, where=self.address
                ) from None

    def render(self, job: JobRequest) -> dict[str, Any]:
        """The body of the submission. Its entry point holds no CPU: the workers ask for theirs."""
        entrypoint = [*self._program, "-m", f"{self._package}.{job.stage}", "--request", job.request_uri]
        return {
            "entrypoint": shlex.join(entrypoint),
            "submission_id": job.submission_id,
            "metadata": dict(job.metadata),
            # Inherited by every process of the attempt, so that each can be told by its environment.
            "runtime_env": {"env_vars": {ATTEMPT_VARIABLE: job.submission_id, **self._variables}},
            "entrypoint_num_cpus": 0,
        }

    def is_ready(self) -> bool:
        """Whether a submission would find an agent to run it."""
        try:
            status, _ = self._call("GET", "/api/jobs/")
        except BackendUnavailableError:
            return False
        return status == 200

    def query(self, path: str) -> Any:
        """What another part of the dashboard answers, as JSON.

        Raises:
            BackendUnavailableError: no answer.
            BackendError: Ray refuses.
        """
        return self._parsed(*self._call("GET", path), path)

    def stacks(self, submission_id: str) -> str:
        """Where the workers of a job are that hangs, taken by Ray's agents with py-spy; never raises.

        Ray looks into processes only where ``RAY_DASHBOARD_ENABLE_PROFILING=1`` is set on the head, and a
        system may forbid it to all but root: the text says so.
        """
        deadline = time.monotonic() + _STACKS_SECONDS
        try:
            actors = self._actors_of(submission_id)
        except (ZhongjingError, LookupError, TypeError) as error:
            return f"the workers of {submission_id} could not be listed: {error}\n"
        parts = []
        for actor in actors[:_STACKS]:
            head = f"{actor.get('class_name')}, process {actor.get('pid')} on node {actor.get('node_id')}"
            try:
                parts.append(f"{head}\n{self._stack(actor, deadline)}")
            except (ZhongjingError, LookupError, TypeError, ValueError) as error:
                parts.append(f"{head}\ncould not be looked at: {error}")
        return "\n\n".join(parts) + "\n" if parts else "no worker of the attempt was found\n"

    def _actors_of(self, submission_id: str) -> list[dict[str, Any]]:
        job = self.query(f"/api/jobs/{quote(submission_id)}")
        path = (
            f"/api/v0/actors?detail=1&filter_keys=job_id&filter_predicates=%3D&filter_values={job['job_id']}"
        )
        listed = self.query(path)["data"]["result"]["result"]
        return [each for each in listed if each.get("state") == "ALIVE"]

    def _stack(self, actor: dict[str, Any], deadline: float) -> str:
        if time.monotonic() >= deadline:
            return "not looked at: it took too long already"
        place = urlencode({"node_id": str(actor["node_id"]), "pid": int(actor["pid"])})
        return self._call("GET", f"/worker/traceback?{place}")[1].strip()

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        with self._open(method, path, body) as answer:
            return answer.status, answer.data.decode(errors="replace")

    @contextlib.contextmanager
    def _open(self, method: str, path: str, body: object = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer to be read, whatever its status; what breaks off while it is read is an outage."""
        headers = {**self._headers, "Connection": "close", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._http.request(
                method, self.address + path, body=data, headers=headers, preload_content=False
            )
            with contextlib.closing(answer):
                yield answer
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = error.__cause__ or error  # urllib3's own words begin with names of its objects
            if isinstance(reason, urllib3.exceptions.ProtocolError):
                reason = reason.args[-1]
            raise BackendUnavailableError(
                f"Ray does not answer: {reason}", code=RAY_UNREACHABLE, where=self.address
            ) from None  # the request, and with it the token, would stand in the trace

    def _parsed(self, status: int, body: str, doing: str) -> Any:
        """An answer as JSON; one that was cut off, or is another server's, is none."""
        if status != 200:
            raise self._error(status, body, doing)
        try:
            return json.loads(body)
        except ValueError:
            raise BackendUnavailableError(
                f"what answers is no JSON ({doing}): {body[:80]!r}", code=RAY_UNREACHABLE, where=self.address
            ) from None

    def _error(self, status: int, body: str, doing: str) -> BackendError:
        if status in (401, 403):
            return TokenRefusedError(
                f"Ray refuses the token ({doing})",
                code=RAY_REFUSED,
                where=self.address,
                remedy="give the token that Ray was started with (RAY_AUTH_TOKEN_PATH)",
            )
        message = f"Ray answers {status} ({doing}): {_reason(body)}"
        if status >= 500:
            return BackendUnavailableError(message, code=RAY_UNREACHABLE, where=self.address)
        return BackendError(message, code=RAY_REFUSED, where=self.address)

    def _follow(self, submission_id: str) -> Iterator[str]:
        # aiohttp comes with ray[default]; only who follows a log pays for its import.
        import aiohttp

        path = f"/api/jobs/{quote(submission_id)}/logs/tail"
        loop = asyncio.new_event_loop()
        rest = ""
        try:
            session = aiohttp.ClientSession(headers=self._headers, loop=loop)
            try:
                socket = loop.run_until_complete(session.ws_connect(self.address + path, heartbeat=30))
                while True:
                    message = loop.run_until_complete(socket.receive())
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    *lines, rest = (rest + message.data).split("\n")
                    yield from lines
            finally:
                loop.run_until_complete(session.close())
        except (aiohttp.ClientError, OSError) as error:
            raise BackendUnavailableError(
                f"the log of {submission_id} broke off: {error}", code=RAY_UNREACHABLE, where=self.address
            ) from None
        finally:
            loop.close()
        if rest:
            yield rest


def _description(submission_id: str, details: dict[str, Any]) -> JobDescription:
    return JobDescription(
        submission_id=submission_id,
        state=_STATES.get(str(details.get("status")), JobState.UNKNOWN),
        message=_reason(str(details.get("message") or "")),
        metadata={str(key): str(value) for key, value in (details.get("metadata") or {}).items()},
    )


def _reason(text: str) -> str:
    """The part of Ray's words that says why: the last line of a traceback or of a failed job's log."""
    text = without_escapes(text).strip()
    lines = text.splitlines()
    failed = _FAILED.match(text)
    if failed is not None and len(lines) > 1:
        # The rest of the log is read with `zhongjing logs`.
        text = f"the job ended with exit code {failed[1]}: {lines[-1].strip()}"
    elif text.startswith("Traceback"):
        text = lines[-1]
    return text if len(text) <= _MESSAGE_CHARACTERS else "..." + text[-_MESSAGE_CHARACTERS:]


# Logs: the Jobs API answers {"logs": "..."} with the whole log, which of a job of days may be larger than the
# memory of the process that asks: it is read piece by piece.

LINE_CHARACTERS = 2**20
"""Longer lines (a progress bar without line ends) come in parts of this length."""

_START = re.compile(r'\s*\{\s*"logs"\s*:\s*"')
_NOTHING = re.compile(r'\s*\{\s*"logs"\s*:\s*null')
# What can be decoded by itself: no escape is cut, nor one half of a pair that stands for one character.
_WHOLE = re.compile(
    r"""(?:
        [^"\\]+
      | \\[^u]
      | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
      | \\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\])|(?=\\[^u]))
    )*""",
    re.VERBOSE,
)
_OPENING = 1000  # characters within which the string begins


def log_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of the log in an answer of the Jobs API. Holds a chunk and a line at most.

    Raises:
        ValueError: the body is no such answer, or ends before the log does.
    """
    rest = ""
    for text in _texts(chunks):
        *lines, rest = (rest + text).split("\n")
        yield from lines
        while len(rest) > LINE_CHARACTERS:
            yield rest[:LINE_CHARACTERS]
            rest = rest[LINE_CHARACTERS:]
    if rest:
        yield rest


def _texts(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, inside = "", False
    for chunk in chunks:
        rest += decoder.decode(chunk)
        if not inside:
            start = _START.match(rest)
            if start is None:
                if _NOTHING.match(rest):
                    return
                if len(rest) > _OPENING:
                    break
                continue
            rest, inside = rest[start.end() :], True
        found = _WHOLE.match(rest)
        assert found is not None, "it matches nothing, too"
        yield str(json.loads(f'"{found[0]}"', strict=False))
        rest = rest[found.end() :]
        if rest.startswith('"'):
            return
    raise ValueError("this is not a whole log of the Jobs API")
