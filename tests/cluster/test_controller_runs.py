"""The controller takes real TrainingPipelines through their stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.controller_support import Place, place, ray_and_store
from tests.local_support import ALL
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.embedded import EmbeddedS3

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, EmbeddedS3]]:
    with ray_and_store(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture
def here(services: tuple[RayHead, EmbeddedS3], tmp_path: Path) -> Iterator[Place]:
    with place(*services, tmp_path) as made:
        yield made


def test_a_pipeline_runs_to_complete(here: Place) -> None:
    here.start()
    here.apply(here.document("whole"))
    done = here.wait("whole", lambda each: each.holds(ConditionType.COMPLETE), 90)
    assert [here.starts("whole", stage) for stage in ALL] == [["a1"]] * 4
    assert done.status["state"] == "Complete"
