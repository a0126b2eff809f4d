"""What users are told of an attempt's end, for errors of ours, of torch, of Ray and of the system."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import ray.exceptions
import torch
from ray.core.generated import common_pb2
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from zhongjing import codes, errors
from zhongjing.codes import data, model, storage, training, unexpected
from zhongjing.errors import DataError, StorageError, StorageUnavailableError, TrainingError, ZhongjingError
from zhongjing.train.job.failures import WorkerFailedError, cause_of, describe_failure, recognise

# Ray gives these no types.
OUT_OF_MEMORY: Any = ray.exceptions.OutOfMemoryError
NODE_DIED: Any = ray.exceptions.NodeDiedError
KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ZhongjingError)),
    key=lambda kind: kind.__name__,
)


def raised(error: BaseException, *, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def died(detail: str) -> WorkerHealthCheckFailedError:
    """A killed worker, as Ray Train tells it."""
    context = getattr(common_pb2, "ActorDiedErrorContext")(  # noqa: B009 - generated, without types
        actor_id=bytes(16), class_name="RayTrainWorker", error_message=detail, pid=4711
    )
    return WorkerHealthCheckFailedError("health check failed", ray.exceptions.ActorDiedError(context))


KILLED = died(
    "The actor is dead because its worker process has died.\n"
    "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error "
    "code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer due to "
    "high memory usage, (2) ray stop --force is called."
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pickled", [pickle, ray.cloudpickle])
def test_errors_keep_everything_through_pickle(kind: type[ZhongjingError], pickled: Any) -> None:
    error = kind("it is so", code=model.ADAPTER_MISMATCH, where="here", remedy="do that")
    again = pickled.loads(pickled.dumps(error))
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()
    assert again.code is codes.find("AdapterMismatch"), "one object a code, in every process"


@pytest.mark.parametrize(
    ("error", "retriable"),
    [
        (DataError("bad", code=data.NO_GOOD_RECORD, where="source a"), False),
        (TrainingError("worse", code=training.DIVERGED), False),
        (StorageUnavailableError("away", code=storage.STORAGE_UNREACHABLE), True),
        (StorageError("full", code=storage.DISK_FULL), True),
        (StorageError("newer", code=storage.NEWER_VERSION), False),
        (StorageError("cut", code=storage.DAMAGED_OBJECT), False),
    ],
    ids=lambda value: value.code.name if isinstance(value, ZhongjingError) else "",
)
def test_errors_of_ours_are_told_as_they_are(error: ZhongjingError, retriable: bool) -> None:
    failure = describe_failure(error, "s3://bucket/traceback.txt")
    assert failure.error == type(error).__name__
    assert failure.code == error.code.name
    assert (failure.message, failure.where, failure.remedy) == (error.message, error.where, error.remedy)
    assert failure.retriable is retriable
    assert failure.traceback_uri == "s3://bucket/traceback.txt"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), training.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), training.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), training.OUT_OF_MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
            training.OUT_OF_MEMORY,
        ),
        (OUT_OF_MEMORY("Task was killed"), training.OUT_OF_MEMORY),
        (died("The worker was killed: node running low on memory"), training.OUT_OF_MEMORY),
        (KILLED, training.WORKER_DIED),
        (ray.exceptions.ActorDiedError(), training.WORKER_DIED),
        (ray.exceptions.WorkerCrashedError(), training.WORKER_DIED),
        (NODE_DIED("node 3 is gone"), training.WORKER_DIED),
        (torch.distributed.DistNetworkError("recv failed"), training.COMMUNICATION_LOST),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            training.COMMUNICATION_LOST,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), storage.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), storage.DISK_FULL),
        (RuntimeError("write(): fd 3 failed with No space left on device"), storage.DISK_FULL),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            storage.DISK_FULL,
        ),
        (ray.exceptions.OutOfDiskError("the local disk is full"), storage.DISK_FULL),
        (KeyboardInterrupt(), unexpected.INTERRUPTED),
        (SystemExit(1), unexpected.INTERRUPTED),
        (ValueError("out of memory, gloo and No space left on device"), unexpected.UNEXPECTED),
        (ZeroDivisionError(), unexpected.UNEXPECTED),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, BaseException) else value.name,
)
def test_foreign_errors_are_recognised(error: BaseException, code: codes.Code) -> None:
    failure = describe_failure(error)
    assert failure.code == code.name
    assert failure.error == type(error).__name__
    assert failure.remedy == code.remedy
    assert failure.retriable
    assert "\n" not in failure.message


def test_a_full_disk_is_found_anywhere_in_the_chain() -> None:
    inner = OSError(errno.ENOSPC, "No space left on device")
    assert recognise(raised(RuntimeError("the writer failed"), cause=inner)) is storage.DISK_FULL
    assert recognise(WorkerFailedError(1, raised(ValueError("x"), cause=inner))) is storage.DISK_FULL


def test_a_dead_worker_is_named_and_wins_over_its_consequences() -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
    cause = cause_of(WorkerGroupError("two errors", {0: gloo, 1: KILLED}))
    failure = describe_failure(cause, "s3://bucket/traceback.txt")
    assert failure.code == "WorkerDied"
    assert failure.where == "worker 1"
    # Ray's list of guesses, memory among them, is no finding.
    assert failure.message == "the process of worker 1 died (it was killed, or crashed)"
    assert failure.retriable


def test_an_error_of_ours_wins_over_a_death() -> None:
    ours = DataError("bad", code=data.DAMAGED_CACHE)
    assert cause_of(WorkerGroupError("two errors", {0: KILLED, 1: ours})) is ours


def test_errors_of_the_controller_are_told() -> None:
    inner: Exception = NODE_DIED("node 3 is gone")
    assert cause_of(ControllerError(inner)) is inner
    message = describe_failure(cause_of(ControllerError(inner))).message
    assert message.startswith("the process of a worker died (NodeDiedError: node 3 is gone)")


def test_a_failed_worker_is_pickled_with_its_rank() -> None:
    again = pickle.loads(pickle.dumps(WorkerFailedError(3, MemoryError("no room"))))
    assert (again.rank, type(again.error)) == (3, MemoryError)


def test_long_foreign_messages_are_cut() -> None:
    assert len(describe_failure(ValueError("x" * 5000)).message) <= 500


def test_safetensors_on_a_full_disk(full_disk: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(Exception, match="No space left") as caught:
        save_file({"large": torch.zeros(4 << 20)}, full_disk / "x.safetensors")
    assert recognise(caught.value) is storage.DISK_FULL


def test_torch_on_a_full_disk(full_disk: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.save({"large": torch.zeros(4 << 20)}, full_disk / "x.pt")
    assert recognise(caught.value) is storage.DISK_FULL
