"""The node as a set of kernel namespaces: made, entered, ended.

What runs in it has its own processes, mounts and network. Three things are shared with the machine and put
back by hand: the control groups, the link to the machine, and kernel settings that kubelet writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from tests.cluster.node.place import (
    BRIDGE,
    BRIDGE_ADDRESS,
    HarnessError,
    Place,
    State,
)

# kubelet sets these for the whole machine, whatever its namespaces are.
KUBELET_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def wait_until(what: str, ready: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Looks until it is so.

    Raises:
        HarnessError: it did not come about in time.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise HarnessError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether this is a running process of a node: its number may have gone to another program since."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any(
            part.endswith("node/init.py") for part in process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def kernel_settings() -> dict[str, str]:
    """What kubelet may change, as it is now."""
    found = {name: Path("/proc/sys") / name for name in KUBELET_SETTINGS}
    return {name: path.read_text().strip() for name, path in found.items() if path.exists()}


def control_groups(place: Place) -> list[Path]:
    """The node's folder in every hierarchy of control groups."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) / place.control_group for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def make_control_groups(place: Place) -> None:
    """One group for all pods in every hierarchy: the node's parts never meet those of another cluster."""
    for group in control_groups(place):
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            above, own = group.parent / name, group / name
            if above.exists() and own.exists():
                own.write_text(above.read_text())
        offered = group.parent / "cgroup.controllers"
        if offered.exists():
            names = " ".join(f"+{name}" for name in offered.read_text().split())
            for folder in (group.parent, group):
                if names:
                    (folder / "cgroup.subtree_control").write_text(names)


def remove_control_groups(place: Place) -> None:
    """Removes the groups, the innermost first; all their processes have ended."""
    for group in control_groups(place):
        folders = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*folders, *([group] if group.is_dir() else [])]:
            wait_until(f"control group {folder} is empty", partial(_removed, folder), seconds=15)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def make_namespaces(place: Place, *, bound: bool) -> tuple[State, subprocess.Popen[bytes]]:
    """Makes the node's namespaces, and the link between them and this machine.

    Args:
        place: where the node's files go.
        bound: whether the node ends with the process that calls this.

    Returns:
        What a later call has to know, and the program that holds the namespaces.
    """
    state = State(owner=os.getpid() if bound else 0, kernel_settings=kernel_settings())
    # First of all written down: what is found of it later is put back.
    state.write(place.state_file)
    ready = place.node / "ready"
    until_we_end = ["setpriv", "--pdeathsig", "KILL"] if bound else []
    with (place.logs / "init.log").open("w") as log:
        outer = subprocess.Popen(
            [
                *until_we_end,
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *(
                    sys.executable,
                    str(Path(__file__).with_name("init.py")),
                    BRIDGE,
                    BRIDGE_ADDRESS,
                    str(ready),
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    state.outer = outer.pid
    state.write(place.state_file)
    wait_until("namespaces of the node", lambda: ready.exists() or outer.poll() is not None)
    if outer.poll() is not None:
        raise HarnessError(f"namespaces of the node: {(place.logs / 'init.log').read_text().strip()}")
    state.init = psutil.Process(outer.pid).children()[0].pid
    state.write(place.state_file)

    make_control_groups(place)
    _ip("link", "add", place.link, "type", "veth", "peer", "name", "eth0", "netns", str(state.init))
    _ip("addr", "add", f"{place.host_address}/30", "dev", place.link)
    _ip("link", "set", place.link, "up")
    inside = entered(state.init)
    subprocess.run([*inside, "ip", "addr", "add", f"{place.node_address}/30", "dev", "eth0"], check=True)
    subprocess.run([*inside, "ip", "link", "set", "eth0", "up"], check=True)
    subprocess.run([*inside, "ip", "route", "add", "default", "via", place.host_address], check=True)
    return state, outer


def entered(init: int) -> list[str]:
    """What goes before a command that is to run in the node."""
    return ["nsenter", "--target", str(init), "--mount", "--net", "--pid", "--"]


def end_namespaces(place: Place, state: State) -> None:
    """Ends whatever runs in the node and puts back what was changed for it; also after a crash, and twice."""
    for pid in (state.outer, state.init):
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)
    wait_until(
        "processes of the node end", lambda: not any(map(alive, filter(None, (state.outer, state.init))))
    )
    remove_control_groups(place)
    # The link goes with the node's network; the kernel takes that apart a moment after the last process.
    wait_until("network of the node is gone", lambda: not Path("/sys/class/net", place.link).exists())
    for name, value in state.kernel_settings.items():
        setting = Path("/proc/sys") / name
        if setting.read_text().strip() != value:
            setting.write_text(value)
    place.state_file.unlink(missing_ok=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
