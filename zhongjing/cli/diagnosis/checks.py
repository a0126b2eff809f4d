"""Which checks there are, and how they are made: beside each other, each with a deadline.

A check that raises or hangs is a finding.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zhongjing.cli.diagnosis import (
    accelerator,
    cluster,
    document,
    machine,
    packages,
    ray,
    store,
    supervisor,
)
from zhongjing.cli.diagnosis.finding import Finding, fails, of_error
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command
from zhongjing.codes import machine as codes
from zhongjing.errors import ZhongjingError

_GRACE = 10.0  # seconds beyond a child's own deadline


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: what is looked at; the findings may have names of their own.
        run: looks.
        seconds: when it is cut off, from the start of all checks on.
    """

    name: str
    run: Callable[[Situation], Iterable[Finding]]
    seconds: float = 30.0


def checks(situation: Situation) -> list[Check]:
    """The checks that ``situation`` asks for, in the order in which they are told."""
    listed = [Check("python", packages.check_python), Check("packages", packages.check)]
    if situation.local:
        listed += [
            Check("torch", accelerator.check, accelerator.SECONDS + _GRACE),
            Check("cores", machine.check_cores),
            Check("memory", machine.check_memory),
            Check("disk", machine.check_disk),
            Check("limits", machine.check_limits),
            Check("ports", machine.check_ports),
            Check("supervisor", supervisor.check),
        ]
    if situation.local or situation.storage is not None or situation.cluster is None:
        listed.append(Check("s3", store.check, store.SECONDS + _GRACE))
    if situation.deep:
        listed.append(Check("ray", ray.check, ray.SECONDS + _GRACE))
    if situation.document is not None:
        listed.append(Check("document", document.check, 60.0))
    if not situation.local:
        listed.append(Check("cluster", cluster.check, 90.0))
    return listed


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
