"""Debian's part of the node: container runtime, network plugins, image tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.node.place import UnavailableError

# A program or file of each package: what is there already, from wherever, is not installed again.
PACKAGES = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debootstrap": "debootstrap",
    "iproute2": "ip",
    "iptables": "iptables",
    "runc": "runc",
    "skopeo": "skopeo",
    "util-linux": "nsenter",
}


def missing_packages() -> list[str]:
    """Packages whose program is not here."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return [
        package
        for package, program in PACKAGES.items()
        if not (Path(program).exists() if program.startswith("/") else shutil.which(program, path=path))
    ]


def install_packages() -> None:
    """Installs what is missing.

    Raises:
        UnavailableError: this is not a Debian, or its packages cannot be had.
    """
    missing = missing_packages()
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"no apt-get to install {', '.join(missing)} with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "--quiet"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
