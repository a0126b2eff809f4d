"""The pod of ``helm test`` runs the controller's image: no torch, no Ray, little memory."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.backends.test_kubernetes_explain import release
from zhongjing.backends.kubernetes.pod_diagnosis import Finding, found
from zhongjing.codes.pods import IMAGE_PULL_FAILED
from zhongjing.codes.ray import RAY_REFUSED
from zhongjing.controller.verify import Verification
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobDescription, JobState


def test_the_checks_import_no_training() -> None:
    code = (
        "import sys, zhongjing.controller.verify\n"
        "print([name for name in ('torch', 'ray', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def checked(
    monkeypatch: pytest.MonkeyPatch, *fine: str, address: str = "http://x", **options: Any
) -> tuple[bool, list[str]]:
    """Whether all is fine, and what is said, where the checks named ``fine`` are."""
    lines: list[str] = []
    check = Verification(release(), address, token="t", seconds=1.0, tell=lines.append, **options)
    for name in fine:
        monkeypatch.setattr(check, name, lambda: "")
    return check.run("false"), lines


def test_helm_test_names_the_image_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it Ray's head is not there, and "does not answer" says nothing of why."""
    image = "registry.example/zhongjing:9.9"
    missing = found(IMAGE_PULL_FAILED, "pod/zj-ray-head-0", f"the image {image} cannot be pulled: not found")
    monkeypatch.setattr("zhongjing.controller.verify.PATIENCE", 0.0)
    good, lines = checked(
        monkeypatch, "objects", "conditions", address="http://127.0.0.1:9", findings=lambda: [missing]
    )
    assert not good
    assert f"why        {missing} [ImagePullFailed]" in lines
    assert image in str(missing)
    assert f"           remedy: {IMAGE_PULL_FAILED.remedy}" in lines


def test_helm_test_looks_for_no_cause_where_all_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> list[Finding]:
        raise AssertionError

    good, lines = checked(monkeypatch, "ray", "objects", "conditions", findings=asked)
    assert good
    assert not [line for line in lines if line.startswith("why")]


class Forgetful:
    """A Ray whose head is started again while the job runs."""

    address = "http://x"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def query(self, path: str) -> dict[str, object]:
        nodes = [{"state": "ALIVE", "resources_total": {"CPU": 2, "GPU": 1}}]
        return {"data": {"result": {"result": nodes}}}

    def start(self, name: str, arguments: list[str], metadata: dict[str, str]) -> None:
        self.calls.append("start")

    def describe(self, name: str) -> JobDescription:
        return JobDescription(submission_id=name, state=JobState.UNKNOWN)

    def read_log(self, name: str) -> list[str]:
        raise BackendError("Ray answers 404", code=RAY_REFUSED)

    def stop(self, name: str) -> None:
        self.calls.append("stop")


def test_helm_test_says_that_ray_has_forgotten_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhongjing.controller.verify.POLL_SECONDS", 0.0)
    check = Verification(release(), "http://x", token="t", seconds=60.0, tell=print)
    ray = Forgetful()
    monkeypatch.setattr(check, "_jobs", ray)
    with pytest.raises(BackendError, match="is not known to Ray any more") as caught:
        check.step(True)
    assert "the head was started again" in caught.value.remedy
    assert ray.calls == ["start"]


@pytest.mark.parametrize("enforced", [True, False])
def test_helm_test_is_a_probe_of_the_network_policies(
    enforced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod of the test may reach the dashboard, and not the GCS: only an enforced policy closes that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = ("127.0.0.1", server.getsockname()[1])
        if enforced:
            server.close()
        good, lines = checked(monkeypatch, "ray", "objects", "conditions", closed=place)
    assert good
    (said,) = [line for line in lines if "network policy" in line]
    assert said.startswith("fine " if enforced else "not tried ")
