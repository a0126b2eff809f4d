"""Answers of the Kubernetes API that are none: what asks waits, and takes nothing for a defect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PODS
from zhongjing.errors import BackendUnavailableError


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
