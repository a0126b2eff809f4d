"""The workdir's supervisor and its Ray: whether they live, answer, and left nothing behind."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine
from zhongjing.codes import ray as codes

if TYPE_CHECKING:
    from zhongjing.backends.local.ray_head import RayRecord
    from zhongjing.backends.local.workdir import SupervisorRecord, Workdir

STARTING_SECONDS = 120.0  # a supervisor that is not ready after so long will not be
_ANSWER_SECONDS = 5.0
SECRETS = ("environment.json", "ray-token", "s3/s3.json")


@dataclass(frozen=True, slots=True)
class Facts:
    """A workdir's supervisor.

    Attributes:
        workdir: its folder.
        recorded: process id of its record; none without a (readable) record.
        damaged: whether there is a record that cannot be read.
        alive: whether that very process lives.
        stopped: whether it lives but is stopped (SIGSTOP, a debugger).
        ready: whether it said that its services run.
        error: why it could not start them.
        age: seconds since it started.
        locked: whether some process holds the supervisor's lock.
        left: how many processes of a Ray of this workdir live.
        serving: whether the workdir's S3 server lives.
    """

    workdir: str
    recorded: int | None = None
    damaged: bool = False
    alive: bool = False
    stopped: bool = False
    ready: bool = False
    error: str | None = None
    age: float = 0.0
    locked: bool = False
    left: int = 0
    serving: bool = False


@dataclass(frozen=True, slots=True)
class RayFacts:
    """A Ray that runs.

    Attributes:
        address: of the dashboard.
        cpus: that it may give to workers.
        alive: whether its process lives.
        gcs: what the control service said; none when it is well.
        jobs: what the Jobs API said with the token; none when it is well.
        agent: whether the agent that starts jobs listens.
        guarded: whether the Jobs API refuses who has no token.
    """

    address: str
    cpus: int
    alive: bool
    gcs: str | None
    jobs: str | None
    agent: bool
    guarded: bool


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at the workdir of local runs; starts nothing."""
    if not situation.local:
        return
    if not situation.workdir.is_dir():
        yield fine("supervisor", f"nothing was run at {situation.workdir} yet")
        return
    from zhongjing.backends.local.workdir import Workdir

    workdir = Workdir(situation.workdir)
    record = workdir.record()
    yield judge(gather(workdir, record))
    yield judge_secrets(open_secrets(workdir.path))
    if record is not None and record.process.is_alive and record.ready and record.ray is not None:
        yield judge_ray(gather_ray(record.ray, workdir.token_file))


def gather(workdir: Workdir, record: SupervisorRecord | None) -> Facts:
    """Reads the record, and tries the lock where nobody should have it."""
    import psutil

    from zhongjing.backends.local.processes import marked
    from zhongjing.backends.local.ray_head import RayHead

    left = len(marked(RayHead(workdir.path).mark))
    serving = _serves(workdir.s3)
    if record is None:
        return Facts(
            str(workdir.path),
            damaged=(workdir.path / "supervisor.json").exists(),
            locked=_locked(workdir.path),
            left=left,
            serving=serving,
        )
    alive = record.process.is_alive
    return Facts(
        workdir=str(workdir.path),
        recorded=record.process.pid,
        alive=alive,
        stopped=alive and psutil.Process(record.process.pid).status() == psutil.STATUS_STOPPED,
        ready=record.ready,
        error=record.error,
        age=time.time() - psutil.Process(record.process.pid).create_time() if alive else 0.0,
        # One that lives holds it; asking would make a second one that starts now believe so too.
        locked=True if alive else _locked(workdir.path),
        left=left,
        serving=serving,
    )


def _serves(folder: Path) -> bool:
    """Whether the server that the S3 folder's record names lives."""
    import psutil

    try:
        return bool(psutil.Process(json.loads((folder / "server.json").read_text())["pid"]).name() == "weed")
    except (OSError, ValueError, LookupError, TypeError, psutil.Error):
        return False


