"""The signal handler takes no locks: a signal at the worst moment ends the process all the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import zhongjing

# The main thread holds the lock of the event at the very moment of the signal.
_CHILD = """
import os, signal, threading
from zhongjing.controller.signals import handle_signals

ending = threading.Event()
handle_signals([signal.SIGTERM, signal.SIGINT], ending.set)
with ending._cond:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass  # the handler runs here
assert ending.wait(10)
print("ended")
"""


def test_a_signal_while_the_lock_is_held_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr


def test_no_signal_handler_takes_locks() -> None:
    """Every handler of the project may only note, raise or write to a pipe: no event, no log."""
    found = []
    for path in Path(zhongjing.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "FrameType" in ast.unparse(node.args):
                calls = [ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)]
                found.append((path.name, node.name))
                assert set(calls) <= {"SystemExit"}, (path, node.name, calls)
    assert len(found) >= 2
