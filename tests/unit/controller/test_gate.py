"""The controller's plan of what it would start: what cannot be read is told once, and refuses nothing;
what the release cannot hold waits for a larger one.
"""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import LLAMA_13B, user_document
from zhongjing.codes.pods import NO_ROOM
from zhongjing.codes.storage import STORAGE_UNREACHABLE
from zhongjing.config.release import WorkerGroup
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import Stage
from zhongjing.controller.gate import ReleaseGate
from zhongjing.errors import StorageUnavailableError
from zhongjing.planning.hardware import GIB, gpus_of
from zhongjing.planning.stage_plan import Terms


def test_the_base_is_read_from_the_store_where_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    document = resolve(user_document(stages=("sft",), sft={"resources": {"gpus": 1}}))
    answers = False

    def get(uri: str) -> bytes:
        assert uri == "s3://models/base/config.json"
        if not answers:
            raise StorageUnavailableError("no answer", code=STORAGE_UNREACHABLE)
        return json.dumps(LLAMA_13B).encode()

    memory = SimpleNamespace(terms=lambda settings: Terms(gpus=gpus_of(1, 24 * GIB)))
    gate = ReleaseGate([], cast(Any, memory), cast(Any, SimpleNamespace(get=get)))
    with caplog.at_level(logging.INFO):
        assert [gate.memory(document, [Stage.SFT]).unfit for _ in range(3)] == [()] * 3
    assert caplog.messages == [
        "demo: whether sft fits is not known: the sizes of the base are not known here"
    ]
    answers = True
    assert [each.stage for each in gate.memory(document, [Stage.SFT]).unfit] == [Stage.SFT]


def test_no_room_is_looked_at_again_when_the_release_changes() -> None:
    document = resolve(user_document(stages=("sft", "rm"), sft={"workers": 3}))
    cpu = WorkerGroup(
        name="cpu", workload="zj-ray-cpu", cpus=64.0, gpus=0, memory="999Gi", min_replicas=0, max_replicas=1
    )
    settings = document.spec.stages.get(Stage.SFT)
    assert settings is not None
    cpu = cpu.model_copy(update={"cpus": settings.resources.cpus, "gpus": settings.resources.gpus})
    stages = [Stage.SFT, Stage.RM]
    [small] = ReleaseGate([cpu], cast(Any, None), cast(Any, None)).capacity(document, stages)
    assert (small.stage, small.code) == (Stage.SFT, NO_ROOM)
    assert "spec.stages.sft.workers: 3 workers" in small.message
    assert "raise workers.groups.cpu.maxReplicas of the chart's values to 3" in small.remedy
    larger = cpu.model_copy(update={"max_replicas": 3})
    assert ReleaseGate([larger], cast(Any, None), cast(Any, None)).capacity(document, stages) == []
