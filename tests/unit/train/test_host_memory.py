"""What the C library and torch's pinned allocator make of a training process's host memory."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from zhongjing.train.distributed import allocate_pinned_exactly

# In a process of its own: what others of a whole suite allocate meanwhile would be counted.
FREED = """
import gc
from pathlib import Path
import numpy as np
from zhongjing.train.distributed import give_back_freed_memory

def anonymous():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon:"))

give_back_freed_memory()
raises = np.ones(30 << 20, dtype=np.uint8)
del raises
blocks = [np.ones(4 << 20, dtype=np.uint8) for _ in range(32)]
full = anonymous()
del blocks[::2]
gc.collect()
print(full - anonymous())
"""


def test_memory_between_what_is_still_used_goes_back() -> None:
    """glibc raises its threshold when 30 MiB are freed, and blocks of 4 MiB then share a heap with gaps."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_MMAP_THRESHOLD_"}
    done = subprocess.run(
        [sys.executable, "-c", FREED], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0.9 * 16 * 4, "MiB, of the blocks between the others"


def test_the_pinned_allocator_is_told_to_round_nothing_and_keeps_its_other_settings() -> None:
    before = torch._C._accelerator_getAllocatorSettings()
    torch._C._accelerator_setAllocatorSettings("pinned_use_background_threads:False")
    try:
        allocate_pinned_exactly()
        allocate_pinned_exactly()
        settings = torch._C._accelerator_getAllocatorSettings().split(",")
        assert settings == ["pinned_use_background_threads:False", "pinned_max_round_threshold_mb:1"]
        torch._C._accelerator_setAllocatorSettings("pinned_max_round_threshold_mb:64")
        allocate_pinned_exactly()
        assert torch._C._accelerator_getAllocatorSettings() == "pinned_max_round_threshold_mb:64"
    finally:
        torch._C._accelerator_setAllocatorSettings(before)
