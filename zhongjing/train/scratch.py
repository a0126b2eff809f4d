"""Where a node keeps what it may lose: downloaded models, snapshots on their way to S3."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
