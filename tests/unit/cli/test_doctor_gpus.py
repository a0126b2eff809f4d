"""Doctor's judgement of torch and GPUs, from what the probe would send of machines that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.cli.diagnosis import torch_probe
from zhongjing.cli.diagnosis.accelerator import judge_gpus, judge_torch
from zhongjing.cli.diagnosis.children import Answer

GIB = 2**30
DONE = Answer((), 0, "")
CPU: dict[str, Any] = {
    "nodes": 0,
    "cards": 0,
    "amd": False,
    "hidden": None,
    "libcuda": False,
    "torch": "2.13.0+cu130",
    "seconds": 2.5,
    "cuda": "13.0",
    "hip": None,
    "right": True,
    "gloo": True,
    "nccl": True,
    "available": False,
    "warning": None,
    "devices": [],
}
H200 = {
    "index": 0,
    "name": "NVIDIA H200",
    "capability": "9.0",
    "free": 138 * GIB,
    "total": 139 * GIB,
    "right": True,
}
DRIVER: dict[str, Any] = {
    "nodes": 1,
    "cards": 1,
    "libcuda": True,
    "driver": "580.65.06",
    "driver_cuda": [13, 0],
    "visible": 1,
    "managed": 1,
    "sliced": 0,
}
GPU = {**CPU, **DRIVER, "available": True, "devices": [H200]}
BROKEN = {**CPU, **DRIVER}
OLD = {**BROKEN, "driver": "550.54.14", "driver_cuda": [12, 4]}


def without(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        pytest.param(CPU, ("fine", None), "resources.gpus > 0 will be refused", id="no GPU"),
        pytest.param(GPU, ("fine", None), "cuda:0 NVIDIA H200 (138 GiB free of 139 GiB)", id="good"),
        pytest.param(GPU, ("fine", None), "driver 580.65.06 (up to CUDA 13.0), torch 2.13.0", id="versions"),
        pytest.param(
            OLD,
            ("fails", "DriverTooOld"),
            "driver 550.54.14 (up to CUDA 12.4), torch 2.13.0+cu130 (CUDA 13.0)",
            id="driver too old",
        ),
        pytest.param(
            {**OLD, "available": True, "devices": [H200]},
            ("fine", None),
            "550.54.14",
            id="an old driver with the compatibility libraries",
        ),
        pytest.param(
            {**BROKEN, "torch": "2.13.0+cpu", "cuda": None},
            ("fails", "GpuUnusable"),
            "torch 2.13.0+cpu is built for CPU",
            id="torch for the CPU",
        ),
        pytest.param(
            without({**BROKEN, "libcuda": False}, "driver_cuda", "visible"),
            ("fails", "GpuUnusable"),
            "libcuda.so.1",
            id="container without the library",
        ),
        pytest.param(
            {**BROKEN, "init_error": "CUDA_ERROR_SYSTEM_NOT_READY (802)"},
            ("fails", "GpuUnusable"),
            "CUDA_ERROR_SYSTEM_NOT_READY",
            id="fabric manager is not running",
        ),
        pytest.param(
            without({**BROKEN, "management_error": "Driver/library version mismatch"}, "visible", "managed"),
            ("fails", "GpuUnusable"),
            "version mismatch",
            id="driver upgraded, not restarted",
        ),
        pytest.param(
            {**GPU, "devices": [{**H200, "right": False}]},
            ("fails", "GpuUnusable"),
            "a product of matrices is wrong",
            id="wrong results",
        ),
        pytest.param(
            {**GPU, "devices": [without({**H200, "error": "CUDA error: no kernel image"}, "right")]},
            ("fails", "GpuUnusable"),
            "no kernel image",
            id="too new or too old for torch's kernels",
        ),
        pytest.param(
            {**GPU, "managed": 2}, ("fails", "GpuUnusable"), "1 GPU more cannot be used", id="one is lost"
        ),
        pytest.param({**GPU, "managed": 8, "sliced": 8}, ("fine", None), "1 GPU usable", id="partitioned"),
        pytest.param({**GPU, "managed": 2, "hidden": "1"}, ("fine", None), "1 GPU usable", id="one hidden"),
        pytest.param(
            {**GPU, "managed": 2, "nccl": False, "devices": [H200, {**H200, "index": 1}]},
            ("fails", "GpuUnusable"),
            "without NCCL",
            id="no NCCL",
        ),
        pytest.param(
            {**GPU, "devices": [{**H200, "free": GIB}]},
            ("warn", "LittleMemory"),
            "memory of cuda:0 is in use",
            id="full",
        ),
        pytest.param(
            {**BROKEN, "hidden": "", "visible": 0}, ("warn", "NoGpu"), "CUDA_VISIBLE_DEVICES=''", id="hidden"
        ),
        pytest.param(
            without({**BROKEN, "hidden": "7", "init_error": "CUDA_ERROR_NO_DEVICE (100)"}, "visible"),
            ("warn", "NoGpu"),
            "CUDA_VISIBLE_DEVICES='7'",
            id="hidden by a number that is not there",
        ),
        pytest.param({**CPU, "hidden": "-1"}, ("fine", None), "none", id="nothing to hide"),
        pytest.param(
            {**CPU, "cards": 2}, ("warn", "GpuUnusable"), "2 GPUs of NVIDIA on the PCI bus", id="PCI"
        ),
        pytest.param({**CPU, "amd": True}, ("fails", "GpuUnusable"), "AMD GPU", id="AMD with a CUDA torch"),
    ],
)
def test_gpus(facts: dict[str, Any], expected: tuple[str, str | None], words: str) -> None:
    finding = judge_gpus(facts, DONE)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_crash_at_the_gpu_is_a_finding() -> None:
    """torch was imported, then the process died as it looked for devices."""
    facts = without(BROKEN, "available", "warning", "devices")
    finding = judge_gpus(facts, Answer((), -11, ""))
    assert told(finding) == ("fails", "GpuUnusable")
    assert "torch died of SIGSEGV" in finding.finding


def test_gpus_without_torch_are_named() -> None:
    facts = without(BROKEN, "torch", "available")
    assert told(judge_gpus(facts, DONE)) == ("warn", "GpuUnusable")


def test_torch_that_works() -> None:
    finding = judge_torch(CPU, DONE)
    assert told(finding) == ("fine", None)
    assert finding.finding == "torch 2.13.0+cu130 (CUDA 13.0), imported in 2.5 s"


@pytest.mark.parametrize(
    ("change", "words"), [({"right": False}, "a product of matrices is wrong"), ({"gloo": False}, "gloo")]
)
def test_torch_that_does_not(change: dict[str, Any], words: str) -> None:
    finding = judge_torch({**CPU, **change}, DONE)
    assert told(finding) == ("fails", "TorchUnusable")
    assert words in finding.finding


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (
            Answer((), 1, "Traceback\nModuleNotFoundError: No module named 'torch'"),
            ("fails", "MissingPackage"),
            "not installed",
        ),
        (
            Answer((), 1, "Traceback\nImportError: libcudnn.so.9: cannot open shared object file"),
            ("fails", "TorchUnusable"),
            "libcudnn.so.9",
        ),
        (Answer((), -4, ""), ("fails", "TorchUnusable"), "died of SIGILL"),
        (Answer((), None, ""), ("fails", "CheckHung"), "did not end within"),
    ],
)
def test_torch_that_cannot_be_imported(answer: Answer, expected: tuple[str, str], words: str) -> None:
    finding = judge_torch({}, answer)
    assert told(finding) == expected
    assert words in finding.finding


def test_device_files_and_cards_are_counted(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert torch_probe.device_nodes(tmp_path) == 2
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x1002", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert torch_probe.pci_cards(tmp_path) == 1
