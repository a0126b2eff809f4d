"""Why an attempt failed, told once and for all readers: errors of ours by their code, others recognised.

Errors of torch, Ray and the system come in many classes and wordings. What users meet again and again
(memory, disks, processes that die) gets a code, everything else is ``UnexpectedError``. Classes are compared
by name: the driver need not have loaded what they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from zhongjing.codes import Code, local, storage, training, unexpected
from zhongjing.errors import ConfigError, DataError, TrainingError, ZhongjingError
from zhongjing.storage.files import is_disk_full
from zhongjing.storage.progress import Failure

_LONGEST = 500  # characters of a foreign message: long ones quote data
# Storage errors that end the same way however often they are tried.
_LASTING = (storage.NEWER_VERSION, storage.DAMAGED_OBJECT, storage.NO_CONDITIONAL_WRITES)

_MEMORY_CLASSES = ("builtins.MemoryError", "torch.OutOfMemoryError", "ray.OutOfMemoryError")
_MEMORY_WORDS = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|can't allocate memory|not enough memory|"
    r"[Nn]ode running low on memory|memory monitor",
)
_DEAD_CLASSES = (
    "ray.RayActorError",
    "ray.WorkerCrashedError",
    "ray.NodeDiedError",
    "ray.WorkerHealthCheckFailedError",
    "ray.WorkerHealthCheckTimeoutError",
    "ray.WorkerGroupStartupFailedError",
)
_CROWDED_CLASSES = ("ray.InsufficientClusterResourcesError", "ray.WorkerGroupStartupTimeoutError")
_CONNECTION_CLASSES = ("torch.DistError", "zhongjing.BarrierError")
_CONNECTION_WORDS = re.compile(
    r"gloo.*(Connection|Timed out|timeout)|Connection closed by peer|NCCL", re.DOTALL
)
_DISK_CLASSES = ("ray.OutOfDiskError",)
# What Ray says of a process that ended without a word.
_CUT_OFF = "connection error code"
_EXIT_DETAIL = re.compile(r"Worker exit detail: ([^\n]*?)(?:\. |\n|$)")


class WorkerFailedError(Exception):
    """A foreign error of a training worker.

    Attributes:
        rank: of the worker.
        error: what it ended with.
    """

    def __init__(self, rank: int, error: BaseException) -> None:
        self.rank = rank
        self.error = error
        super().__init__(f"worker {rank}: {type(error).__name__}: {error}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (WorkerFailedError, (self.rank, self.error))


def cause_of(error: BaseException) -> BaseException:
    """The workers' own error within Ray Train's.

    An error of ours on any rank wins. Among foreign ones a full disk, a lack of memory and a death, in this
    order, win over their consequences on the other ranks; then the lowest rank's.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, ZhongjingError):
            return cause
    order = (storage.DISK_FULL, training.OUT_OF_MEMORY, training.WORKER_DIED)
    for wanted in order:
        for rank, cause in causes.items():
            if recognise(cause) is wanted:
                return WorkerFailedError(rank, cause)
    for rank, cause in causes.items():
        return WorkerFailedError(rank, cause)
    inner = getattr(error, "controller_failure", None)
    return inner if isinstance(inner, BaseException) else error


def recognise(error: BaseException) -> Code:
    """The code of an error: its own, or the one that a foreign error stands for."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, ZhongjingError):
            return link.code
    tests = (
        (storage.DISK_FULL, _is_disk_full),
        (training.OUT_OF_MEMORY, lambda link: _is(link, _MEMORY_CLASSES) or _says(link, _MEMORY_WORDS)),
        (training.WORKER_DIED, lambda link: _is(link, _DEAD_CLASSES)),
        (local.TOO_MANY_WORKERS, lambda link: _is(link, _CROWDED_CLASSES)),
        (
            training.COMMUNICATION_LOST,
            lambda link: _is(link, _CONNECTION_CLASSES) or _says(link, _CONNECTION_WORDS),
        ),
        (unexpected.INTERRUPTED, lambda link: isinstance(link, KeyboardInterrupt | SystemExit)),
    )
    for code, test in tests:
        if any(test(link) for link in chain):
            return code
    return unexpected.UNEXPECTED


def describe_failure(error: BaseException, traceback_uri: str | None = None) -> Failure:
    """What the user is told of an error, and whether another attempt may help."""
    if isinstance(error, ZhongjingError):
        # Bad input and a run that the guard could not save end the same way every time.
        hopeless = isinstance(error, ConfigError | DataError | TrainingError) or error.code in _LASTING
        return Failure.of(error, retriable=not hopeless, traceback_uri=traceback_uri)
    rank = error.rank if isinstance(error, WorkerFailedError) else None
    inner = error.error if isinstance(error, WorkerFailedError) else error
    code = recognise(inner)
    remedy = code.remedy
    if code is unexpected.UNEXPECTED:
        remedy = f"the traceback is at the URI below; {remedy}" if traceback_uri else remedy
    return Failure(
        error=type(inner).__name__,
        code=code.name,
        message=_message(inner, code, rank),
        where=None if rank is None else f"worker {rank}",
        remedy=remedy,
        # Also an interrupted one: SIGTERM comes to a job whose node goes away, or that was ended because it
        # hung. A stop is asked for through the reconciler.
        retriable=True,
        traceback_uri=traceback_uri,
    )


def _message(error: BaseException, code: Code, rank: int | None) -> str:
    lines = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    who = "a worker" if rank is None else f"worker {rank}"
    if code is training.WORKER_DIED:
        # Ray's first line says only that it is dead; how it ended stands further down.
        found = _EXIT_DETAIL.search(str(error))
        how = found.group(1) if found else detail
        how = "it was killed, or crashed" if _CUT_OFF in how else how
        return f"the process of {who} died ({how})"[:_LONGEST]
    if code in (training.OUT_OF_MEMORY, training.COMMUNICATION_LOST, storage.DISK_FULL):
        summary = code.summary.rstrip(".").lower()
        return f"{summary} ({detail})"[:_LONGEST]
    return detail[:_LONGEST]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, Ray's wrappers included."""
    waiting, seen = [error], set[int]()
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = (
            link.__cause__,
            None if link.__suppress_context__ else link.__context__,
            getattr(link, "health_check_failure", None),  # of Ray Train
            getattr(link, "cause", None),  # of a RayTaskError
            getattr(link, "error", None) if isinstance(link, WorkerFailedError) else None,
        )
        waiting.extend(other for other in inner if isinstance(other, BaseException))


def _is(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(
        f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in names for kind in type(error).__mro__
    )


def _says(error: BaseException, words: re.Pattern[str]) -> bool:
    # Only classes by which libraries tell such things: another's text may quote anything.
    return (isinstance(error, RuntimeError) or _is(error, ("ray.RayError",))) and (
        words.search(str(error)) is not None
    )


def _is_disk_full(error: BaseException) -> bool:
    return is_disk_full(error) or _is(error, _DISK_CLASSES)
