"""Versions, platform and settings of the environment: with what a run was made."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from zhongjing.cli.reporting.secrets import is_secret_name

# Settings that change what happens. Of all other variables not even the names are packed.
_SHOWN = (
    *("OMP_", "MKL_", "CUDA_", "NVIDIA_VISIBLE", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TOKENIZERS_"),
    *("RAY_", "ZHONGJING_", "HF_", "TRANSFORMERS_", "KUBERNETES_SERVICE_HOST", "KUBECONFIG"),
    *("AWS_", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "TMPDIR", "VIRTUAL_ENV"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def versions() -> dict[str, Any]:
    """This program, Python, the machine and every installed package."""
    from zhongjing.train.job.lineage import lineage

    made = lineage(workers=0, device="")
    return {
        "zhongjing": made.code_version,
        "commit": made.commit,
        "image": made.image,
        "python": sys.version,
        "executable": sys.executable,
        "platform": made.platform,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "coresUsable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "packages": dict(sorted(_packages())),
    }


def _memory() -> dict[str, int] | None:
    try:
        import psutil
    except ModuleNotFoundError:
        return None  # part of zhongjing[train]: who only submits to clusters has it not
    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available, "swap": psutil.swap_memory().total}


def findings(workdir: Path) -> dict[str, Any]:
    """What ``zhongjing doctor --local`` finds: some 5 seconds."""
    from zhongjing.cli.diagnosis.children import Children
    from zhongjing.cli.diagnosis.runner import run_checks
    from zhongjing.cli.diagnosis.situation import Situation
    from zhongjing.cli.diagnosis.table import checks
    from zhongjing.cli.doctor import as_object

    began = time.monotonic()
    with Children() as children:
        situation = Situation(local=True, workdir=workdir.absolute(), children=children)
        found = list(run_checks(checks(situation), situation))
    return as_object(found, time.monotonic() - began)


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change what happens, with their values; of secrets only that they are set."""
    shown: dict[str, str] = {}
    for name, value in sorted(environment.items()):
        if name.upper() in _PROXIES:
            shown[name] = "<set>" if "proxy" in name.lower() and not name.lower().startswith("no_") else value
        elif name.startswith(_SHOWN):
            shown[name] = "<set>" if is_secret_name(name) else value
    return shown


def _packages() -> list[tuple[str, str]]:
    found = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    return [(str(name), str(version)) for name, version in found if name]
