"""Helm for the tests of this folder, which need no cluster: the one on PATH, else it is built once with Go.

Where neither Helm nor Go is, they are skipped with the reason; with ``ZHONGJING_REQUIRE_CLUSTER=1``, as in
CI, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest

from tests.cluster.node.build import build_program
from tests.cluster.node.place import UnavailableError, default_place


def give_up(reason: str) -> NoReturn:
    """Skips, or fails where nothing may be left out."""
    if os.environ.get("ZHONGJING_REQUIRE_CLUSTER", "") not in ("", "0"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def helm_on_path() -> None:
    """``helm`` is found by name."""
    if shutil.which("helm") is not None:
        return
    place = default_place()
    try:
        build_program(place, "helm", lambda text: None)
    except UnavailableError as error:
        give_up(f"no Helm on PATH, and {error}")
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(place.bin)])


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prometheus' checker, from its Debian package: unpacked, since installed it would start a server."""
    found = shutil.which("promtool")
    if found is not None:
        return found
    folder = tmp_path_factory.mktemp("promtool")
    for command in (["apt-get", "download", "prometheus"], ["sh", "-c", "dpkg -x prometheus_*.deb ."]):
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.CalledProcessError) as error:
            give_up(f"needs promtool, or Debian's package prometheus: {error}")
    return str(folder / "usr/bin/promtool")
