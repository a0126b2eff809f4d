"""Runs command lines in this process: the same ``main``, without the seconds that a start takes."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

_ENTRIES = {"zhongjing": "zhongjing.cli.app", "zhongjing.submit": "zhongjing.submit"}


@contextmanager
def kept_environment() -> Iterator[None]:
    """Opening a store sets its address and keys for the process; afterwards they are as before."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def in_process(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m module`` to its end, in ``folder`` and with nothing but ``environment``."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with kept_environment(), pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(sys, "argv", [f"{module}.py", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as left:
            importlib.import_module(_ENTRIES[module]).main()
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)
    code = left.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)
