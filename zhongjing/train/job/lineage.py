"""With what a result was made: versions, commit, host. Stands in the manifest, never in a key."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import zhongjing
from zhongjing.storage.manifest import Lineage

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "ray",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "obstore",
    "boto3",
    "pydantic",
)


def lineage(workers: int, device: str) -> Lineage:
    """Lineage of this process; ``device`` is what the workers trained on."""
    return Lineage(
        code_version=zhongjing.__version__,
        commit=_commit(),
        image=os.environ.get("ZHONGJING_IMAGE"),
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        host=socket.gethostname(),
        platform=platform.platform(),
        workers=workers,
        device=device,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a checkout; an image brings it as ZHONGJING_COMMIT."""
    if known := os.environ.get("ZHONGJING_COMMIT"):
        return known
    root = Path(zhongjing.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
