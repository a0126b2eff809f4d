"""A controller that is newer than the cluster's definition still writes what the definition knows."""

from __future__ import annotations

import logging
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES, Request
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.controller.records import KubernetesRecords
from zhongjing.pipeline.actions import Conclude, apply
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.layout import Layout

METADATA = {"name": "p", "namespace": "ns", "uid": "12345678-0", "resourceVersion": "1", "generation": 1}


class OlderApi(KubeApi):
    """An API server whose definition does not know ``status.release``: that field does not come back."""

    def __init__(self) -> None:
        self.namespace = "ns"
        self.asked: list[Request] = []

    def _json(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        body = deepcopy(cast(dict[str, Any], request.body))
        body["metadata"]["resourceVersion"] = str(1 + len(self.asked))
        if request.subresource == "status":
            body["status"].pop("release", None)
        return body


def test_a_status_is_written_by_a_controller_that_is_newer_than_the_definition(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = OlderApi()
    services = SimpleNamespace(
        pipelines=Pipelines(api), release="zj", may_act=lambda: True, on_change=lambda *changed: None
    )
    pipeline = Pipeline({"metadata": METADATA, "spec": {}})
    records = KubernetesRecords(cast(Any, services), Layout("s3://b", "ns", "p"), pipeline)
    action = Conclude(ConditionType.PROGRESSING, "Queued", "waits", None)
    with caplog.at_level(logging.WARNING):
        after = apply(records.read(), [action], 1.8e9)
        records.write_status(after, records.pipeline.version)
        (written,) = api.asked
        assert written.query["fieldValidation"] == "Warn"
        assert records.pipeline.condition() is not None
        # What was left out is no reason to write the same again in every pass.
        records.write_status(after, records.pipeline.version)
        records.tell()
        assert len(api.asked) == 1
        # Only a version of another writer is compared as it is.
        records.use(Pipeline(records.pipeline.raw | {"metadata": METADATA | {"resourceVersion": "9"}}))
        records.write_status(after, "9")
    assert len(api.asked) == 2
    (told,) = [each.getMessage() for each in caplog.records if "older than the controller" in each.message]
    assert "status.release" in told


def test_everything_but_a_status_is_still_checked_strictly() -> None:
    api = OlderApi()
    api.replace(PIPELINES, {"metadata": dict(METADATA)})
    api.create(PIPELINES, {"metadata": dict(METADATA)})
    api.patch(PIPELINES, "p", {"metadata": {}})
    assert {each.query["fieldValidation"] for each in api.asked} == {"Strict"}
