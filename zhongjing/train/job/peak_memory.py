"""The peak memory of a stage's workers, measured beside what the plan said."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from zhongjing.config.stages import AnySettings
from zhongjing.planning.memory import Memory, plan_memory
from zhongjing.planning.shape import of_config
from zhongjing.storage.manifest import MemoryUse

_STATUS = Path("/proc/self/status")


def own_peak(device: torch.device) -> dict[str, int]:
    """This process's peak until now, in bytes.

    ``host``: the most resident memory (VmHWM of proc(5)) without the pages of files that are mapped now
    (RssFile): libraries, mostly, which no limit counts. On a GPU also ``allocated``: tensors, as a plan adds
    them up; ``reserved``: what torch's allocator held. Neither has the CUDA context.
    """
    found = {"host": _private_peak()}
    if device.type == "cuda":
        found["allocated"] = torch.cuda.max_memory_allocated(device)
        found["reserved"] = torch.cuda.max_memory_reserved(device)
    return found


def planned(base: Path, settings: AnySettings) -> Memory | None:
    """The plan of a worker by the base's config.json; None of a base of another kind."""
    try:
        shape = of_config(json.loads((base / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None  # a stage that is trained does not fail for its plan
    return plan_memory(shape, settings) if shape is not None else None


def memory_use(peaks: Sequence[dict[str, int]], plan: Memory | None) -> MemoryUse:
    """The largest peaks over the ranks, beside the plan.

    Args:
        peaks: of each rank, as :func:`own_peak` says.
        plan: of one worker.
    """
    most = {name: max(peak[name] for peak in peaks) for name in peaks[0]}
    if "allocated" not in most:
        return MemoryUse(device="cpu", plan=plan.host if plan is not None else None, peak=most["host"])
    return MemoryUse(
        device="gpu",
        plan=plan.peak if plan is not None else None,
        peak=most["allocated"],
        reserved=most["reserved"],
        host_plan=plan.host if plan is not None else None,
        host_peak=most["host"],
    )


def _private_peak() -> int:
    found = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    if "VmHWM" not in found or "RssFile" not in found:
        # Sandboxes that imitate Linux leave it out. This counts what was resident before exec(2), too.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most, mapped = (int(found[name].split()[0]) for name in ("VmHWM", "RssFile"))
    return (most - mapped) * 1024  # "kB" means KiB there
