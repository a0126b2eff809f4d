"""Where a node keeps what it may lose: downloaded models, snapshots on their way to S3."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from zhongjing.storage.manifest import StageRequest

VARIABLE = "ZHONGJING_SCRATCH"


def scratch_root() -> Path:
    """The node's scratch folder: ``ZHONGJING_SCRATCH`` (a fast local disk), else a temporary one."""
    root = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "zhongjing-scratch")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def scratch_folder(submission_id: str) -> Path:
    """The folder of one attempt, made if needed."""
    folder = scratch_root() / submission_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def remove_earlier(submission_id: str) -> None:
    """Removes what earlier attempts of the same stage left here; none of them lives any more."""
    prefix, _, number = submission_id.rpartition("-a")
    for folder in scratch_root().glob(f"{prefix}-a*"):
        other = folder.name.removeprefix(f"{prefix}-a")
        if other.isdigit() and int(other) < int(number):
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_folder(request: StageRequest) -> Path:
    """The folder of checkpoints on their way to the store, the same for all attempts of a run of a stage."""
    document = request.document
    return scratch_folder(f"{document.namespace}-{document.name}-{request.stage}-{request.key}-checkpoints")
