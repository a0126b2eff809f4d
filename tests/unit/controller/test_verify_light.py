"""The pod of ``helm test`` runs the controller's image: no torch, no Ray, little memory."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.unit.backends.test_kubernetes_explain import release
from zhongjing.backends.kubernetes.pod_diagnosis import Finding, found
from zhongjing.codes.pods import IMAGE_PULL_FAILED
from zhongjing.controller.verify import Verification


def test_the_checks_import_no_training() -> None:
    code = (
        "import sys, zhongjing.controller.verify\n"
        "print([name for name in ('torch', 'ray', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_helm_test_names_the_image_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it Ray's head is not there, and "does not answer" says nothing of why."""
    image = "registry.example/zhongjing:9.9"
    missing = found(IMAGE_PULL_FAILED, "pod/zj-ray-head-0", f"the image {image} cannot be pulled: not found")
    lines: list[str] = []
    monkeypatch.setattr("zhongjing.controller.verify.PATIENCE", 0.0)
    check = Verification(
        release(),
        "http://127.0.0.1:9",
        token="t",
        seconds=1.0,
        tell=lines.append,
        findings=lambda: [missing],
    )
    for name in ("objects", "conditions"):
        monkeypatch.setattr(check, name, lambda: "")

    assert not check.run("false")
    assert f"why        {missing} [ImagePullFailed]" in lines
    assert image in str(missing)
    assert f"           remedy: {IMAGE_PULL_FAILED.remedy}" in lines


def test_helm_test_looks_for_no_cause_where_all_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def asked() -> list[Finding]:
        raise AssertionError

    check = Verification(release(), "http://x", token="t", seconds=1.0, tell=lines.append, findings=asked)
    for name in ("ray", "objects", "conditions"):
        monkeypatch.setattr(check, name, lambda: "")

    assert check.run("false")
    assert not [line for line in lines if line.startswith("why")]


@pytest.mark.parametrize("enforced", [True, False])
def test_helm_test_is_a_probe_of_the_network_policies(
    enforced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod of the test may reach the dashboard, and not the GCS: only an enforced policy closes that."""
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = ("127.0.0.1", server.getsockname()[1])
        if enforced:
            server.close()
        check = Verification(release(), "http://x", token="t", seconds=1.0, tell=lines.append, closed=place)
        for name in ("ray", "objects", "conditions"):
            monkeypatch.setattr(check, name, lambda: "")

        assert check.run("false")
    (said,) = [line for line in lines if "network policy" in line]
    assert said.startswith("fine " if enforced else "not tried ")
