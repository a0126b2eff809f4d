"""Process groups and random numbers: what every training process sets up before it does anything else.

DeepSpeed is imported only after :func:`prepare_deepspeed`: it chooses its accelerator when it is imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore

from zhongjing.codes import model as codes
from zhongjing.errors import DataError

_M_MMAP_THRESHOLD, _MAPPED_FROM = -3, 1 << 18  # malloc.h; bytes
COLLECTIVE_SECONDS = 3600
"""How long a rank waits in a collective, and elsewhere for ranks that do nothing any more.

Ray Train's own default is half of it. No rank waits in a collective for a transfer
(:mod:`zhongjing.train.barrier`), but evaluations and rollouts of unequal length are waited for there.
"""


def prepare_deepspeed(device: torch.device) -> None:
    """Chooses DeepSpeed's accelerator, silences its log and keeps it from compiling anything."""
    if device.type == "cpu":
        # Else a machine with a GPU would train there although the document asked for the CPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    with _silent_compiler():
        import deepspeed
        from deepspeed.utils import logger

    # Its handler writes to stdout, where people read our progress. Other handlers are not its own.
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.ERROR)
    _import_muon_uncompiled()
    # A shared-memory all-reduce for the CPU: a minute of g++ at first use, where gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def _silent_compiler() -> Iterator[None]:
    """Keeps the standard error stream of child processes quiet.

    DeepSpeed's import asks a linker for libraries that none of its parts used here needs, and the linker
    complains. Errors of the import itself are exceptions and not lost.
    """
    if "deepspeed" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon optimizer without ``torch.compile``.

    ZeRO imports it only to know its class, but its module asks for the whole compiler: 560 modules and
    seconds of every worker's start, for kernels that are not run here.
    """
    from deepspeed.runtime import compiler

    compile_kernel = compiler.compile
    compiler.compile = lambda *_arguments, **_options: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile_kernel


def give_back_freed_memory() -> None:
    """Has the C library return tensors' memory to the system when they are freed; where there is glibc.

    Its threshold for mappings of their own grows with what is freed (``M_MMAP_THRESHOLD`` in mallopt(3)), up
    to 32 MiB. Tensors below it then share a heap that cannot shrink and is full of gaps: a stage on a CPU had
    1.8 times what its tensors took (docs/LOG.md). One that the environment sets stays.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def allocate_pinned_exactly() -> None:
    """Keeps torch from rounding page-locked memory up to powers of two, from 1 MiB on.

    With the optimizer on the host a share of 13B would take 75 GiB instead of 61. It is the setting
    ``pinned_max_round_threshold_mb`` of torch's ``PYTORCH_ALLOC_CONF``, made here since CUDA may have been
    used already; one that the environment makes stays.
    """
    settings: str = torch._C._accelerator_getAllocatorSettings()
    name = "pinned_max_round_threshold_mb"
    if name not in settings:
        torch._C._accelerator_setAllocatorSettings(f"{settings},{name}:1".lstrip(","))


def ensure_process_group(device: torch.device) -> tuple[int, int]:
    """Rank and world size; a plain process becomes a group of one, without a launcher or a port.

    Args:
        device: where this process trains: gloo on a CPU, NCCL on a GPU.
    """
    if not distributed.is_initialized():
        give_back_freed_memory()
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            distributed.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        else:
            distributed.init_process_group(
                backend,
                store=HashStore(),
                rank=0,
                world_size=1,
                timeout=timedelta(seconds=COLLECTIVE_SECONDS),
            )
    return distributed.get_rank(), distributed.get_world_size()


def check_same_start(module: nn.Module, device: torch.device) -> None:
    """Checks that every rank begins with the same parameters, bit for bit. All ranks call it.

    Args:
        module: whose parameters; they are read once, and not changed.
        device: of this process, where the ranks exchange a number for each parameter.

    Raises:
        DataError: the ranks differ: their nodes have other files under one name.
    """
    if distributed.get_world_size() == 1:
        return
    names = [name for name, _ in module.named_parameters()]
    # Makes no copy on the way, as a sum in integers would.
    hashes = [torch.hash_tensor(parameter.data) for parameter in module.parameters()]
    smallest = torch.stack([value.view(torch.int64).to(device) for value in hashes])
    largest = smallest.clone()
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    differing = (smallest != largest).nonzero().flatten().tolist()
    if differing:
        raise DataError(
            f"the ranks begin with other weights in {len(differing)} of {len(names)} parameters "
            f"(first: {names[differing[0]]})",
            code=codes.UNUSABLE_MODEL,
            where="base",
            remedy="a local path must hold the same files on every node; better name a folder in S3",
        )


def seed_of(seed: int, *place: int) -> int:
    """A seed that is a pure function of the run's seed and a place (step, rank, ...); 63 bits."""
    state = np.random.SeedSequence((seed, *place)).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def reseed(seed: int, *place: int) -> None:
    """Seeds every generator for ``place``, so that no generator's state is needed to resume."""
    value = seed_of(seed, *place)
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def make_deterministic() -> None:
    """Only deterministic kernels, from now on and for this whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
