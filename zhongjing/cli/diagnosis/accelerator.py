"""torch, and whether it can use the GPUs that are there. A GPU that cannot be used is never passed over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, warn
from zhongjing.codes import command, machine
from zhongjing.codes import local as local_codes
from zhongjing.errors import TrainingError

if TYPE_CHECKING:
    from zhongjing.cli.diagnosis.checks import Situation
    from zhongjing.train.job.accelerator import CudaFacts

SECONDS = 90.0  # an import takes 3 s, and half a minute from a cold disk
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # PCI classes of graphics and compute cards
_SMALL_GPU = 2 * 2**30  # bytes
_SIZE = 256


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs of this machine.

    Attributes:
        driver: GPUs (or slices of one) that the driver shows here; None where it does not tell.
        files: device files of NVIDIA's GPUs.
        cards: NVIDIA's GPUs on the PCI bus; in a container these are the host's.
        amd: whether there is a device file of AMD's GPUs.
    """

    driver: int | None = 0
    files: int = 0
    cards: int = 0
    amd: bool = False

    @property
    def count(self) -> int:
        """GPUs that this process was given, whether they work or not."""
        return self.files if self.driver is None else self.driver


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that torch shows: bytes of memory, and why it cannot be used."""

    name: str
    free: int = 0
    total: int = 0
    error: TrainingError | None = None


def torch(situation: Situation) -> list[Finding]:
    """Imports torch and tries the GPUs, in a process of its own."""
    steps = {"torch": machine.TORCH_UNUSABLE, "gpu": machine.GPU_UNUSABLE}
    probe = f"{__name__}:probe"
    found = situation.probes.run(probe, steps, seconds=SECONDS, environment=situation.environment)
    count = device_files()
    if count and all(each.name != "gpu" for each in found):
        said = f"{_counted(count)} there; not tried, as torch does not load"
        found.append(warn("gpu", said, machine.GPU_UNUSABLE))
    return found


def probe() -> Iterator[Finding]:
    """Torch computes, its workers can speak to each other, and it can use each GPU."""
    began = time.monotonic()
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        said = "not installed: runs on this machine and chat need it"
        yield fails("torch", said, command.MISSING_PACKAGE, "pip install 'zhongjing[train]'")
        return
    hip, seconds = torch.version.hip, time.monotonic() - began
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {hip}" if hip else "CPU"
    about = f"torch {torch.__version__} ({built}), imported in {seconds:.1f} s"
    distributed = torch.distributed
    left = torch.arange(_SIZE * _SIZE, dtype=torch.float32).reshape(_SIZE, _SIZE) % 7
    if not torch.equal(left, left @ torch.eye(_SIZE)):
        yield fails("torch", f"{about}: a product of matrices is wrong", machine.TORCH_UNUSABLE)
    elif not (distributed.is_available() and distributed.is_gloo_available()):
        yield fails("torch", f"{about}: built without gloo, workers cannot speak", machine.TORCH_UNUSABLE)
    else:
        yield fine("torch", about)

    from zhongjing.backends.local.machine import gpus
    from zhongjing.train.job.accelerator import cuda_facts

    facts = cuda_facts()
    devices = [_device(index) for index in range(torch.cuda.device_count() if facts.available else 0)]
    nccl = distributed.is_available() and distributed.is_nccl_available()
    there = Hardware(gpus(), device_files(), pci_cards(), Path("/dev/kfd").exists())
    yield judge_gpus(facts, devices, there, built=built, nccl=nccl)


def _device(index: int) -> Device:
    import torch

    from zhongjing.train.job.accelerator import use_gpu

    try:
        use_gpu(torch.device("cuda", index))
        return Device(torch.cuda.get_device_name(index), *torch.cuda.mem_get_info(index))
    except TrainingError as error:
        return Device(error.where or f"cuda:{index}", error=error)


def device_files(folder: Path = Path("/dev")) -> int:
    """How many device files of NVIDIA's GPUs there are."""
    return len([file for file in folder.glob("nvidia[0-9]*") if file.name[6:].isdigit()])


