"""Pods that a stage needs: what is scarcest in a pod decides, groups in order, numbers when nothing fits."""

from __future__ import annotations

import pytest

from zhongjing.backends.kubernetes.demand import Demand, pods_needed, workers_per_pod
from zhongjing.codes.pods import NO_ROOM
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Resources
from zhongjing.pipeline.backend import ImpossibleJobError


def group(
    name: str, cpus: float, gpus: int, memory: str = "64Gi", *, most: int = 2, least: int = 0
) -> WorkerGroup:
    return WorkerGroup(
        name=name,
        workload=f"zj-ray-{name}",
        cpus=cpus,
        gpus=gpus,
        memory=memory,
        min_replicas=least,
        max_replicas=most,
    )


def demand(workers: int, cpus: float = 1.0, gpus: int = 0, memory: str | None = None) -> Demand:
    return Demand("rm", workers, Resources(cpus=cpus, gpus=gpus, memory=memory))


GPU = group("gpu", 32, 4, "256Gi")
CPU = group("cpu", 4, 0, "16Gi", most=3)


@pytest.mark.parametrize(
    ("resources", "fit"),
    [
        (Resources(cpus=8, gpus=1), 4),
        (Resources(cpus=16, gpus=1), 2),  # CPUs are scarcest
        (Resources(cpus=1, gpus=1, memory="100Gi"), 2),  # memory is
        (Resources(cpus=1), 32),
        (Resources(cpus=33, gpus=1), 0),
        (Resources(cpus=0.1), 320),  # 32 / 0.1 is a little less in binary
    ],
)
def test_what_is_scarcest_bounds_the_workers_of_a_pod(resources: Resources, fit: int) -> None:
    assert workers_per_pod(GPU, resources) == fit


def test_a_gpu_stage_takes_gpu_groups_only() -> None:
    assert pods_needed([CPU, GPU], demand(5, cpus=2, gpus=1)) == {"gpu": 2}


def test_a_cpu_stage_takes_cpu_groups_first_and_gpu_groups_for_the_rest() -> None:
    assert pods_needed([GPU, CPU], demand(2, cpus=2)) == {"cpu": 1}
    assert pods_needed([GPU, CPU], demand(12, cpus=1)) == {"cpu": 3}
    assert pods_needed([GPU, CPU], demand(13, cpus=1)) == {"cpu": 3, "gpu": 1}


def test_groups_are_filled_in_the_releases_order() -> None:
    small, large = group("small", 8, 1, most=2), group("large", 8, 8, most=2)
    assert pods_needed([small, large], demand(3, gpus=1)) == {"small": 2, "large": 1}
    assert pods_needed([large, small], demand(3, gpus=1)) == {"large": 1}


def test_a_group_that_is_switched_off_or_too_small_is_passed_over() -> None:
    off = group("off", 8, 1, most=0)
    assert pods_needed([off, GPU], demand(1, gpus=1)) == {"gpu": 1}
    tiny = group("tiny", 0.5, 1)
    assert pods_needed([tiny, GPU], demand(1, gpus=1)) == {"gpu": 1}


def refusal(groups: list[WorkerGroup], wanted: Demand) -> ImpossibleJobError:
    with pytest.raises(ImpossibleJobError) as caught:
        pods_needed(groups, wanted)
    assert caught.value.code is NO_ROOM
    return caught.value


def test_too_many_workers_say_what_would_hold_them() -> None:
    error = refusal([CPU, GPU], demand(10, cpus=8, gpus=1, memory="80Gi"))
    assert error.message == (
        "10 workers of 1 GPU, 8 CPUs, 80Gi of memory are asked for, and the release holds 6 at most "
        "(group gpu: 2 x 3)"
    )
    assert error.where == "spec.stages.rm.workers"
    assert error.remedy == (
        "raise workers.groups.gpu.maxReplicas of the chart's values to 4, "
        "or set spec.stages.rm.workers to at most 6"
    )
    # What the remedy says is enough, and not more than enough.
    assert pods_needed([GPU.model_copy(update={"max_replicas": 4})], demand(10, 8, 1, "80Gi"))
    refusal([GPU.model_copy(update={"max_replicas": 3})], demand(10, 8, 1, "80Gi"))
    assert pods_needed([CPU, GPU], demand(6, 8, 1, "80Gi")) == {"gpu": 2}


def test_groups_that_are_all_switched_off_say_so() -> None:
    error = refusal([group("gpu", 8, 1, most=0)], demand(1, gpus=1))
    assert "holds 0 at most (group gpu: 0 x 1)" in error.message
    assert error.remedy == "raise workers.groups.gpu.maxReplicas of the chart's values to 1"


def test_a_worker_larger_than_every_pod() -> None:
    error = refusal([GPU], demand(2, cpus=64, gpus=1))
    assert error.message == (
        "not one worker fits into a pod: 2 workers of 1 GPU, 64 CPUs are asked for, "
        "a pod of gpu has 4 GPUs, 32 CPUs and 256.0Gi of memory"
    )
    assert "lower spec.stages.rm.resources" in error.remedy


def test_gpus_where_there_are_none() -> None:
    error = refusal([CPU], demand(1, gpus=1))
    assert "the release has no worker group with gpus" in error.message
    assert error.where == "spec.stages.rm.resources.gpus"
    assert "set spec.stages.rm.resources.gpus: 0" in error.remedy
