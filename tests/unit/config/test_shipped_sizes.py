"""What ships fits together: each stage of each shipped document finds room in the chart's default groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zhongjing.backends.kubernetes.demand import Demand, pods_needed
from zhongjing.config.quantity import to_bytes
from zhongjing.config.release import WorkerGroup
from zhongjing.config.resolve import load_document, resolve
from zhongjing.config.stages import Stage

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    path for folder in ("jobs/recipes", "examples", "k8s/examples") for path in (ROOT / folder).glob("*.yaml")
)
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "helm" / "values.yaml").read_text(encoding="utf-8"))
EPHEMERAL_BYTES = 100e9  # what many GPU nodes have


def default_groups() -> list[WorkerGroup]:
    """The groups that the chart installs with no value given, as the controller is told of them."""
    found = []
    for name, own in VALUES["workers"]["groups"].items():
        group = VALUES["workers"]["defaults"] | own
        found.append(
            WorkerGroup(
                name=name,
                workload=name,
                cpus=group["cpus"],
                gpus=group["gpus"],
                memory=group["memory"],
                min_replicas=group["minReplicas"],
                max_replicas=group["maxReplicas"],
            )
        )
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stage_of_a_shipped_document_finds_room_in_the_default_chart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZHONGJING_DATA", "/data")  # examples/published-data.yaml names it; nothing is read
    stages = resolve(load_document(path)).spec.stages
    assert stages.present()
    for stage in stages.present():
        settings = stages.get(stage)
        assert settings is not None
        needed = pods_needed(default_groups(), Demand(stage.value, settings.workers, settings.resources))
        assert needed == {"gpu": 1}, stage


def test_the_recipe_leaves_memory_of_the_pod_to_ray() -> None:
    (group,) = default_groups()
    stages = resolve(load_document(ROOT / "jobs/recipes/zhongjing-13b.yaml")).spec.stages
    store = to_bytes(VALUES["workers"]["defaults"]["objectStoreMemory"])
    for stage in Stage:
        settings = stages.get(stage)
        if settings is None:
            continue
        assert settings.resources.memory is not None
        wanted = settings.workers * to_bytes(settings.resources.memory)
        assert wanted + store + 8 * 2**30 <= to_bytes(group.memory), stage


def test_no_pod_takes_by_default_more_disk_than_nodes_have() -> None:
    """None is asked for, so that any node will do; with ``reserve`` alone one is still found."""
    head, workers = VALUES["ray"]["head"], VALUES["workers"]
    for scratch, tmp in ((head["scratch"], head["tmp"]), (workers["scratch"], workers["defaults"]["tmp"])):
        assert not scratch["reserve"]
        # A kubelet keeps a tenth and more of the disk for itself and for images.
        assert to_bytes(scratch["size"]) + to_bytes(tmp["sizeLimit"]) <= 0.87 * EPHEMERAL_BYTES
