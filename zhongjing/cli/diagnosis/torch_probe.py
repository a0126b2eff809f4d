"""Run as a child by :mod:`zhongjing.cli.diagnosis.accelerator`: the GPU driver, then torch, step by step.

Each step sends what it found, so that a crash of the next one loses nothing. The driver is asked through its
own libraries before torch is imported: their answers tell a machine without GPUs from one with a problem.
"""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from pathlib import Path
from typing import Any

from zhongjing.cli.diagnosis.children import end_with_parent, tell

NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # PCI classes of graphics and compute cards
_SIZE = 256


def main() -> None:
    """Sends what is found."""
    end_with_parent()
    tell(nodes=device_nodes(), cards=pci_cards(), amd=Path("/dev/kfd").exists())
    tell(hidden=os.environ.get("CUDA_VISIBLE_DEVICES"))
    tell(**_driver())
    tell(**_management())
    tell(**_import())
    tell(**_devices())


def device_nodes(folder: Path = Path("/dev")) -> int:
    """How many device files of NVIDIA's GPUs there are."""
    return len([file for file in folder.glob("nvidia[0-9]*") if file.name[6:].isdigit()])


def pci_cards(folder: Path = Path("/sys/bus/pci/devices")) -> int:
    """How many of NVIDIA's GPUs are on the PCI bus; in a container these are the host's."""
    count = 0
    for device in folder.glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == NVIDIA and kind.startswith(_DISPLAY)
    return count


def _driver() -> dict[str, Any]:
    """What libcuda says: the newest CUDA that the driver knows, and whether it starts."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"libcuda": False}
    number = ctypes.c_int()
    found: dict[str, Any] = {"libcuda": True}
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["driver_cuda"] = [number.value // 1000, number.value % 1000 // 10]
    status = library.cuInit(0)
    if status != 0:
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        name = text.value.decode() if text.value else "error"
        return {**found, "init_error": f"{name} ({status})"}
    if library.cuDeviceGetCount(ctypes.byref(number)) == 0:
        found["visible"] = number.value
    return found


def _management() -> dict[str, Any]:
    """What NVML (the library of nvidia-smi) says: driver and number of GPUs, hidden ones included."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    status = library.nvmlInit_v2()
    if status != 0:
        library.nvmlErrorString.restype = ctypes.c_char_p
        return {"management_error": (library.nvmlErrorString(status) or b"").decode()}
    found: dict[str, Any] = {}
    text = ctypes.create_string_buffer(96)
    if library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0:
        found["driver"] = text.value.decode()
    number = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(number)) == 0:
        found["managed"] = number.value
        found["sliced"] = sum(_is_sliced(library, index) for index in range(number.value))
    library.nvmlShutdown()
    return found


def _is_sliced(library: ctypes.CDLL, index: int) -> bool:
    """Whether a GPU is partitioned (MIG): then CUDA shows one of its slices in its place, or none."""
    handle, mode, pending = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return False
    status = library.nvmlDeviceGetMigMode(handle, ctypes.byref(mode), ctypes.byref(pending))
    return bool(status == 0 and mode.value == 1)


def _import() -> dict[str, Any]:
    began = time.monotonic()
    import torch

    seconds = time.monotonic() - began
    left = torch.arange(_SIZE * _SIZE, dtype=torch.float32).reshape(_SIZE, _SIZE) % 7
    right = left @ torch.eye(_SIZE)
    distributed = torch.distributed.is_available()
    return {
        "torch": torch.__version__,
        "seconds": seconds,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "right": bool(torch.equal(left, right)),
        "gloo": distributed and torch.distributed.is_gloo_available(),
        "nccl": distributed and torch.distributed.is_nccl_available(),
    }


def _devices() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        count = torch.cuda.device_count() if available else 0
    said = " ".join(str(each.message) for each in caught).strip()
    return {
        "available": available,
        "warning": said or None,
        "devices": [_device(index) for index in range(count)],
    }


def _device(index: int) -> dict[str, Any]:
    """One GPU: its memory, and whether a product of matrices on it is right."""
    import torch

    found: dict[str, Any] = {"index": index}
    try:
        properties = torch.cuda.get_device_properties(index)
        found |= {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        free, total = torch.cuda.mem_get_info(index)
        found |= {"free": free, "total": total}
        left = (torch.arange(_SIZE * _SIZE, device=f"cuda:{index}") % 7).float().reshape(_SIZE, _SIZE)
        found["right"] = bool(torch.equal(left, left @ torch.eye(_SIZE, device=left.device)))
    except (RuntimeError, AssertionError) as error:
        found["error"] = str(error).strip().splitlines()[0]
    return found


if __name__ == "__main__":
    main()
