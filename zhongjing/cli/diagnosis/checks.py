"""Which checks there are, and how they are made: beside each other, each with a deadline.

A check that raises or hangs is a finding.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis import accelerator, document, machine, ray, store, supervisor
from zhongjing.cli.diagnosis.finding import Finding, fails, of_error
from zhongjing.cli.diagnosis.probes import Probes
from zhongjing.codes import command
from zhongjing.codes import machine as codes
from zhongjing.errors import ZhongjingError

if TYPE_CHECKING:
    from zhongjing.cli.target import ClusterTarget
    from zhongjing.config.pipeline import TrainingPipeline
    from zhongjing.config.sources import Storage


@dataclass(frozen=True)
class Situation:
    """What was asked for.

    Attributes:
        local: whether runs are meant to happen on this machine.
        workdir: of local runs; need not exist.
        probes: runs what needs a process of its own.
        cluster: the release to look at; none without a kubeconfig, and with ``local``.
        storage: the object store to try; none where none was named, and with ``local`` the workdir's.
        document: the document to hold against this machine or the cluster.
        deep: whether a Ray is started to try it.
        environment: of the command.
    """

    local: bool
    workdir: Path
    probes: Probes
    cluster: ClusterTarget | None = None
    storage: Storage | None = None
    document: TrainingPipeline | None = None
    deep: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: what is looked at; the findings may have names of their own.
        run: looks.
        asked: whether it belongs to what was asked for.
        seconds: when it is cut off, from the start of all checks on.
    """

    name: str
    run: Callable[[Situation], Iterable[Finding]]
    asked: Callable[[Situation], bool] = lambda _: True
    seconds: float = 30.0


def _local(situation: Situation) -> bool:
    return situation.local


def _store(situation: Situation) -> bool:
    return situation.local or situation.storage is not None or situation.cluster is None


def _cluster(situation: Situation) -> Iterable[Finding]:
    from zhongjing.cli.diagnosis.cluster import cluster  # loads the client of Kubernetes

    return cluster(situation)


CHECKS = (
    Check("python", machine.python),
    Check("packages", machine.packages),
    Check("torch", accelerator.torch, _local, 100.0),
    Check("cores", machine.cores, _local),
    Check("memory", machine.memory, _local),
    Check("disk", machine.disk, _local),
    Check("limits", machine.limits, _local),
    Check("ports", machine.ports, _local),
    Check("supervisor", supervisor.supervisor, _local),
    Check("s3", store.store, _store, 70.0),
    Check("ray", ray.ray, lambda situation: situation.deep, 250.0),
    Check("document", document.document, lambda situation: situation.document is not None, 60.0),
    Check("cluster", _cluster, lambda situation: not situation.local, 90.0),
)
"""All checks, in the order in which they are told."""


def checks(situation: Situation) -> list[Check]:
    """The checks that ``situation`` asks for."""
    return [check for check in CHECKS if check.asked(situation)]


def run_checks(checks: Sequence[Check], situation: Situation) -> Iterator[Finding]:
    """Starts all checks and yields their findings, in the order of ``checks``, as they come."""
    began = time.monotonic()
    running = [(check, _start(check, situation)) for check in checks]
    for check, answers in running:
        left = began + check.seconds - time.monotonic()
        try:
            yield from answers.get(timeout=max(left, 0.01))
        except queue.Empty:
            yield fails(check.name, f"no answer within {check.seconds:.0f} s: cut off", codes.CHECK_HUNG)


def _start(check: Check, situation: Situation) -> queue.Queue[list[Finding]]:
    answers: queue.Queue[list[Finding]] = queue.Queue()
    # A daemon: one that hangs does not keep the command from ending.
    threading.Thread(
        target=lambda: answers.put(list(_findings(check, situation))), name=check.name, daemon=True
    ).start()
    return answers


def _findings(check: Check, situation: Situation) -> Iterator[Finding]:
    """A check's findings; whatever it raises is the last of them."""
    try:
        yield from check.run(situation)
    except ZhongjingError as error:
        yield of_error(check.name, error)
    except ModuleNotFoundError as error:
        said = f"not checked: the package {error.name} is not installed"
        yield fails(check.name, said, command.MISSING_PACKAGE)
    except Exception as error:
        yield fails(check.name, f"not checked: {type(error).__name__}: {error}", codes.CHECK_BROKE)
