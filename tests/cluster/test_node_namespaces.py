"""A node leaves nothing on the machine, also when the test run that it belongs to is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.node.namespaces import (
    alive,
    control_groups,
    end_namespaces,
    entered,
    kernel_settings,
    make_namespaces,
    wait_until,
)
from tests.cluster.node.place import NUMBERS, REPOSITORY, Place, State, read_state

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]

# A test run that brings a node up, starts a program in it, and waits to be killed.
RUN = """
import subprocess, sys, time
from pathlib import Path
from tests.cluster.node.namespaces import entered, make_namespaces
from tests.cluster.node.place import Place
place = Place(Path(sys.argv[1]), int(sys.argv[2]))
state, outer = make_namespaces(place, bound=True)
inside = subprocess.Popen([*entered(state.init), "sleep", sys.argv[3]])
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    # The last number: the run's own cluster is up beside it.
    made = Place(tmp_path, NUMBERS[-1])
    made.node.mkdir()
    made.logs.mkdir()
    return made


def traces(place: Place) -> list[str]:
    """What of a node can be seen on the machine."""
    link = Path("/sys/class/net", place.link)
    mounts = Path("/proc/mounts").read_text()
    return [
        *(str(group) for group in control_groups(place) if group.exists()),
        *([str(link)] if link.exists() else []),
        *(line for line in mounts.splitlines() if str(place.root) in line),
    ]


def sleeping(seconds: str) -> bool:
    found = subprocess.run(["pgrep", "--full", f"^sleep {seconds}$"], capture_output=True, check=False)
    return found.returncode == 0


def test_nothing_is_left_and_kernel_settings_are_put_back(place: Place) -> None:
    before = kernel_settings()
    state, outer = make_namespaces(place, bound=False)
    assert len(traces(place)) > 1
    setting = Path("/proc/sys/kernel/panic")
    try:
        setting.write_text(str(int(before["kernel/panic"]) + 7))  # as kubelet does
        inside = [*entered(state.init), "cat", "/proc/sys/net/ipv4/ip_forward"]
        assert subprocess.run(inside, capture_output=True, text=True, check=True).stdout == "1\n"
    finally:
        end_namespaces(place, state)
        outer.wait()
    assert traces(place) == []
    assert kernel_settings() == before
    assert read_state(place.state_file) is None
    end_namespaces(place, state)  # once more does no harm


def test_the_node_of_a_killed_run_ends_and_the_next_run_puts_its_rest_away(place: Place) -> None:
    marker = str(100000 + os.getpid())
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(place.root), str(place.number), marker],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        state = read_state(place.state_file)
        assert isinstance(state, State)
        assert alive(state.init)
        wait_until("program in the node", lambda: sleeping(marker))
        run.send_signal(signal.SIGKILL)
    wait_until("processes of the node end", lambda: not alive(state.init) and not sleeping(marker))
    end_namespaces(place, state)
    assert traces(place) == []
