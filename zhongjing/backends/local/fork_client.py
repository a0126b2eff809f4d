"""Starts a Python process by the fork server, or alone where none answers.

``python fork_client.py -m MODULE ...`` is ``python -m MODULE ...``. Ray calls it in place of its own script
``setup_worker.py`` (``RayParams.setup_worker_path``): then the arguments begin with Ray's worker script and
hold the worker's environment as JSON. All that is imported comes with Python: every worker waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys

SERVER_VARIABLE = "ZHONGJING_FORK_SERVER"

_CONTEXT = "--serialized-runtime-env-context"
_LANGUAGE = "--language"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Becomes, or stands for, the process that its arguments ask for."""
    arguments = sys.argv[1:]
    request = arguments if arguments[0] == "-m" else _worker(arguments)
    path = os.environ.get(SERVER_VARIABLE)
    server = _connect(path) if path and request is not None else None
    if server is None or request is None:
        _start(arguments)
        return
    folder = os.getcwd()  # noqa: PTH109
    try:
        with os.fdopen(os.memfd_create("request"), "w", encoding="utf-8") as file:
            file.write(json.dumps({"arguments": request, "environment": dict(os.environ), "folder": folder}))
            file.flush()
            socket.send_fds(server, [b"?"], [0, 1, 2, file.fileno()])
        forked = server.recv(1)
    except OSError:
        forked = b""
    if not forked:
        _start(arguments)
        return

    def hand_on(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):  # it has just ended, and its status is on the way
            server.send(struct.pack("!B", number))

    for number in _FORWARDED:
        signal.signal(number, hand_on)
    status = b""
    while len(status) < 4:
        part = server.recv(4 - len(status))
        if not part:  # the server is dead, and with it the process
            os.kill(os.getpid(), signal.SIGKILL)
        status += part
    (code,) = struct.unpack("!i", status)
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _worker(arguments: list[str]) -> list[str] | None:
    """Ray's worker as a script and its arguments, its environment set; None if it needs more than that."""
    rest: list[str] = []
    context: dict[str, object] = {}
    words = iter(arguments)
    for word in words:
        name, sign, value = word.partition("=")
        if name in (_CONTEXT, _LANGUAGE):
            value = value if sign else next(words)
            if name == _CONTEXT:
                context = json.loads(value or "{}")
        else:
            rest.append(word)
    variables = context.pop("env_vars", None) or {}
    python = context.pop("py_executable", None) or sys.executable
    if python != sys.executable or any(context.values()) or not isinstance(variables, dict):
        return None
    if not rest or not rest[0].endswith(".py") or any("$" in value for value in variables.values()):
        return None
    os.environ.update(variables)
    return rest


def prepare(parameters: object, head: bool) -> None:
    """What ``ray start`` calls (``RAY_START_HOOK``) with its ``RayParams`` before it starts its processes.

    Leaves out the Ray Client server, which costs a process: jobs come by the Jobs API. Workers are forked.
    """
    settings = vars(parameters)
    if head:
        settings["ray_client_server_port"] = None
    if SERVER_VARIABLE in os.environ:
        settings["setup_worker_path"] = __file__


def _connect(path: str) -> socket.socket | None:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
    except OSError:
        server.close()
        return None
    return server


def _start(arguments: list[str]) -> None:
    """What would have been started without this program."""
    if arguments[0] != "-m":
        # Ray's own script stands beside its worker's.
        folder = os.path.dirname(next(word for word in arguments if word.endswith(".py")))  # noqa: PTH120
        arguments = [os.path.join(folder, "setup_worker.py"), *arguments]  # noqa: PTH118
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
