"""torch, and whether it can use the GPUs that are there. A GPU that cannot be used is never passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zhongjing.cli.diagnosis.children import Answer
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import command, machine
from zhongjing.codes import local as local_codes

SECONDS = 90.0  # an import takes 3 s, and half a minute from a cold disk
_SMALL_GPU = 2 * 2**30  # bytes

Facts = Mapping[str, Any]
"""What :mod:`zhongjing.cli.diagnosis.torch_probe` sent, by name."""


def check(situation: Situation) -> Iterable[Finding]:
    """Imports torch and tries the GPUs, in a child process."""
    answer = situation.children.run(
        "zhongjing.cli.diagnosis.torch_probe", seconds=SECONDS, environment=situation.environment
    )
    facts = answer.merged()
    yield judge_torch(facts, answer)
    yield judge_gpus(facts, answer)


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


def judge_gpus(facts: Facts, answer: Answer) -> Finding:
    """All GPUs that are there can be used; or there are none, and then nothing pretends that there are."""
    count = _count(facts)
    if facts.get("available"):
        return _usable(facts, count)
    if _masked(facts):
        return _hidden(facts, count)
    if count:
        return _unusable(facts, count, answer)
    if facts.get("amd") and not facts.get("hip"):
        return fails(
            "gpu",
            f"an AMD GPU is there (/dev/kfd), and torch is built for {build(facts)}",
            machine.GPU_UNUSABLE,
        )
    if facts.get("cards"):
        return warn(
            "gpu",
            f"{_counted(facts['cards'])} of NVIDIA on the PCI bus, but no driver is loaded here",
            machine.GPU_UNUSABLE,
            "install the driver, or give the container the GPU (docker run --gpus all); to train on the CPU "
            "leave it",
        )
    return fine("gpu", "none: training on the CPU; stages with resources.gpus > 0 will be refused")


def _count(facts: Facts) -> int:
    """GPUs of NVIDIA that this process has been given, whether they work or not."""
    return max(int(facts.get(name, 0)) for name in ("managed", "visible", "nodes"))


def _masked(facts: Facts) -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves none."""
    hidden = facts.get("hidden")
    if hidden is None or facts.get("visible"):
        return False
    return hidden.strip() in ("", "-1") or str(facts.get("init_error", "")).startswith("CUDA_ERROR_NO_DEVICE")


def _counted(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _versions(facts: Facts) -> str:
    driver = f"driver {facts['driver']}" if facts.get("driver") else "driver"
    cuda = facts.get("driver_cuda")
    known = f" (up to CUDA {cuda[0]}.{cuda[1]})" if cuda else ""
    return f"{driver}{known}, torch {facts.get('torch', 'unknown')} ({build(facts)})"


def _usable(facts: Facts, count: int) -> Finding:
    devices: list[dict[str, Any]] = facts["devices"]
    broken = [each for each in devices if each.get("error") or not each.get("right")]
    if broken:
        reason = broken[0].get("error") or "a product of matrices is wrong"
        who = ", ".join(f"cuda:{each['index']} {each.get('name', '')}".strip() for each in broken)
        return fails("gpu", f"{who}: {reason}; {_versions(facts)}", machine.GPU_UNUSABLE)
    shown = ", ".join(
        f"cuda:{each['index']} {each['name']} ({gib(each['free'])} free of {gib(each['total'])})"
        for each in devices
    )
    about = f"{_counted(len(devices))} usable: {shown}; {_versions(facts)}"
    if not facts["nccl"] and len(devices) > 1:
        return fails("gpu", f"{about}; torch is built without NCCL", machine.GPU_UNUSABLE)
    hidden = facts.get("hidden")
    # Of partitioned GPUs a process is shown one slice.
    if count > len(devices) and hidden is None and not facts.get("sliced"):
        return fails(
            "gpu", f"{about}; {_counted(count - len(devices))} more cannot be used", machine.GPU_UNUSABLE
        )
    full = [each for each in devices if each["free"] < min(_SMALL_GPU, each["total"] // 2)]
    if full:
        return warn(
            "gpu",
            f"{about}; memory of cuda:{full[0]['index']} is in use",
            machine.LITTLE_MEMORY,
            "nvidia-smi lists the programs that hold it",
        )
    return fine("gpu", about)


def _hidden(facts: Facts, count: int) -> Finding:
    if not count:
        return fine("gpu", "none: training on the CPU; stages with resources.gpus > 0 will be refused")
    return warn(
        "gpu",
        f"{_counted(count)} hidden by CUDA_VISIBLE_DEVICES={facts['hidden']!r}: stages with "
        "resources.gpus > 0 will be refused",
        local_codes.NO_GPU,
        "unset CUDA_VISIBLE_DEVICES to train on the GPU",
    )


def _unusable(facts: Facts, count: int, answer: Answer) -> Finding:
    about = f"{_counted(count)} there, and torch cannot use {'it' if count == 1 else 'them'}"
    if "torch" not in facts:
        return warn(
            "gpu", f"{_counted(count)} there; not tried, as torch is not to be had", machine.GPU_UNUSABLE
        )
    if "available" not in facts:
        return fails("gpu", f"{about}: torch {answer.death} as it looked for them", machine.GPU_UNUSABLE)
    if not facts.get("cuda"):
        return fails(
            "gpu",
            f"{about}: torch {facts['torch']} is built for {build(facts)}",
            machine.GPU_UNUSABLE,
            "install torch's CUDA build (pytorch.org/get-started), or set resources.gpus: 0",
        )
    # A driver runs every CUDA of its own major version, and older ones.
    driver_cuda = facts.get("driver_cuda")
    wanted = int(str(facts["cuda"]).split(".")[0])
    if driver_cuda and driver_cuda[0] < wanted:
        return fails(
            "gpu",
            f"{about}: the driver is too old: {_versions(facts)}",
            machine.DRIVER_TOO_OLD,
            f"upgrade the driver to one for CUDA {wanted}, or install a torch that was built for CUDA "
            f"{driver_cuda[0]}",
        )
    if not facts.get("libcuda"):
        return fails(
            "gpu",
            f"{about}: libcuda.so.1 is not found",
            machine.GPU_UNUSABLE,
            "install the driver's libraries; a container needs the capability 'compute' "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility)",
        )
    reason = (
        facts.get("init_error") or facts.get("management_error") or facts.get("warning") or "no reason given"
    )
    return fails("gpu", f"{about}: {reason}; {_versions(facts)}", machine.GPU_UNUSABLE)
