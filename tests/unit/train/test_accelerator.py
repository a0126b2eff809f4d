"""Why a worker that was promised a GPU cannot use one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zhongjing.codes import Code, local, machine
from zhongjing.errors import TrainingError
from zhongjing.train.job.accelerator import CudaFacts, no_cuda, use_gpu
from zhongjing.train.job.failures import describe_failure

GOOD = CudaFacts(
    torch="2.11.0+cu130", built_for="13.0", driver=(13, 1), hidden=None, available=True, warning=""
)


def test_a_usable_gpu_is_no_trouble() -> None:
    assert no_cuda(GOOD) is None


@pytest.mark.parametrize(
    ("facts", "code", "remedy"),
    [
        (replace(GOOD, built_for=None, available=False), machine.GPU_UNUSABLE, "CUDA index"),
        (replace(GOOD, driver=(12, 8), available=False), machine.DRIVER_TOO_OLD, "for CUDA 13"),
        # torch's own check may pass where kernels will not.
        (replace(GOOD, driver=(12, 8)), machine.DRIVER_TOO_OLD, "torch for CUDA 12"),
        (replace(GOOD, driver=None, available=False), local.NO_GPU, "nvidia.com/gpu"),
        (replace(GOOD, hidden="", available=False), local.NO_GPU, "resources.gpus: 0"),
    ],
)
def test_every_trouble_has_its_code_and_is_not_tried_again(facts: CudaFacts, code: Code, remedy: str) -> None:
    trouble = no_cuda(facts)
    assert trouble is not None
    assert trouble.code is code
    assert remedy in trouble.remedy
    assert not describe_failure(trouble).retriable


def test_the_reason_is_told() -> None:
    trouble = no_cuda(replace(GOOD, available=False, warning="CUDA initialization: unknown error\nmore"))
    assert trouble is not None
    assert "unknown error" in trouble.message
    assert "more" not in trouble.message


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(TrainingError) as caught:
        use_gpu(torch.device("cuda:99"))
    assert caught.value.code is machine.GPU_UNUSABLE
    assert caught.value.where == "cuda:99"
