"""The files by which a supervisor and its clients find each other in a workdir.

::

    <workdir>/supervisor.lock    held (flock) by the one supervisor, as long as it lives; who holds it
             /supervisor.json    who it is, and where Ray and S3 answer; no secrets
             /alive              touched by the supervisor every second, as long as its loop goes round
             /supervisor.log
             /environment.json   endpoint and credentials of the S3 server, mode 0600
             /heartbeat          touched by clients that watch
             /warm               touched by clients: a run comes, Ray may start already
             /pipelines/<name>   touched when something else is wanted of the pipeline
             /s3/                the S3 server and all data
             /ray-token, ray.log, ray/, tmp/, home/, scratch/, jobs/
             /short-folder       name of the folder below /tmp that stands for ray/ and tmp/, if one does
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from zhongjing.backends.local.processes import ProcessRecord
from zhongjing.backends.local.processes import record as process_record
from zhongjing.backends.local.ray_head import RayRecord
from zhongjing.storage.files import write_private
from zhongjing.storage.manifest import Record
from zhongjing.storage.progress import Failure

LOCAL_ROOT = "s3://zhongjing"
LOCAL_NAMESPACE = "local"


class SupervisorRecord(Record):
    """Who drives the pipelines of a workdir."""

    process: ProcessRecord
    version: str = Field(default="", description="release of the package that it runs")
    active: list[str] = Field(default_factory=list, description="pipelines that it must live for")
    ready: bool = False
    failure: Failure | None = None
    s3_endpoint: str | None = None
    token_file: str | None = None
    ray: RayRecord | None = None

    @property
    def error(self) -> str | None:
        """Why it failed, in one line; None while it has not."""
        if self.failure is None:
            return None
        where = f"{self.failure.where}: " if self.failure.where else ""
        return where + self.failure.message

    @property
    def dashboard_url(self) -> str | None:
        """Address of the Ray dashboard, while a Ray runs."""
        return self.ray.dashboard_url if self.ray is not None else None


class Workdir:
    """Paths and small files of a workdir."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.s3 = self.path / "s3"  # of the embedded S3 server
        self.log = self.path / "supervisor.log"
        self.token_file = self.path / "ray-token"

    def prepare(self) -> None:
        """Makes the folders; the workdir holds data and keys, so only its owner may look in."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / "pipelines").mkdir(exist_ok=True, mode=0o700)

    def lock(self) -> IO[str] | None:
        """The supervisor's lock, held until the returned file is closed; None if another process has it."""
        file = (self.path / "supervisor.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        file.truncate(0)
        file.write(process_record(os.getpid()).model_dump_json())
        file.flush()
        return file

    def holder(self) -> ProcessRecord | None:
        """The process that holds the lock, while it lives. It may have no record yet, or none any more."""
        try:
            holder = ProcessRecord.model_validate_json((self.path / "supervisor.lock").read_bytes())
        except (OSError, ValidationError):
            return None
        return holder if holder.is_alive else None

    def record(self) -> SupervisorRecord | None:
        """What the last supervisor wrote, whether it lives or not."""
        try:
            return SupervisorRecord.model_validate_json((self.path / "supervisor.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def live_record(self) -> SupervisorRecord | None:
        """The record of a supervisor that lives."""
        record = self.record()
        return record if record is not None and record.process.is_alive else None

    def write_record(self, record: SupervisorRecord) -> None:
        """Replaces the record at once."""
        write_private(self.path / "supervisor.json", record.model_dump_json(indent=2))

    def remove_record(self) -> None:
        """Says that no supervisor is here."""
        (self.path / "supervisor.json").unlink(missing_ok=True)

    def write_environment(self, environment: Mapping[str, str]) -> None:
        """Tells clients how to reach the S3 server."""
        write_private(self.path / "environment.json", json.dumps(dict(environment)))

    def environment(self) -> dict[str, str]:
        """How to reach the S3 server; empty when no supervisor ever wrote it."""
        try:
            found = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in found.items()}

    def touch(self, name: str) -> None:
        """Leaves a sign: ``alive``, ``heartbeat``, ``warm`` or ``pipelines/<name>``."""
        with contextlib.suppress(OSError):
            (self.path / name).touch(mode=0o600)

    def touched(self, name: str) -> float:
        """When a sign was last left, in seconds since the epoch; 0 if never."""
        try:
            return (self.path / name).stat().st_mtime
        except OSError:
            return 0.0

    def pipelines(self) -> list[str]:
        """Names of all pipelines that were ever applied here."""
        folder = self.path / "pipelines"
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
