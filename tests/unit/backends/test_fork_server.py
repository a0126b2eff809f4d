"""Forked processes: they are in all that can be seen what starting them alone would have made."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zhongjing.backends.local import fork_client
from zhongjing.backends.local.fork_client import SERVER_VARIABLE
from zhongjing.backends.local.fork_server import ForkServer, padding
from zhongjing.backends.local.processes import environment_of, python_path

# What a job is here: it tells what it sees, then does as it is told.
_JOB = """
import json, os, signal, sys, time
import numpy
seen = {
    "argv": sys.argv, "name": __name__, "folder": os.getcwd(), "pid": os.getpid(), "parent": os.getppid(),
    "variables": dict(os.environ), "random": float(numpy.random.random()),
    "preloaded": "decimal" in sys.modules, "threads": len(os.listdir("/proc/self/task")),
}
if sys.argv[1] == "wait":  # the handler first: a test may end what it has read a line of
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
print(json.dumps(seen), flush=True)
if sys.argv[1] == "wait":
    sys.stdout = None
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the job, and with what the server imports."""
    place = tmp_path_factory.mktemp("fork")
    (place / "told.py").write_text(_JOB)
    (place / "preloaded.py").write_text("import decimal, numpy\n")
    return place


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A running server, and the environment of its clients."""
    place = tmp_path / "s"
    environment = {**os.environ, "PYTHONPATH": f"{python_path()}:{folder}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "zhongjing.backends.local.fork_server", str(place), "preloaded"],
        env={**padding(), **environment},
    )
    while not place.exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield process, {**environment, SERVER_VARIABLE: str(place)}
    process.kill()
    process.wait()


def _start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, fork_client.__file__, *arguments]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)


def _seen(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    with process.stdout:
        found: dict[str, object] = json.loads(process.stdout.readline())
    return found


def test_a_fork_has_the_arguments_folder_files_and_environment_of_its_client(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    parent, environment = server
    own = {**environment, "ZHONGJING_ATTEMPT": "tiny-1-sft-a1", "LONG": "x" * 5000}
    del own["HOME"]
    process = _start(folder, own, "-m", "told", "wait", "两")
    seen = _seen(process)
    assert seen["argv"] == [str(folder / "told.py"), "wait", "两"]
    assert (seen["name"], seen["folder"], seen["parent"]) == ("__main__", str(folder), parent.pid)
    assert seen["variables"] == own
    assert seen["preloaded"]
    assert seen["threads"] == 1
    shown = environment_of(psutil.Process(int(str(seen["pid"]))))
    assert own.items() <= shown.items()
    assert "HOME" not in shown
    process.terminate()
    assert process.wait(10) == 7


def test_the_exit_status_is_the_processes_and_no_two_draw_the_same_numbers(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    first, second = (_start(folder, server[1], "-m", "told", status) for status in ("0", "3"))
    assert _seen(first)["random"] != _seen(second)["random"]
    assert (first.wait(10), second.wait(10)) == (0, 3)


def test_a_killed_client_takes_its_process_with_it_and_a_killed_process_its_client(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    clients = [_start(folder, server[1], "-m", "told", "wait") for _ in range(2)]
    forks = [psutil.Process(int(str(_seen(client)["pid"]))) for client in clients]
    clients[0].kill()
    clients[0].wait(10)
    forks[0].wait(10)
    forks[1].kill()
    assert clients[1].wait(10) == -signal.SIGKILL


def test_a_killed_server_takes_all_with_it_and_clients_go_on_alone(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    process = _start(folder, server[1], "-m", "told", "wait")
    fork = psutil.Process(int(str(_seen(process)["pid"])))
    server[0].kill()
    fork.wait(10)
    assert process.wait(10) == -signal.SIGKILL
    alone = _start(folder, server[1], "-m", "told", "3")
    seen = _seen(alone)
    assert (seen["pid"], seen["preloaded"], alone.wait(10)) == (alone.pid, False, 3)


def test_a_worker_of_ray_gets_the_variables_of_its_context(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    """As raylet calls ``setup_worker.py`` (Ray 2.60): worker's script, its arguments, context, language."""
    context = json.dumps({"command_prefix": [], "env_vars": {"OWN": "1"}, "py_executable": sys.executable})
    words = [str(folder / "told.py"), "3", f"--serialized-runtime-env-context={context}", "--language=PYTHON"]
    process = _start(folder, server[1], *words)
    seen = _seen(process)
    assert seen["argv"] == [str(folder / "told.py"), "3"]
    assert dict(seen["variables"])["OWN"] == "1"  # type: ignore[call-overload]
    assert process.wait(10) == 3


def test_a_server_that_ends_before_it_forks_leaves_its_clients_to_go_on_alone(
    folder: Path, tmp_path: Path
) -> None:
    """Its imports fail, say: who has waited for them is not killed."""
    (folder / "broken.py").write_text("import time\ntime.sleep(0.5)\nraise ImportError('half installed')\n")
    place = tmp_path / "s"
    environment = {**os.environ, "PYTHONPATH": f"{python_path()}:{folder}"}
    command = [sys.executable, "-m", "zhongjing.backends.local.fork_server", str(place), "broken"]
    with subprocess.Popen(command, env={**padding(), **environment}, stderr=subprocess.DEVNULL) as server:
        while not place.exists():
            assert server.poll() is None
            time.sleep(0.01)
        process = _start(folder, {**environment, SERVER_VARIABLE: str(place)}, "-m", "told", "3")
        seen = _seen(process)
        assert (seen["pid"], seen["preloaded"], process.wait(10)) == (process.pid, False, 3)


def test_a_request_that_cannot_be_served_ends_neither_the_server_nor_what_lives(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    """It is of another version, or there is no room for one more process."""
    living = _start(folder, server[1], "-m", "told", "wait")
    _seen(living)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(server[1][SERVER_VARIABLE])
        (folder / "request").write_text(json.dumps({"arguments": [], "another": 1}))
        with (folder / "request").open() as request:
            socket.send_fds(other, [b"?"], [0, 1, 2, request.fileno()])
        assert other.recv(1) == b""
    fork = ForkServer(folder / "own")
    client = _start(folder, {**server[1], SERVER_VARIABLE: str(folder / "own")}, "-m", "told", "3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", no_room)
        assert fork._accept() is None
    fork._leave()
    seen = _seen(client)
    assert (seen["pid"], client.wait(10)) == (client.pid, 3)
    assert living.poll() is None
    living.terminate()
    assert living.wait(10) == 7


_NO_FILES = """
import os
from zhongjing.backends.local import fork_client
def none_left(name):
    raise OSError(24, "Too many open files")
os.memfd_create = none_left
fork_client.main()
"""


def test_a_client_that_cannot_ask_goes_on_alone(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    command = [sys.executable, "-c", _NO_FILES, "-m", "told", "3"]
    alone = subprocess.Popen(command, env=server[1], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert (_seen(alone)["pid"], alone.wait(10)) == (alone.pid, 3)


def no_room() -> int:
    raise BlockingIOError(errno.EAGAIN, "no room for one more process")


def test_a_fork_is_known_by_its_variables_however_many_others_there_are(
    folder: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    own = {"MODULES": "x" * 40_000, **server[1], "ZHONGJING_ATTEMPT": "tiny-1-sft-a1"}
    process = _start(folder, own, "-m", "told", "wait")
    seen = _seen(process)
    shown = environment_of(psutil.Process(int(str(seen["pid"]))))
    assert shown["ZHONGJING_ATTEMPT"] == "tiny-1-sft-a1"
    assert seen["variables"] == own
    process.terminate()
    assert process.wait(10) == 7
