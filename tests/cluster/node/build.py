"""Kubernetes' own programs, built from their Go modules once and kept.

Versions are pinned by ``tools/go.mod`` and checked by ``tools/go.sum``; Helm and CoreDNS, whose requirements
do not go together with those of Kubernetes, by their version and Go's checksum database.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cluster.node.place import COREDNS_VERSION, HELM_VERSION, HarnessError, Place, UnavailableError

TOOLS = Path(__file__).with_name("tools")
# In the order of need: the quick ones fail first where Go or its modules cannot be had.
FROM_TOOLS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
}
BY_VERSION = {
    "helm": f"helm.sh/helm/v3/cmd/helm@{HELM_VERSION}",
    "coredns": f"github.com/coredns/coredns@{COREDNS_VERSION}",
}
PAUSE_SOURCE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
"""


def kubernetes_version() -> str:
    """As ``tools/go.mod`` requires it."""
    found = re.search(
        r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", (TOOLS / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise HarnessError("tools/go.mod does not require k8s.io/kubernetes")
    return found[1]


def build_key(name: str) -> str:
    """Changes with whatever the program is built from."""
    sources = [(TOOLS / file).read_bytes() for file in ("go.mod", "go.sum")] if name in FROM_TOOLS else []
    sources.append({**FROM_TOOLS, **BY_VERSION, "pause": PAUSE_SOURCE}[name].encode())
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


def build_programs(place: Place, say: Callable[[str], None]) -> None:
    """Builds what is not there yet: 10 to 15 minutes and 8 GB of Go's caches the first time.

    Args:
        place: gets the programs.
        say: told of each program before it is built.

    Raises:
        UnavailableError: no Go here.
        HarnessError: a program does not build.
    """
    for name in (*FROM_TOOLS, *BY_VERSION, "pause"):
        build_program(place, name, say)


def build_program(place: Place, name: str, say: Callable[[str], None]) -> None:
    """Builds one of them unless it is there, as :func:`build_programs` does; Helm takes a minute."""
    place.bin.mkdir(parents=True, exist_ok=True)
    program = place.bin / name
    key = place.bin / f".{name}.key"
    if program.exists() and key.exists() and key.read_text() == build_key(name):
        return
    if shutil.which("go") is None:
        raise UnavailableError(f"no Go to build {name} with")
    say(f"building {name}")
    new = place.bin / f"new-{os.getpid()}"  # another run may build it too
    _build(name, new / name)
    (new / name).replace(program)
    key.write_text(build_key(name))
    shutil.rmtree(new, ignore_errors=True)


def _build(name: str, output: Path) -> None:
    output.parent.mkdir(exist_ok=True)
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    told = "k8s.io/component-base/version"
    flags = f"-s -w -X {told}.gitVersion={version} -X {told}.gitMajor={major} -X {told}.gitMinor={minor}"
    environment = dict(os.environ)
    folder = TOOLS
    if name in FROM_TOOLS:
        command = [
            "go",
            "build",
            "-mod=readonly",
            "-trimpath",
            "-ldflags",
            flags,
            "-o",
            str(output),
            FROM_TOOLS[name],
        ]
    elif name in BY_VERSION:
        environment["GOBIN"] = str(output.parent)
        command = ["go", "install", "-trimpath", "-ldflags", "-s -w", BY_VERSION[name]]
    else:
        environment["CGO_ENABLED"] = "0"  # it is alone in its image
        folder = output.parent / "source"
        folder.mkdir(exist_ok=True)
        (folder / "main.go").write_text(PAUSE_SOURCE)
        command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(output), "main.go"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
