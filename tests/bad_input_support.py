"""Runs bad command lines and looks at everything that they say and leave: for ``test_bad_input``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.command_line import in_process
from zhongjing.backends.local.processes import environment_of
from zhongjing.codes.code import BAD_INPUT
from zhongjing.storage.identity import start_mark

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).parents[1]
SEARCHED = "SECRET-OF-A-RECORD"
"""Stands in records of bad sources: no message and no log may show it."""

_HIDDEN = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")
_MARK = "ZHONGJING_TEST_MARK"
_ERROR = re.compile(r"^error\[([A-Za-z0-9]+)\]: (.*)$")


@dataclass(frozen=True)
class Case:
    """A bad input and the answer to it.

    Attributes:
        name: of the case.
        code: of the error.
        exit_code: of the command.
        words: what the answer must say, in the message, its place or the remedy.
        arguments: of the command.
        files: what is written into the folder before, by name, over what stands there for every case.
        environment: variables of the command.
        module: what is run.
        json: whether the command has ``-o json``.
        said: what stands on stdout before the error comes up.
    """

    name: str
    code: str
    exit_code: int
    words: Sequence[str]
    arguments: Sequence[str] = ("--local", "-f", "my.yaml")
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "zhongjing.submit"
    json: bool = True
    said: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Told:
    """What a command said of its error."""

    code: str
    message: str
    where: str | None
    remedy: str
    log: str | None


class Shell:
    """Runs ``python -m <module>`` in a folder, with no cluster, no home and no foreign store in sight.

    Args:
        place: an empty folder; the commands' current one, and all others that they may write to, are made
            below it.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "here"
        self.temporary = place / "temporary"
        self.state = place / "state"
        for folder in (self.folder, self.temporary, self.state, place / "home"):
            folder.mkdir()
        self.mark = uuid.uuid4().hex
        hidden = {name for name in os.environ if name.startswith(("AWS_", "RAY_"))} | set(_HIDDEN)
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment |= {
            "HOME": str(place / "home"),
            "XDG_STATE_HOME": str(self.state),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            _MARK: self.mark,
        }

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
        )

    def __call__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return finish(self.start(module, *arguments, environment=environment))

    def in_process(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end in this process."""
        variables = {**self.environment, **(environment or {})}
        return in_process(module, *arguments, folder=self.folder, environment=variables)

    def processes(self) -> list[str]:
        """Command lines of what still runs of all that was started here, and of its children."""
        found = []
        for process in psutil.process_iter():
            try:
                if environment_of(process).get(_MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        return found


def finish(process: subprocess.Popen[str], seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Waits for a command; one that does not end is killed, and the test fails."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below ``folder``, with size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_size if path.is_file() else 0, state.st_mtime_ns)
    return found


def told_on_stderr(done: subprocess.CompletedProcess[str]) -> Told:
    """What a command told people: exactly one error, with a remedy, and no traceback."""
    said = f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in said, said
    lines = done.stderr.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    assert len(starts) == 1, done.stderr
    found = _ERROR.match(lines[starts[0]])
    assert found is not None
    text, remedy, log = found[2], "", None
    for line in lines[starts[0] + 1 :]:
        if line.startswith("  remedy: "):
            remedy = line.removeprefix("  remedy: ")
        elif line.startswith("  traceback: "):
            log = line.removeprefix("  traceback: ")
        elif not remedy:
            text += f"\n{line}"
    assert remedy, done.stderr
    return Told(found[1], text, None, remedy, log)


def told_as_json(done: subprocess.CompletedProcess[str]) -> tuple[Told, dict[str, Any]]:
    """What a command told programs: exactly one JSON object on stdout."""
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert isinstance(shown, dict)
    assert shown["error"]
    assert shown["remedy"], shown
    log = shown.get("log") or shown.get("traceback")
    return Told(shown["code"], shown["message"], shown["where"], shown["remedy"], log), shown


def read_file(place: str) -> str:
    """A file that a message names."""
    return Path(place).read_text(encoding="utf-8")


def check_people(
    case: Case, done: subprocess.CompletedProcess[str], read: Callable[[str], str] = read_file
) -> Told:
    """Compares what a command told people with what the case asks for.

    Args:
        case: what is asked for.
        done: the command.
        read: reads what is named as the traceback's place.
    """
    told = told_on_stderr(done)
    assert (done.returncode, told.code) == (case.exit_code, case.code), done.stderr
    for word in case.words:
        assert word in f"{told.message}\n{told.remedy}", done.stderr
    assert SEARCHED not in done.stdout + done.stderr
    if case.exit_code == BAD_INPUT:  # no traceback is kept on this machine; a stage that ran has its own
        assert told.log is None or told.log.startswith("s3://"), done.stderr
    else:
        assert told.log is not None, done.stderr
    if told.log is not None:
        kept = read(told.log)
        assert "Traceback (most recent call last)" in kept
        assert SEARCHED not in kept
    return told


def check_programs(
    case: Case, done: subprocess.CompletedProcess[str], read: Callable[[str], str] = read_file
) -> dict[str, Any]:
    """Compares what a command told programs with what it told people beside it; returns the object."""
    people, (programs, shown) = check_people(case, done, read), told_as_json(done)
    text = f"{programs.where}: {programs.message}" if programs.where else programs.message
    # People are told which stage it was; programs have it in the object.
    assert people.message in (text, *(f"{stage}: {text}" for stage in shown.get("stages", ())))
    assert (programs.code, programs.remedy, programs.log) == (people.code, people.remedy, people.log)
    assert shown["exitCode"] == case.exit_code
    return shown


class Place(Shell):
    """One workdir, its supervisor and its store, shared by cases that need them."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.workdir = self.folder / "runs"
        self._started: list[subprocess.Popen[str]] = []
        self._client: S3Client | None = None

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a ``zhongjing`` command over the workdir."""
        self._started.append(self.start("zhongjing", *arguments, "--local", "--workdir", "runs"))
        return self._started[-1]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a ``zhongjing`` command over the workdir."""
        return finish(self.command(*arguments))

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a document, with the result as JSON."""
        return self.run("submit", "-o", "json", *arguments)

    def refuses(self, case: Case, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        """Checks the answer to a bad document; returns its JSON object."""
        return check_programs(case, done, self._read)

    def _read(self, place: str) -> str:
        bucket = "s3://zhongjing/"
        return self.get(place.removeprefix(bucket)).decode() if place.startswith(bucket) else read_file(place)

    def record(self, name: str) -> dict[str, Any]:
        """A JSON file of the workdir."""
        found: dict[str, Any] = json.loads((self.workdir / name).read_text(encoding="utf-8"))
        return found

    def kill(self, name: str) -> None:
        """Kills the process that a record names, and waits until it is gone."""
        found = self.record(name)
        process = psutil.Process(found.get("pid") or found["process"]["pid"])
        process.kill()
        psutil.wait_procs([process], timeout=10)

    def supervisor(self) -> psutil.Process | None:
        """The supervisor, if it lives."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            found = self.record("supervisor.json")["process"]
            process = psutil.Process(found["pid"])
            return process if start_mark(process.pid) == found["started"] else None
        return None

    def up(self) -> None:
        """Has the services running."""
        if self.supervisor() is None:
            self.workdir.mkdir(exist_ok=True)
            done = self.run("status")
            assert done.returncode == 0, done.stderr

    def end(self) -> list[str]:
        """Ends the supervisor with all that belongs to it; returns what is left running.

        Commands that a failed test left are ended first: they would start another supervisor.
        """
        for command in self._started:
            if command.poll() is None:
                command.kill()
                command.communicate()
        process = self.supervisor()
        if process is not None:
            process.terminate()
            psutil.wait_procs([process], timeout=60)
        return self.processes()

    # The store, as any other S3 client sees it

    def client(self) -> S3Client:
        """A client for the workdir's store; making one takes a tenth of a second, so it is kept."""
        import boto3

        found = self.record("environment.json")
        if self._client is None or self._client.meta.endpoint_url != found["AWS_ENDPOINT_URL"]:
            self._client = boto3.client(
                "s3",
                endpoint_url=found["AWS_ENDPOINT_URL"],
                aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
                region_name=found["AWS_REGION"],
            )
        return self._client

    def keys(self, prefix: str) -> list[str]:
        """Keys of the objects of the bucket that begin like this."""
        answer = self.client().list_objects_v2(Bucket="zhongjing", Prefix=f"local/{prefix}")
        return [item["Key"] for item in answer.get("Contents", [])]

    def get(self, key: str) -> bytes:
        """An object."""
        return self.client().get_object(Bucket="zhongjing", Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        """Replaces an object."""
        self.client().put_object(Bucket="zhongjing", Key=key, Body=content)

    def flip(self, key: str) -> None:
        """Changes one bit in the middle of an object: the size stays."""
        content = bytearray(self.get(key))
        content[len(content) // 2] ^= 1
        self.put(key, bytes(content))

    def checkpoints(self, pipeline: str, stage: str) -> dict[int, dict[str, Any]]:
        """Manifests of the complete checkpoints of a stage, by step."""
        found = {}
        for key in self.keys(f"{pipeline}/{stage}/"):
            if "/checkpoints/" in key and key.endswith("/manifest.json"):
                manifest = json.loads(self.get(key))
                found[int(manifest["step"])] = {**manifest, "folder": key.removesuffix("/manifest.json")}
        return found

    def damage(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Names of the files of a checkpoint that are not what its manifest says."""
        wrong = []
        for file in checkpoint["files"]:
            content = self.get(f"{checkpoint['folder']}/{file['name']}")
            if hashlib.sha256(content).hexdigest() != file["sha256"]:
                wrong.append(file["name"])
        return wrong
