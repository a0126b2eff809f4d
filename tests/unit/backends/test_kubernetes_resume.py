"""Resuming a run that has ended: one write, which nobody can see half of."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.documents import changes
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.config.release import StorageRelease

RELEASE = release_config(ray={"scaling": "none"}, storage=StorageRelease(bundled=False, uri="s3://b"))


class Api:
    """One object of an API server: a merge patch that changes ``spec`` raises its generation."""

    namespace = "ns"

    def __init__(self, spec: dict[str, Any], condition: str) -> None:
        self.seen: list[dict[str, Any]] = []
        self.object: dict[str, Any] = {
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "1"},
            "spec": spec,
            "status": {
                "observedGeneration": 1,
                "conditions": [{"type": condition, "status": "True", "reason": "x"}],
            },
        }

    def get(self, resource: Any, name: str) -> dict[str, Any]:
        return copy.deepcopy(self.object)

    def patch(self, resource: Any, name: str, patch: dict[str, Any], **options: Any) -> dict[str, Any]:
        spec = self.object["spec"]
        merged = {key: value for key, value in {**spec, **patch["spec"]}.items() if value is not None}
        metadata = self.object["metadata"]
        if merged != spec:
            metadata["generation"] += 1
            self.object["spec"] = merged
        self.seen.append(merged)
        return copy.deepcopy(self.object)


@pytest.mark.parametrize(
    ("spec", "condition"), [({}, "Failed"), ({"suspend": False}, "Failed"), ({"suspend": True}, "Suspended")]
)
def test_one_patch_resumes(spec: dict[str, Any], condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(spec, condition)
    monkeypatch.setattr(KubernetesSession, "_desired", lambda self, pipeline: pipeline)
    session = KubernetesSession(cast(Any, api), RELEASE)
    for generation in (2, 3):
        after = cast(Pipeline, session.resume("p"))
        assert after.generation == generation, "the controller takes it up again"
        assert not after.suspend
        status = api.object["status"]
        status["observedGeneration"] = generation
        status["conditions"][0]["type"] = "Failed"
    assert len(api.seen) == 2
    assert not any(each.get("suspend") for each in api.seen), "at no time was it suspended"


def test_that_a_run_was_resumed_is_no_change_of_the_document() -> None:
    there = Pipeline({"metadata": {"generation": 2}, "spec": {"seed": 1, "suspend": False}})
    assert changes(there, {"metadata": {}, "spec": {"seed": 1}}) == []
