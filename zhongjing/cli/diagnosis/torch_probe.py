"""Run as a child by :mod:`zhongjing.cli.diagnosis.accelerator`: imports torch and tries each GPU.

Each step sends what it found, so that a crash of the next one loses nothing.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from zhongjing.cli.diagnosis.children import end_with_parent, tell

_SIZE = 256


def main() -> None:
    """Sends what is found."""
    end_with_parent()
    tell(**_import())
    tell(**_devices())


def _import() -> dict[str, Any]:
    began = time.monotonic()
    import torch

    seconds = time.monotonic() - began
    left = torch.arange(_SIZE * _SIZE, dtype=torch.float32).reshape(_SIZE, _SIZE) % 7
    distributed = torch.distributed.is_available()
    return {
        "torch": torch.__version__,
        "seconds": seconds,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        # The newest CUDA that the driver serves, e.g. 12040; 0 without a driver. A CPU build cannot ask.
        "driver": getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)(),
        "right": bool(torch.equal(left, left @ torch.eye(_SIZE))),
        "gloo": distributed and torch.distributed.is_gloo_available(),
        "nccl": distributed and torch.distributed.is_nccl_available(),
    }


def _devices() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        count = torch.cuda.device_count() if available else 0
    # Why CUDA did not start, torch says in a warning.
    said = " ".join(str(each.message) for each in caught).split("(Triggered internally")[0]
    devices = [_device(index) for index in range(count)]
    return {"available": available, "warning": " ".join(said.split()), "devices": devices}


def _device(index: int) -> dict[str, Any]:
    """One GPU: its memory, and whether a product of matrices on it is right."""
    import torch

    found: dict[str, Any] = {"index": index}
    try:
        found["name"] = torch.cuda.get_device_name(index)
        found["free"], found["total"] = torch.cuda.mem_get_info(index)
        left = (torch.arange(_SIZE * _SIZE, device=f"cuda:{index}") % 7).float().reshape(_SIZE, _SIZE)
        if not torch.equal(left, left @ torch.eye(_SIZE, device=left.device)):
            found["error"] = "a product of matrices is wrong"
    except (RuntimeError, AssertionError) as error:
        found["error"] = str(error).strip().splitlines()[0]
    return found


if __name__ == "__main__":
    main()
