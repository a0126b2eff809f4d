"""First process of the node: sets its namespaces up, then reaps orphans until it is told to end.

Started as a script, with Python's own library alone. Mounts, network and process ids are the node's own, so
nothing of them is left when this process has gone: the kernel ends whatever it was the first of.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# Folders at fixed places that containerd, kubelet and the network plugins write to.
OWN_FOLDERS = ("/run", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/etc/cni")
KERNEL_SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/ipv4/conf/all/rp_filter": "0",
}


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def main(bridge: str, bridge_address: str, ready: str) -> None:
    # What kubelet mounts has to show in containers that containerd starts: shared, but inside of the node.
    run("mount", "--make-rshared", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    for folder in OWN_FOLDERS:
        if folder == "/run" or Path(folder).is_dir():
            run("mount", "-t", "tmpfs", "-o", "mode=755", "node", folder)
    Path("/run/netns").mkdir()
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", bridge, "type", "bridge")
    run("ip", "addr", "add", f"{bridge_address}/24", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    for name, value in KERNEL_SETTINGS.items():
        setting = Path("/proc/sys") / name
        if setting.exists():
            setting.write_text(value)

    waited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    Path(ready).touch()
    while signal.sigwait(waited) != signal.SIGTERM:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
