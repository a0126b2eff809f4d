"""Repair of the embedded S3 server's volumes after the machine went down under them.

A volume is a file of objects and an index of it. Both are appended to, and what was acknowledged lies with
the operating system: nothing is lost when the server is killed. When the machine itself loses power, the ends
of both files may be missing. SeaweedFS bears that, but for one case (4.48): an index that ends in the middle
of an entry. Then it does not load the volume, and all its objects are gone from sight. The index can be made
anew.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

logger = logging.getLogger(__name__)

ENTRY_BYTES = 17  # of an index: key, five bytes of offset, size
REPAIR_SECONDS = 600.0  # it reads the volume once, a gigabyte at most


def repair_indexes(program: Path, data: Path) -> list[str]:
    """Makes cut indexes anew; returns the names of the volumes. The server must not run.

    Args:
        program: SeaweedFS.
        data: folder of the volumes.
    """
    repaired = []
    for index in sorted(data.glob("*.idx")):
        if index.stat().st_size % ENTRY_BYTES == 0:
            continue
        collection, _, number = index.stem.rpartition("_")
        command = [str(program), "fix", f"-volumeId={number}", f"-collection={collection}", str(data)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=REPAIR_SECONDS, check=False
        )
        if done.returncode != 0:
            logger.error("the index of volume %s could not be made anew: %s", index.stem, done.stderr[-500:])
            continue
        logger.warning("the index of volume %s was cut and has been made anew", index.stem)
        repaired.append(index.stem)
    return repaired
