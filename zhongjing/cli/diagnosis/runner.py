"""Runs checks beside each other, each with a deadline. One that raises or hangs is a finding."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zhongjing.cli.diagnosis.finding import Finding, fails, lacks, of_error
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command, machine
from zhongjing.errors import ZhongjingError


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
    seconds: float = 15.0


def run_checks(checks: Sequence[Check], situation: Situation) -> Iterator[Finding]:
    """Starts all checks and yields their findings, in the order of ``checks``, as they come."""
    began = time.monotonic()
    running = [(check, _start(check, situation)) for check in checks]
    for check, answers in running:
        left = began + check.seconds - time.monotonic()
        try:
            yield from answers.get(timeout=max(left, 0.01))
        except queue.Empty:
            yield fails(check.name, f"no answer within {check.seconds:.0f} s: cut off", machine.CHECK_HUNG)


def _start(check: Check, situation: Situation) -> queue.Queue[list[Finding]]:
    answers: queue.Queue[list[Finding]] = queue.Queue()
    # A daemon: one that hangs does not keep the command from ending.
    threading.Thread(
        target=lambda: answers.put(safely(check, situation)), name=check.name, daemon=True
    ).start()
    return answers


def safely(check: Check, situation: Situation) -> list[Finding]:
    """A check's findings; whatever it raises is one too."""
    try:
        return list(check.run(situation))
    except ZhongjingError as error:
        return [of_error(check.name, error)]
    except ModuleNotFoundError as error:
        return [
            lacks(
                check.name,
                f"not checked: the package {error.name} is not installed",
                command.MISSING_PACKAGE,
                serious=situation.local,
            )
        ]
    except Exception as error:
        return [fails(check.name, f"not checked: {type(error).__name__}: {error}", machine.CHECK_BROKE)]
