"""A cluster of one node: prepared, brought up, entered, taken down."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.cluster.node import services
from tests.cluster.node.build import build_programs
from tests.cluster.node.configuration import persistent_volumes, write_configuration
from tests.cluster.node.images import (
    TARGETS,
    build_images,
    ctr,
    image_name,
    import_images,
    lay_out_pause,
    remove_abandoned_builds,
)
from tests.cluster.node.namespaces import alive, end_namespaces, make_namespaces, wait_until
from tests.cluster.node.packages import install_packages
from tests.cluster.node.pki import write_pki
from tests.cluster.node.place import (
    NODE_NAME,
    PAUSE_IMAGE,
    HarnessError,
    Place,
    State,
    UnavailableError,
    read_state,
)
from tests.cluster.node.process import NodeProcess

# Of the container runtime's own records; its images stay.
RECORDS = ("io.containerd.grpc.v1.cri", "io.containerd.runtime.v2.task", "io.containerd.runtime.v1.linux")

Say = Callable[[str], None]


def prepare(place: Place, say: Say) -> None:
    """Everything that can be done before the cluster: packages, programs, images.

    Quick if it was done before.

    Raises:
        UnavailableError: not on this machine.
        HarnessError: something does not build.
    """
    if os.geteuid() != 0:
        raise UnavailableError("a Kubernetes node needs root")
    place.logs.mkdir(parents=True, exist_ok=True)
    with _alone(place, "prepare", say):
        install_packages()
        build_programs(place, say)
        lay_out_pause(place)
        remove_abandoned_builds(place)
        build_images(place, say)


class Node:
    """The running cluster."""

    def __init__(self, place: Place, state: State, outer: subprocess.Popen[bytes] | None = None) -> None:
        """Of a cluster that runs or is just being brought up.

        Args:
            place: where its files are.
            state: its processes.
            outer: the program that holds its namespaces, if this process started it.
        """
        self._outer = outer
        self.place = place
        self.state = state
        self._processes: dict[str, NodeProcess] = {}
        self._reserved = ExitStack()
        programs = (services.containerd, *services.BEFORE_THE_API, *services.AFTER_THE_API)
        for program in (make(place) for make in programs):
            self._processes[program.name] = self.process(program.name, program.command)

    @property
    def bound(self) -> bool:
        """Whether it belongs to one test run; else somebody brought it up by hand."""
        return self.state.owner != 0

    def process(self, name: str, command: list[str]) -> NodeProcess:
        """A program in the node, not started yet: the cluster's own, or one that a test brings."""
        return NodeProcess(name, command, self.place.logs / f"{name}.log", self.state.init)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """As administrator.

        Raises:
            HarnessError: it failed.
        """
        done = subprocess.run(
            [str(self.place.bin / "kubectl"), "--kubeconfig", str(self.place.kubeconfig), *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HarnessError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A program is away for a while: ``kube-apiserver``, ``kubelet``, ``coredns``, ..."""
        process = self._processes[name]
        process.stop()
        try:
            yield
        finally:
            self._start(name)
            self._wait_ready()

    def refill_volumes(self) -> None:
        """Empties the volumes whose claim is gone and offers them again."""
        volumes = json.loads(self.kubectl("get", "persistentvolumes", "--output", "json"))["items"]
        for volume in volumes:
            name = volume["metadata"]["name"]
            if volume["status"]["phase"] == "Released" and (self.place.volumes / name).is_dir():
                self._empty_volume(name)
                freed = '[{"op": "remove", "path": "/spec/claimRef"}]'
                self.kubectl("patch", "persistentvolume", name, "--type", "json", "--patch", freed)

    def import_images(self) -> int:
        """Takes the project's images, as they were last built, into the node; returns the bytes sent."""
        return import_images(self.place, [PAUSE_IMAGE, *map(image_name, TARGETS)])

    def down(self) -> None:
        """Ends everything and leaves nothing but the caches and the logs."""
        end_namespaces(self.place, self.state)
        for process in self._processes.values():
            process.forget()
        if self._outer is not None:
            self._outer.wait()
        shutil.rmtree(self.place.node, ignore_errors=True)
        self._reserved.close()

    def _bring_up(self, say: Say) -> None:
        place = self.place
        for log in place.logs.glob("*.log"):
            if not log.name.startswith(("image-", "debootstrap", "init")):
                log.unlink()
        write_pki(place)
        write_configuration(place)
        for record in RECORDS:
            shutil.rmtree(place.containerd / record, ignore_errors=True)
        self._start("containerd")
        wait_until("containerd", lambda: self._checked("containerd") and _answers(place))
        self._forget_containers()
        say("taking the images in")
        self.import_images()
        say("starting Kubernetes")
        for program in (make(place) for make in services.BEFORE_THE_API):
            self._start(program.name)
        wait_until("API server", lambda: self._checked("kube-apiserver") and services.api_ready(place))
        for program in (make(place) for make in services.AFTER_THE_API):
            self._start(program.name)
        self._wait_ready()
        for volume in persistent_volumes(place):
            self._empty_volume(volume["metadata"]["name"])
        volumes: dict[str, Any] = {"apiVersion": "v1", "kind": "List", "items": persistent_volumes(place)}
        self.kubectl("apply", "--server-side", "--filename", "-", text=json.dumps(volumes))

    def _start(self, name: str) -> None:
        self._processes[name].start()

    def _checked(self, name: str) -> bool:
        return self._processes[name].check()

    def _wait_ready(self) -> None:
        wait_until("API server", lambda: self._checked("kube-apiserver") and services.api_ready(self.place))
        condition = '{.status.conditions[?(@.type=="Ready")].status}'

        def ready() -> bool:
            try:
                for name in self._processes:
                    self._checked(name)
                return self.kubectl("get", "node", NODE_NAME, "--output", f"jsonpath={condition}") == "True"
            except HarnessError as error:
                if "has ended" in str(error):
                    raise
                return False

        wait_until("node", ready, seconds=120)

    def _empty_volume(self, name: str) -> None:
        folder = self.place.volumes / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o2777)  # any user of a pod may write; Kubernetes leaves such folders as they are

    def _forget_containers(self) -> None:
        """Containers of an earlier cluster: their processes ended with it, their layers are here still."""
        for container in ctr(self.place, "containers", "ls", "--quiet").split():
            ctr(self.place, "containers", "rm", container)
        for line in ctr(self.place, "snapshots", "ls").splitlines()[1:]:
            name, *_, kind = line.split()
            if kind == "Active":
                ctr(self.place, "snapshots", "rm", name)


def _answers(place: Place) -> bool:
    try:
        ctr(place, "version")
    except HarnessError:
        return False
    return True


def running(place: Place) -> Node | None:
    """The cluster that somebody brought up by hand, if it still runs."""
    state = read_state(place.state_file)
    return Node(place, state) if state and state.owner == 0 and alive(state.init) else None


def bring_up(place: Place, say: Say, *, bound: bool) -> Node:
    """Prepares and brings the cluster up: some 20 s where everything is built and in the node's store.

    Args:
        place: where it keeps its things.
        say: told of what takes long.
        bound: whether it ends with the calling process, however that ends.

    Raises:
        UnavailableError: not on this machine.
        HarnessError: it did not come up.
    """
    with ExitStack() as reserved:
        reserved.enter_context(_alone(place, "cluster", say))
        if running(place):
            raise HarnessError("a cluster is up already")
        prepare(place, say)
        _clear(place)
        try:
            node = Node(place, *make_namespaces(place, bound=bound))
            node._bring_up(say)
        except BaseException:
            _clear(place)
            raise
        if bound:
            node._reserved = reserved.pop_all()  # nobody else's cluster until this one is down
        return node


def _clear(place: Place) -> None:
    """Puts away what is left of a cluster that nobody took down."""
    left = read_state(place.state_file)
    if left:
        end_namespaces(place, left)
    shutil.rmtree(place.node, ignore_errors=True)
    place.node.mkdir(parents=True)


@contextmanager
def _alone(place: Place, what: str, say: Say) -> Iterator[None]:
    """One process at a time; the next waits, for as long as it takes."""
    place.root.mkdir(parents=True, exist_ok=True)
    with (place.root / f".{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run ({what})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
