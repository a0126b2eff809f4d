"""The GPU that Ray gave a worker: can torch use it, and if not, why. Never a silent turn to the CPU."""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass

import torch

from zhongjing.codes import Code, local, machine
from zhongjing.errors import TrainingError

_SIZE = 64


@dataclass(frozen=True)
class CudaFacts:
    """What this process sees of CUDA.

    Attributes:
        torch: version of torch.
        built_for: CUDA that torch was built for, ``13.0``; None if for none.
        driver: newest CUDA that the driver knows; None without a driver.
        hidden: CUDA_VISIBLE_DEVICES, if set.
        available: whether torch can use CUDA.
        warning: what torch said as it looked.
    """

    torch: str
    built_for: str | None
    driver: tuple[int, int] | None
    hidden: str | None
    available: bool
    warning: str


def cuda_facts() -> CudaFacts:
    """Asks the driver's library, then torch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available() and torch.cuda.device_count() > 0
    return CudaFacts(
        torch=torch.__version__,
        built_for=torch.version.cuda,
        driver=_driver(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        available=available,
        warning=" ".join(str(each.message) for each in caught).strip(),
    )


def no_cuda(facts: CudaFacts) -> TrainingError | None:
    """Why torch has no CUDA here; None if it has."""
    driver = f"up to CUDA {facts.driver[0]}.{facts.driver[1]}" if facts.driver else "none"
    where = f"torch {facts.torch} for CUDA {facts.built_for}, driver {driver}"

    def refuse(message: str, code: Code, remedy: str | None = None) -> TrainingError:
        return TrainingError(message, code=code, where=where, remedy=remedy)

    if facts.built_for is None:
        return refuse(
            "the stage asks for a GPU, and this torch is built for the CPU",
            machine.GPU_UNUSABLE,
            "build the image with torch's CUDA index, or set resources.gpus: 0",
        )
    # A driver runs every CUDA of its own major version, and older ones.
    wanted = int(facts.built_for.split(".")[0])
    if facts.driver is not None and facts.driver[0] < wanted:
        return refuse(
            "the GPU driver is too old for this torch",
            machine.DRIVER_TOO_OLD,
            f"upgrade the node's driver to one for CUDA {wanted}, or build the image with a torch for CUDA "
            f"{facts.driver[0]}",
        )
    if facts.available:
        return None
    if facts.driver is None:
        return refuse(
            "the stage asks for a GPU, and there is no driver here",
            local.NO_GPU,
            "see that the pod asks for nvidia.com/gpu and that the GPU operator runs on its node (on one "
            "machine: nvidia-smi), or set resources.gpus: 0",
        )
    reason = facts.warning.splitlines()[0] if facts.warning else f"CUDA_VISIBLE_DEVICES={facts.hidden!r}"
    return refuse(f"the stage asks for a GPU, and torch finds none: {reason}", local.NO_GPU)


def use_gpu(device: torch.device) -> None:
    """Makes ``device`` this process's GPU, once it has shown that it computes.

    Raises:
        TrainingError: torch has no kernels for it, or it does not work.
    """
    name = f"{device}"
    try:
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        name = f"{device} {properties.name} (sm_{properties.major}{properties.minor})"
        left = torch.arange(_SIZE * _SIZE, device=device).remainder(7).float().reshape(_SIZE, _SIZE)
        right = bool(torch.equal(left, left @ torch.eye(_SIZE, device=device)))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"the GPU cannot be used: {reason}",
            code=machine.GPU_UNUSABLE,
            where=name,
            remedy=f"torch {torch.__version__} has kernels for {', '.join(torch.cuda.get_arch_list())}; else "
            "see the node's kernel log for Xid errors, and drain it",
        ) from error
    if not right:
        raise TrainingError(
            "the GPU computes wrongly: a product of matrices is not what it is",
            code=machine.GPU_UNUSABLE,
            where=name,
            remedy="drain its node and have the GPU tested",
        )


def _driver() -> tuple[int, int] | None:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10
