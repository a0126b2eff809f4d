"""Processes told apart by what no clock moves."""

from __future__ import annotations

import os
import subprocess
import sys

from zhongjing.storage.identity import start_mark


def test_the_mark_of_a_process_stays_and_a_dead_one_has_none() -> None:
    mine = start_mark(os.getpid())
    assert mine is not None
    assert start_mark(os.getpid()) == mine
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = start_mark(child.pid)
        assert other is not None
        assert other != mine
        child.communicate(b"\n")
    assert start_mark(child.pid) is None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # its end closes the pipe; nobody has asked for its status yet
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_mark(child.pid) is None
    child.stdout.close()
    child.wait()
