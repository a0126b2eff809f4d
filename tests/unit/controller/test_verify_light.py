"""The pod of ``helm test`` runs the controller's image: no torch, no Ray, little memory."""

from __future__ import annotations

import subprocess
import sys


def test_the_checks_import_no_training() -> None:
    code = (
        "import sys, zhongjing.controller.verify\n"
        "print([name for name in ('torch', 'ray', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