def _locked(folder: Path) -> bool:
    try:
        with (folder / "supervisor.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def judge(facts: Facts) -> Finding:
    """A supervisor that works, or none and no trace of one."""
    name = "supervisor"
    if facts.alive:
        return _judge_living(facts)
    if facts.locked:
        who = f"the record names process {facts.recorded}, which is gone" if facts.recorded else "no record"
        return fails(
            name,
            f"a process holds {facts.workdir}/supervisor.lock, but {who}",
            codes.SUPERVISOR_SILENT,
            "if this stays so: end the process that `fuser supervisor.lock` names in the workdir, then give "
            "the same command again",
        )
    running = [f"{facts.left} processes of its Ray"] if facts.left else []
    running += ["its S3 server"] if facts.serving else []
    leftover = f"; {' and '.join(running)} still run" if running else ""
    if facts.damaged:
        return warn(
            name, f"{facts.workdir}/supervisor.json cannot be read{leftover}", machine.STALE_SUPERVISOR
        )
    if facts.recorded is not None:
        why = f" (it had failed: {facts.error})" if facts.error else ""
        return warn(
            name,
            f"{facts.workdir}/supervisor.json names process {facts.recorded}, which is gone{why}{leftover}",
            machine.STALE_SUPERVISOR,
        )
    if running:
        return warn(name, f"none runs at {facts.workdir}{leftover}", machine.STALE_SUPERVISOR)
    return fine(name, f"none runs at {facts.workdir}, and none left anything behind")


def _judge_living(facts: Facts) -> Finding:
    name, who = "supervisor", f"process {facts.recorded}"
    if facts.stopped:
        return fails(
            name,
            f"{who} is stopped: nothing goes on at {facts.workdir}",
            codes.SUPERVISOR_SILENT,
            f"let it go on with kill -CONT {facts.recorded}, or end it and give the same command again",
        )
    if facts.error is not None:
        return fails(name, f"{who} has failed: {facts.error}", codes.SUPERVISOR_FAILED)
    if not facts.ready:
        said = f"{who} has been starting its services for {facts.age:.0f} s"
        if facts.age > STARTING_SECONDS:
            return fails(name, said, codes.SUPERVISOR_SILENT, f"see {facts.workdir}/supervisor.log")
        return fine(name, said)
    return fine(name, f"{who} drives {facts.workdir}, for {facts.age / 60:.0f} min")


def open_secrets(folder: Path) -> list[str]:
    """Files with keys that others than their owner may read."""
    if not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
        return []  # nobody else gets into the workdir
    found = []
    for name in SECRETS:
        try:
            mode = (folder / name).stat().st_mode
        except OSError:
            continue
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            found.append(os.fspath(folder / name))
    return found


def judge_secrets(found: list[str]) -> Finding:
    """Keys are their owner's alone."""
    if found:
        return fails("secrets", f"other users can read {', '.join(found)}", machine.OPEN_SECRETS)
    return fine("secrets", "keys in the workdir are their owner's alone")


def gather_ray(record: RayRecord, token_file: Path) -> RayFacts:
    """Asks a running Ray."""
    from zhongjing.backends.local.processes import is_listening

    try:
        token: str | None = token_file.read_text().strip()
    except OSError:
        token = None
    gcs = asked(f"{record.dashboard_url}/api/gcs_healthz", token)
    jobs = asked(f"{record.dashboard_url}/api/jobs/", token)
    return RayFacts(
        address=record.dashboard_url,
        cpus=record.cpus,
        alive=record.process.is_alive,
        gcs=None if gcs == "200" else gcs,
        jobs=None if jobs == "200" else jobs,
        agent=is_listening(record.agent_port),
        guarded=asked(f"{record.dashboard_url}/api/jobs/", None) in ("401", "403"),
    )


def asked(address: str, token: str | None) -> str:
    """The HTTP status of an address of this machine, or why there was none."""
    request = urllib.request.Request(address)  # noqa: S310 - our own loopback address
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWER_SECONDS) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def judge_ray(facts: RayFacts) -> Finding:
    """A Ray that takes jobs, from who has the token alone."""
    if not facts.alive:
        return warn(
            "ray",
            "the supervisor's Ray is gone",
            codes.RAY_UNREACHABLE,
            "nothing: it is started again for the next stage",
        )
    ill = []
    if facts.gcs is not None:
        ill.append(f"its control service does not answer ({facts.gcs})")
    if facts.jobs is not None:
        ill.append(f"the Jobs API does not answer with the token ({facts.jobs})")
    if not facts.agent:
        ill.append("the agent that starts jobs does not listen")
    if ill:
        return fails(
            "ray",
            f"{facts.address}: {', '.join(ill)}",
            codes.RAY_UNREACHABLE,
            "the supervisor starts it again when it stays silent; else see ray.log in the workdir",
        )
    if not facts.guarded:
        return fails(
            "ray",
            f"{facts.address} takes jobs without the token",
            machine.OPEN_SECRETS,
            "end the run (`zhongjing stop NAME --local`) and see ray.log in the workdir: RAY_AUTH_MODE must "
            "be token",
        )
    return fine("ray", f"{facts.address} answers with {facts.cpus} CPUs, its Jobs API with the token only")
