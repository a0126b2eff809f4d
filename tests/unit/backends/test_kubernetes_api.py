"""A Kubernetes API that does not answer, or answers nonsense: the caller waits, and is told once."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.lease import Election
from zhongjing.backends.kubernetes.resources import PODS
from zhongjing.backends.local.processes import free_ports, wait_until
from zhongjing.errors import BackendUnavailableError


def test_an_api_that_is_away_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    place = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(place))
    monkeypatch.setenv("KUBECONFIG", str(file))
    api = connect("x")
    with caplog.at_level(logging.INFO):
        before = api.requests
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="does not answer"):
                api.find(PODS)
        assert caplog.messages == [], "a client's retries are nobody's news"
        election = Election(api, "zj", "me", duration=0.5)
        election.start()
        assert wait_until(lambda: api.requests - before >= 6, 10)
        election.close()
    [said] = [each for each in caplog.messages if each.startswith("lease zj: ")]
    assert "does not answer" in said
    assert caplog.messages == [said]


@pytest.mark.parametrize("body", [b"", b"<html>sign in</html>", b'{"items": [', b"\xff", b"[]", b"null"])
def test_an_answer_that_is_no_object_is_an_api_that_does_not_answer(body: bytes) -> None:
    response = SimpleNamespace(status=200, data=body)
    client = SimpleNamespace(
        configuration=SimpleNamespace(host="https://api"),
        user_agent="test",
        update_params_for_auth=lambda *given: None,
        rest_client=SimpleNamespace(request=lambda *given, **more: SimpleNamespace(response=response)),
    )
    api = KubeApi(cast(Any, client), "ns")
    with pytest.raises(BackendUnavailableError, match="does not answer"):
        api.find(PODS)
