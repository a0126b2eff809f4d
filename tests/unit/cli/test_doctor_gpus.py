"""Doctor's judgement of torch and GPUs, from what the probe would send of machines that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.cli.diagnosis.accelerator import Hardware, device_files, judge_gpus, judge_torch, pci_cards
from zhongjing.cli.diagnosis.children import Answer

GIB = 2**30
DONE = Answer((), 0, "")
CPU: dict[str, Any] = {
    "torch": "2.13.0+cu130",
    "seconds": 2.5,
    "cuda": "13.0",
    "hip": None,
    "driver": 0,
    "right": True,
    "gloo": True,
    "nccl": True,
    "available": False,
    "warning": "",
    "devices": [],
}
H200 = {"index": 0, "name": "NVIDIA H200", "free": 138 * GIB, "total": 139 * GIB}
GPU = {**CPU, "driver": 13000, "available": True, "devices": [H200]}
BROKEN = {**CPU, "driver": 13000}
OLD = {**BROKEN, "driver": 12040}
NONE = Hardware()
ONE = Hardware(driver=1, files=1, cards=1)


def without(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


MIG = {**H200, "name": "NVIDIA H200 MIG 1g.18gb"}
FAILED = ("fails", "GpuUnusable")


@pytest.mark.parametrize(
    ("facts", "there", "expected", "words"),
    [
        pytest.param(CPU, NONE, ("fine", None), "resources.gpus > 0 will be refused", id="no GPU"),
        pytest.param(GPU, ONE, ("fine", None), "cuda:0 NVIDIA H200 (138 GiB free of 139 GiB)", id="good"),
        pytest.param(GPU, ONE, ("fine", None), "driver for CUDA 13.0, torch 2.13.0", id="versions"),
        pytest.param(
            OLD,
            ONE,
            ("fails", "DriverTooOld"),
            "driver for CUDA 12.4, torch 2.13.0+cu130 (CUDA 13.0)",
            id="driver too old",
        ),
        pytest.param(
            {**OLD, "available": True, "devices": [H200]},
            ONE,
            ("fine", None),
            "CUDA 12.4",
            id="an old driver with the compatibility libraries",
        ),
        pytest.param(
            {**BROKEN, "torch": "2.13.0+cpu", "cuda": None},
            ONE,
            FAILED,
            "torch 2.13.0+cpu is built for CPU",
            id="torch for the CPU",
        ),
        pytest.param(
            CPU, replace(ONE, driver=None), FAILED, "libcuda.so.1", id="container without the library"
        ),
        pytest.param(
            {**BROKEN, "warning": "CUDA initialization: Error 802: system not yet initialized"},
            ONE,
            FAILED,
            "Error 802",
            id="fabric manager is not running",
        ),
        pytest.param(
            {**BROKEN, "warning": "Error 804: forward compatibility was attempted"},
            replace(ONE, driver=None),
            FAILED,
            "Error 804",
            id="driver upgraded, not restarted",
        ),
        pytest.param(
            {**GPU, "devices": [{**H200, "error": "a product of matrices is wrong"}]},
            ONE,
            FAILED,
            "a product of matrices is wrong",
            id="wrong results",
        ),
        pytest.param(
            {**GPU, "devices": [{"index": 0, "error": "CUDA error: no kernel image"}]},
            ONE,
            FAILED,
            "no kernel image",
            id="too new or too old for torch's kernels",
        ),
        pytest.param(GPU, replace(ONE, driver=2), FAILED, "1 GPU more cannot be used", id="one is lost"),
        pytest.param(
            {**GPU, "devices": [MIG]},
            replace(ONE, driver=8),
            ("fine", None),
            "1 GPU usable",
            id="partitioned",
        ),
        pytest.param(
            GPU, replace(ONE, driver=2, hidden="1"), ("fine", None), "1 GPU usable", id="one hidden"
        ),
        pytest.param(
            {**GPU, "nccl": False, "devices": [H200, {**H200, "index": 1}]},
            replace(ONE, driver=2),
            FAILED,
            "without NCCL",
            id="no NCCL",
        ),
        pytest.param(
            {**GPU, "devices": [{**H200, "free": GIB}]},
            ONE,
            ("warn", "LittleMemory"),
            "memory of cuda:0 is in use",
            id="full",
        ),
        pytest.param(
            BROKEN,
            replace(ONE, driver=0, hidden=""),
            ("warn", "NoGpu"),
            "CUDA_VISIBLE_DEVICES=''",
            id="hidden",
        ),
        pytest.param(
            BROKEN,
            replace(ONE, hidden="7"),
            ("warn", "NoGpu"),
            "CUDA_VISIBLE_DEVICES='7'",
            id="hidden by a number that is not there",
        ),
        pytest.param(CPU, Hardware(hidden="-1"), ("fine", None), "none", id="nothing to hide"),
        pytest.param(
            CPU, Hardware(cards=2), ("warn", "GpuUnusable"), "2 GPUs of NVIDIA on the PCI", id="PCI"
        ),
        pytest.param(CPU, Hardware(amd=True), FAILED, "AMD GPU", id="AMD with a CUDA torch"),
    ],
)
def test_gpus(facts: dict[str, Any], there: Hardware, expected: tuple[str, str | None], words: str) -> None:
    finding = judge_gpus(facts, DONE, there)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_crash_at_the_gpu_is_a_finding() -> None:
    """torch was imported, then the process died as it looked for devices."""
    facts = without(BROKEN, "available", "warning", "devices")
    finding = judge_gpus(facts, Answer((), -11, ""), ONE)
    assert told(finding) == ("fails", "GpuUnusable")
    assert "torch died of SIGSEGV" in finding.finding


def test_gpus_without_torch_are_named() -> None:
    facts = without(BROKEN, "torch", "available")
    assert told(judge_gpus(facts, DONE, ONE)) == ("warn", "GpuUnusable")


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
    assert device_files(tmp_path) == 2
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x1002", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert pci_cards(tmp_path) == 1
