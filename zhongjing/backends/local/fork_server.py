"""Processes of jobs as forks of one process that has imported torch, transformers, DeepSpeed and Ray already.

A small stage is over in half a minute, and a dozen seconds of each of its processes go into imports: its
driver, Ray's controllers and every worker import the same again. A server, started beside the Ray head,
imports once and forks for each, as :mod:`multiprocessing` does by its method ``forkserver``. What it forks is
a process of its own, in a session of its own, with the environment, the folder and the open files that its
client (:mod:`zhongjing.backends.local.fork_client`) was started with; it lives as long as its client.

==========================  ============================================================================
the client dies             its process is killed
the process ends            the client ends with the same exit status, or by the same signal
the server dies             its processes are killed (``PR_SET_PDEATHSIG``, prctl(2)); the attempt is repeated
no server answers or forks  the client starts the process as if there had never been one
==========================  ============================================================================

The server starts no thread and opens no device: a fork keeps neither. It is not used on machines with a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

# A request is one byte, with which travel the client's standard files and a file of JSON.
STATUS = struct.Struct("!i")
SIGNAL = struct.Struct("!B")
FORKED = b"+"
"""What a client is told first: from now on its process lives elsewhere."""

_REQUEST_SECONDS = 5.0  # a client writes all at once
_PR_SET_PDEATHSIG = 1
_ENVIRONMENT_BYTES = 32 * 1024  # how much of a process's environment can be shown in /proc
_PADDING = "ZHONGJING_FORK_PADDING"


@dataclass(frozen=True)
class Request:
    """A process to be forked."""

    arguments: list[str]  # of Python: `-m module ...` or `script ...`
    environment: dict[str, str]  # all of it
    folder: str  # its working directory


class ForkServer:
    """Waits for clients and forks.

    Args:
        path: of the socket. It must not be there.
    """

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._clients: dict[int, socket.socket] = {}  # by the process that is forked for each
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, wakes = socket.socketpair()
        for end in (self._woken, wakes):
            end.setblocking(False)
        self._wakes = wakes
        self._selector.register(self._woken, selectors.EVENT_READ)

    def serve(self) -> Request:
        """Forks for every client. Returns only in a forked process, with what it is to be."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                else:
                    self._heed(key.data)
            self._reap()

    def _accept(self) -> Request | None:
        client, _ = self._listener.accept()
        client.settimeout(_REQUEST_SECONDS)
        try:
            request, files = _read(client)
        except (OSError, ValueError, TypeError):
            client.close()  # it starts the process itself
            return None
        client.settimeout(None)
        try:
            process = os.fork()
        except OSError:  # no memory, or too many processes: those that live go on
            process = -1
        if process == 0:
            self._leave()
            _become(request, files)
            return request
        for file in files:
            os.close(file)
        if process < 0:
            client.close()
            return None
        self._clients[process] = client
        self._selector.register(client, selectors.EVENT_READ, process)
        with contextlib.suppress(OSError):  # it is dead: that is found next
            client.sendall(FORKED)
        return None

    def _heed(self, process: int) -> None:
        """Hands a signal on, or ends a process whose client is no more."""
        client = self._clients.get(process)
        if client is None:
            return
        try:
            message = client.recv(SIGNAL.size)
        except OSError:
            message = b""
        with contextlib.suppress(ProcessLookupError):
            if message:
                os.kill(process, SIGNAL.unpack(message)[0])
            else:
                self._selector.unregister(client)
                os.kill(process, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            client = self._clients.pop(process, None)
            if client is None:
                continue
            with contextlib.suppress(KeyError):
                self._selector.unregister(client)
            with contextlib.suppress(OSError):
                client.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
            client.close()

    def _leave(self) -> None:
        """In a forked process: closes what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (self._listener, self._woken, self._wakes, *self._clients.values()):
            each.close()


def _read(client: socket.socket) -> tuple[Request, list[int]]:
    _, files, _, _ = socket.recv_fds(client, 1, 4)
    try:
        if len(files) != 4:
            raise ValueError("no request")
        with os.fdopen(files.pop(), encoding="utf-8") as content:
            content.seek(0)
            return Request(**json.load(content)), files
    except BaseException:
        for file in files:
            os.close(file)
        raise


def _become(request: Request, files: list[int]) -> None:
    """Turns a fork into what its client was started as."""
    # If the parent has died already no signal comes any more.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request.folder)
    _set_environment(request.environment)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # a fork has its parent's state; `random` draws a new one by itself


def _set_environment(environment: dict[str, str]) -> None:
    """Replaces the environment, also where ``/proc/PID/environ`` shows it.

    Who looks after attempts knows their processes by it. The first variable, which the server was started
    with for this, stays where it is: programs that set a process's title find their arguments from there.
    """
    # Setting copies: nothing but the padding lives in the old place any more.
    for name in list(os.environ):
        if name != _PADDING:
            del os.environ[name]
    os.environ.update(environment)
    start, end = _shown_environment()
    start += len(_PADDING) + 1  # its name and "=" stay
    # Ours first: what it is known by must not be what has no room.
    shown = sorted(environment.items(), key=lambda variable: not variable[0].startswith("ZHONGJING_"))
    text = b"".join(b"\0" + os.fsencode(f"{name}={value}") for name, value in shown)
    ctypes.memmove(start, text[: end - start - 1].ljust(end - start, b"\0"), end - start)
    # Its own children need no padding; `del` would move what has to stay.
    vars(os.environ)["_data"].pop(os.fsencode(_PADDING))


def _shown_environment() -> tuple[int, int]:
    """Where what the kernel shows begins and ends (``env_start``, ``env_end`` in proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[47]), int(fields[48])


def padding() -> dict[str, str]:
    """What the environment of a server has to begin with."""
    # OpenBLAS starts its threads when numpy is imported.
    return {_PADDING: " " * _ENVIRONMENT_BYTES, "OPENBLAS_NUM_THREADS": "1"}


def _run(arguments: list[str]) -> NoReturn:
    """What ``python ARGUMENTS`` does."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
    sys.exit(0)


def main() -> NoReturn:
    """``python -m zhongjing.backends.local.fork_server SOCKET MODULE``: imports MODULE, forks for clients.

    Clients may come before the imports are done: they wait. This project's own modules and the module's
    package are imported anew by each process: a change of theirs reaches the next job.
    """
    path, module = sys.argv[1:]
    server = ForkServer(Path(path))
    importlib.import_module(module)
    own = {__package__.partition(".")[0], module.partition(".")[0]}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    sys.path.pop(0)
    gc.collect()
    gc.freeze()  # else a collection in a fork would copy every page
    request = server.serve()
    del server
    _run(request.arguments)


if __name__ == "__main__":
    main()
