"""Doctor's judgement of torch and GPUs, from what torch and the driver say of machines that are not here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.cli.diagnosis import accelerator
from zhongjing.cli.diagnosis.accelerator import Device, Hardware, device_files, judge_gpus, pci_cards
from zhongjing.cli.diagnosis.checks import Situation
from zhongjing.cli.diagnosis.finding import Finding, fails
from zhongjing.codes.command import MISSING_PACKAGE
from zhongjing.codes.machine import GPU_UNUSABLE
from zhongjing.errors import TrainingError
from zhongjing.train.job.accelerator import CudaFacts

GIB = 2**30
CPU = CudaFacts("2.13.0+cu130", built_for="13.0", driver=None, hidden=None, available=False, warning="")
GPU = replace(CPU, driver=(13, 0), available=True)
BROKEN = replace(GPU, available=False)
OLD = replace(BROKEN, driver=(12, 4))
H200 = Device("NVIDIA H200", free=138 * GIB, total=139 * GIB)
NONE = Hardware()
ONE = Hardware(driver=1, files=1, cards=1)
MIG = replace(H200, name="NVIDIA H200 MIG 1g.18gb")
FAILED = ("fails", "GpuUnusable")


def judged(facts: CudaFacts, there: Hardware, *devices: Device, nccl: bool = True) -> Finding:
    built = f"CUDA {facts.built_for}" if facts.built_for else "CPU"
    return judge_gpus(facts, devices or ((H200,) if facts.available else ()), there, built=built, nccl=nccl)


def broken(message: str) -> Device:
    return Device("cuda:0 NVIDIA H200", error=TrainingError(message, code=GPU_UNUSABLE))


@pytest.mark.parametrize(
    ("finding", "expected", "words"),
    [
        pytest.param(judged(CPU, NONE), ("fine", None), "resources.gpus > 0 will be refused", id="no GPU"),
        pytest.param(judged(GPU, ONE), ("fine", None), "cuda:0 NVIDIA H200 (138 GiB free", id="good"),
        pytest.param(judged(GPU, ONE), ("fine", None), "driver for CUDA 13.0, torch 2.13.0", id="versions"),
        pytest.param(
            judged(OLD, ONE),
            ("fails", "DriverTooOld"),
            "driver for CUDA 12.4, torch 2.13.0+cu130 (CUDA 13.0)",
            id="driver too old",
        ),
        pytest.param(
            judged(replace(OLD, available=True), ONE),
            ("fine", None),
            "CUDA 12.4",
            id="an old driver with the compatibility libraries",
        ),
        pytest.param(
            judged(replace(BROKEN, torch="2.13.0+cpu", built_for=None), ONE),
            FAILED,
            "torch 2.13.0+cpu (CPU)",
            id="torch for the CPU",
        ),
        pytest.param(
            judged(CPU, replace(ONE, driver=None)), FAILED, "libcuda.so.1", id="container without the library"
        ),
        pytest.param(
            judged(replace(BROKEN, warning="Error 802: system not yet initialized"), ONE),
            FAILED,
            "Error 802",
            id="fabric manager is not running",
        ),
        pytest.param(
            judged(
                replace(BROKEN, warning="Error 804: forward compatibility was attempted"),
                replace(ONE, driver=None),
            ),
            FAILED,
            "Error 804",
            id="driver upgraded, not restarted",
        ),
        pytest.param(
            judged(GPU, ONE, broken("the GPU computes wrongly")),
            FAILED,
            "computes wrongly",
            id="wrong results",
        ),
        pytest.param(
            judged(GPU, ONE, broken("the GPU cannot be used: no kernel image")),
            FAILED,
            "cuda:0 NVIDIA H200: the GPU cannot be used: no kernel image",
            id="too new or too old for torch's kernels",
        ),
        pytest.param(judged(GPU, replace(ONE, driver=2)), FAILED, "1 GPU more cannot be used", id="lost"),
        pytest.param(judged(GPU, replace(ONE, driver=8), MIG), ("fine", None), "1 GPU usable", id="slice"),
        pytest.param(
            judged(replace(GPU, hidden="1"), replace(ONE, driver=2)),
            ("fine", None),
            "1 GPU usable",
            id="one hidden",
        ),
        pytest.param(
            judged(GPU, replace(ONE, driver=2), H200, H200, nccl=False), FAILED, "without NCCL", id="no NCCL"
        ),
        pytest.param(
            judged(GPU, ONE, replace(H200, free=GIB)),
            ("warn", "LittleMemory"),
            "memory of cuda:0 is in use",
            id="full",
        ),
        pytest.param(
            judged(replace(BROKEN, hidden=""), replace(ONE, driver=0)),
            ("warn", "NoGpu"),
            "CUDA_VISIBLE_DEVICES=''",
            id="hidden",
        ),
        pytest.param(
            judged(replace(BROKEN, hidden="7"), ONE),
            ("warn", "NoGpu"),
            "CUDA_VISIBLE_DEVICES='7'",
            id="hidden by a number that is not there",
        ),
        pytest.param(judged(replace(CPU, hidden="-1"), NONE), ("fine", None), "none", id="nothing to hide"),
        pytest.param(
            judged(CPU, Hardware(cards=2)), ("warn", "GpuUnusable"), "2 GPUs of NVIDIA on the PCI", id="PCI"
        ),
        pytest.param(judged(CPU, Hardware(amd=True)), FAILED, "AMD GPU", id="AMD with a CUDA torch"),
    ],
)
def test_gpus(finding: Finding, expected: tuple[str, str | None], words: str) -> None:
    assert told(finding) == expected
    assert words in finding.finding


def test_this_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("zhongjing.train.job.accelerator.cuda_facts", lambda: CPU)
    found, gpu = accelerator.probe()
    assert told(found) == ("fine", None)
    assert f"torch {torch.__version__}" in found.finding
    assert gpu.name == "gpu"
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    assert "gloo" in next(accelerator.probe()).finding
    monkeypatch.setattr("torch.equal", lambda *_: False)
    finding = next(accelerator.probe())
    assert told(finding) == ("fails", "TorchUnusable")
    assert "a product of matrices is wrong" in finding.finding


def test_each_device_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(device: Any) -> None:
        if device.index:
            raise TrainingError("the GPU cannot be used", code=GPU_UNUSABLE, where=f"{device} NVIDIA H200")

    monkeypatch.setattr("zhongjing.train.job.accelerator.cuda_facts", lambda: GPU)
    monkeypatch.setattr("zhongjing.train.job.accelerator.use_gpu", use)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (138 * GIB, 139 * GIB))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    *_, finding = accelerator.probe()
    assert told(finding) == FAILED
    assert finding.finding.startswith("cuda:1 NVIDIA H200: the GPU cannot be used")


@pytest.mark.parametrize("missing", ["torch", "numpy"])
def test_torch_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    if missing == "torch":
        [finding] = accelerator.probe()
        assert told(finding) == ("fails", "MissingPackage")
    else:
        with pytest.raises(ModuleNotFoundError):
            list(accelerator.probe())


@pytest.mark.parametrize(("files", "names"), [(0, ["torch"]), (2, ["torch", "gpu"])])
def test_gpus_without_torch_are_named(monkeypatch: pytest.MonkeyPatch, files: int, names: list[str]) -> None:
    missing = fails("torch", "not installed", MISSING_PACKAGE)
    monkeypatch.setattr(accelerator, "device_files", lambda: files)
    probes = SimpleNamespace(run=lambda *_, **__: [missing])
    found = accelerator.torch(cast("Situation", SimpleNamespace(probes=probes, environment={})))
    assert [each.name for each in found] == names
    if files:
        assert told(found[-1]) == ("warn", "GpuUnusable")
        assert "2 GPUs there" in found[-1].finding


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