def pci_cards(folder: Path = Path("/sys/bus/pci/devices")) -> int:
    """How many of NVIDIA's GPUs are on the PCI bus."""
    count = 0
    for device in folder.glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def judge_gpus(
    facts: CudaFacts, devices: Sequence[Device], there: Hardware, *, built: str, nccl: bool
) -> Finding:
    """All GPUs that are there can be used; or there are none, and then nothing pretends that there are.

    Args:
        facts: what torch and the driver say.
        devices: that torch shows.
        there: GPUs of the machine.
        built: what torch was built for: ``CUDA 13.0``, ``ROCm 6.4`` or ``CPU``.
        nccl: whether torch was built with NCCL.
    """
    known = f" for CUDA {facts.driver[0]}.{facts.driver[1]}" if facts.driver else ""
    versions = f"driver{known}, torch {facts.torch} ({built})"
    if facts.available:
        return _usable(facts, devices, there, versions, nccl=nccl)
    if facts.hidden is not None and (there.files or there.count):
        said = (
            f"hidden by CUDA_VISIBLE_DEVICES={facts.hidden!r}: stages with resources.gpus > 0 will be refused"
        )
        return warn("gpu", said, local_codes.NO_GPU, "unset CUDA_VISIBLE_DEVICES to train on the GPU")
    if there.count:
        return _unusable(facts, there.count, versions)
    if there.amd and not built.startswith("ROCm"):
        said = f"an AMD GPU is there (/dev/kfd), and torch is built for {built}"
        return fails("gpu", said, machine.GPU_UNUSABLE)
    if there.cards:
        said = f"{_counted(there.cards)} of NVIDIA on the PCI bus, but no driver is loaded here"
        remedy = (
            "install the driver, or give the container the GPU (docker run --gpus all); to train on the CPU "
            "leave it"
        )
        return warn("gpu", said, machine.GPU_UNUSABLE, remedy)
    return fine("gpu", "none: training on the CPU; stages with resources.gpus > 0 will be refused")


def _counted(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _usable(
    facts: CudaFacts, devices: Sequence[Device], there: Hardware, versions: str, *, nccl: bool
) -> Finding:
    for each in devices:
        if each.error is not None:
            said = f"{each.name}: {each.error.message}; {versions}"
            return fails("gpu", said, each.error.code, each.error.remedy)
    shown = ", ".join(
        f"cuda:{index} {each.name} ({gib(each.free)} free of {gib(each.total)})"
        for index, each in enumerate(devices)
    )
    about = f"{_counted(len(devices))} usable: {shown}; {versions}"
    if not nccl and len(devices) > 1:
        return fails("gpu", f"{about}; torch is built without NCCL", machine.GPU_UNUSABLE)
    # Of partitioned GPUs a process is shown one slice.
    sliced = any("MIG" in each.name for each in devices)
    lost = there.count - len(devices)
    if lost > 0 and facts.hidden is None and not sliced:
        return fails("gpu", f"{about}; {_counted(lost)} more cannot be used", machine.GPU_UNUSABLE)
    for index, each in enumerate(devices):
        if each.free < min(_SMALL_GPU, each.total // 2):
            said = f"{about}; memory of cuda:{index} is in use"
            return warn("gpu", said, machine.LITTLE_MEMORY, "nvidia-smi lists the programs that hold it")
    return fine("gpu", about)


def _unusable(facts: CudaFacts, count: int, versions: str) -> Finding:
    about = f"{_counted(count)} there, and torch cannot use {'it' if count == 1 else 'them'}"
    if facts.built_for is None:
        remedy = "install torch's CUDA build (pytorch.org/get-started), or set resources.gpus: 0"
        return fails("gpu", f"{about}: {versions}", machine.GPU_UNUSABLE, remedy)
    # A driver runs every CUDA of its own major version, and older ones.
    wanted = int(facts.built_for.split(".")[0])
    if facts.driver is None:
        remedy = (
            "install the driver's libraries; a container needs the capability 'compute' "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        )
        said = f"{about}: the driver's library libcuda.so.1 is not found or does not answer"
        return fails("gpu", said, machine.GPU_UNUSABLE, remedy)
    if facts.driver[0] < wanted:
        remedy = f"upgrade the driver to one for CUDA {wanted}, or install a torch for CUDA {facts.driver[0]}"
        said = f"{about}: the driver is too old: {versions}"
        return fails("gpu", said, machine.DRIVER_TOO_OLD, remedy)
    reason = facts.warning.split("(Triggered internally")[0].strip() or "no reason given"
    return fails("gpu", f"{about}: {' '.join(reason.split())}; {versions}", machine.GPU_UNUSABLE)
