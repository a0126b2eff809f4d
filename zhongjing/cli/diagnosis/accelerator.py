"""torch, and whether it can use the GPUs that are there. A GPU that cannot be used is never passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.cli.diagnosis.children import Answer
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command, machine
from zhongjing.codes import local as local_codes

SECONDS = 90.0  # an import takes 3 s, and half a minute from a cold disk
NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # PCI classes of graphics and compute cards
_SMALL_GPU = 2 * 2**30  # bytes

Facts = Mapping[str, Any]
"""What :mod:`zhongjing.cli.diagnosis.torch_probe` sent, by name."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs of this machine.

    Attributes:
        driver: GPUs (or slices of one) that the driver shows here; None where it does not tell.
        files: device files of NVIDIA's GPUs.
        cards: NVIDIA's GPUs on the PCI bus; in a container these are the host's.
        amd: whether there is a device file of AMD's GPUs.
        hidden: ``CUDA_VISIBLE_DEVICES``, where it is set.
    """

    driver: int | None = 0
    files: int = 0
    cards: int = 0
    amd: bool = False
    hidden: str | None = None

    @property
    def count(self) -> int:
        """GPUs that this process was given, whether they work or not."""
        return self.files if self.driver is None else self.driver


def check(situation: Situation) -> Iterator[Finding]:
    """Imports torch and tries the GPUs, in a child process."""
    from zhongjing.backends.local.machine import gpus

    answer = situation.children.run(
        "zhongjing.cli.diagnosis.torch_probe", seconds=SECONDS, environment=situation.environment
    )
    facts = answer.merged()
    hardware = Hardware(
        driver=gpus(),
        files=device_files(),
        cards=pci_cards(),
        amd=Path("/dev/kfd").exists(),
        hidden=situation.environment.get("CUDA_VISIBLE_DEVICES"),
    )
    yield judge_torch(facts, answer)
    yield judge_gpus(facts, answer, hardware)


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
        count += vendor == NVIDIA and kind.startswith(_DISPLAY)
    return count


def judge_torch(facts: Facts, answer: Answer) -> Finding:
    """Torch is there, computes, and its workers can speak to each other."""
    if "torch" not in facts:
        last = answer.last_words
        if "No module named 'torch'" in last:
            said = "not installed: runs on this machine and chat need it"
            return fails("torch", said, command.MISSING_PACKAGE, "pip install 'zhongjing[train]'")
        if answer.code is None:
            return fails("torch", f"its import did not end within {SECONDS:.0f} s", machine.CHECK_HUNG)
        return fails("torch", f"its import {answer.death}: {last}", machine.TORCH_UNUSABLE)
    about = f"torch {facts['torch']} ({build(facts)}), imported in {facts['seconds']:.1f} s"
    if not facts["right"]:
        return fails("torch", f"{about}: a product of matrices is wrong", machine.TORCH_UNUSABLE)
    if not facts["gloo"]:
        return fails("torch", f"{about}: built without gloo, workers cannot speak", machine.TORCH_UNUSABLE)
    return fine("torch", about)


def build(facts: Facts) -> str:
    """What torch was built for: ``CUDA 13.0``, ``ROCm 6.4`` or ``CPU``."""
    if facts.get("cuda"):
        return f"CUDA {facts['cuda']}"
    return f"ROCm {facts['hip']}" if facts.get("hip") else "CPU"


def judge_gpus(facts: Facts, answer: Answer, there: Hardware) -> Finding:
    """All GPUs that are there can be used; or there are none, and then nothing pretends that there are."""
    if facts.get("available"):
        return _usable(facts, there)
    if there.hidden is not None and (there.files or there.count):
        said = (
            f"hidden by CUDA_VISIBLE_DEVICES={there.hidden!r}: stages with resources.gpus > 0 will be refused"
        )
        return warn("gpu", said, local_codes.NO_GPU, "unset CUDA_VISIBLE_DEVICES to train on the GPU")
    if there.count:
        return _unusable(facts, answer, there.count)
    if there.amd and not facts.get("hip"):
        said = f"an AMD GPU is there (/dev/kfd), and torch is built for {build(facts)}"
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


def _versions(facts: Facts) -> str:
    driver = int(facts.get("driver") or 0)
    known = f" for CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else ""
    return f"driver{known}, torch {facts.get('torch', 'unknown')} ({build(facts)})"


def _usable(facts: Facts, there: Hardware) -> Finding:
    devices: list[dict[str, Any]] = facts["devices"]
    broken = [each for each in devices if each.get("error")]
    if broken:
        who = ", ".join(f"cuda:{each['index']} {each.get('name', '')}".strip() for each in broken)
        return fails("gpu", f"{who}: {broken[0]['error']}; {_versions(facts)}", machine.GPU_UNUSABLE)
    shown = ", ".join(
        f"cuda:{each['index']} {each['name']} ({gib(each['free'])} free of {gib(each['total'])})"
        for each in devices
    )
    about = f"{_counted(len(devices))} usable: {shown}; {_versions(facts)}"
    if not facts["nccl"] and len(devices) > 1:
        return fails("gpu", f"{about}; torch is built without NCCL", machine.GPU_UNUSABLE)
    # Of partitioned GPUs a process is shown one slice.
    sliced = any("MIG" in each["name"] for each in devices)
    lost = there.count - len(devices)
    if lost > 0 and there.hidden is None and not sliced:
        return fails("gpu", f"{about}; {_counted(lost)} more cannot be used", machine.GPU_UNUSABLE)
    full = [each for each in devices if each["free"] < min(_SMALL_GPU, each["total"] // 2)]
    if full:
        said = f"{about}; memory of cuda:{full[0]['index']} is in use"
        return warn("gpu", said, machine.LITTLE_MEMORY, "nvidia-smi lists the programs that hold it")
    return fine("gpu", about)


def _unusable(facts: Facts, answer: Answer, count: int) -> Finding:
    about = f"{_counted(count)} there, and torch cannot use {'it' if count == 1 else 'them'}"
    if "torch" not in facts:
        said = f"{_counted(count)} there; not tried, as torch does not load"
        return warn("gpu", said, machine.GPU_UNUSABLE)
    if "available" not in facts:
        return fails("gpu", f"{about}: torch {answer.death} as it looked for them", machine.GPU_UNUSABLE)
    if not facts.get("cuda"):
        remedy = "install torch's CUDA build (pytorch.org/get-started), or set resources.gpus: 0"
        said = f"{about}: torch {facts['torch']} is built for {build(facts)}"
        return fails("gpu", said, machine.GPU_UNUSABLE, remedy)
    # A driver runs every CUDA of its own major version, and older ones.
    driver, wanted = int(facts.get("driver") or 0) // 1000, int(str(facts["cuda"]).split(".")[0])
    if 0 < driver < wanted:
        remedy = f"upgrade the driver to one for CUDA {wanted}, or install a torch for CUDA {driver}"
        said = f"{about}: the driver is too old: {_versions(facts)}"
        return fails("gpu", said, machine.DRIVER_TOO_OLD, remedy)
    if not driver:
        remedy = (
            "install the driver's libraries; a container needs the capability 'compute' "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        )
        said = f"{about}: the driver's library libcuda.so.1 is not found or does not answer"
        return fails("gpu", said, machine.GPU_UNUSABLE, remedy)
    reason = facts.get("warning") or "no reason given"
    return fails("gpu", f"{about}: {reason}; {_versions(facts)}", machine.GPU_UNUSABLE)
