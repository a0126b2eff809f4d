"""Worker pods, as the chart describes them, against the nodes and quotas of the cluster.

A node counts by what it has (``allocatable``), not by what is free now: whether a pod finds room at this
moment its own status says. Labels and taints count, affinities do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.demand import Demand, pods_needed
from zhongjing.backends.kubernetes.provision import worker_pods
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, NODE_POOLS, NODES, PODS, QUOTAS, Object
from zhongjing.backends.kubernetes.workloads import WORKER, pod_labels
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, graded, of_error, warn
from zhongjing.codes import pods as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendError, ZhongjingError

DISK = "ephemeral-storage"
_BYTES = ("memory", DISK)

Part = Callable[..., list[Finding]]
Plans = Mapping[str, Mapping[str, int]]
"""Pods of each worker group that something takes."""
Amounts = dict[str, Decimal]
"""By resource, e.g. ``nvidia.com/gpu``; in quotas also ``limits.memory``, ``pods`` and others."""


def check_capacity(
    api: KubeApi, release: ReleaseConfig, document: TrainingPipeline | None, part: Part
) -> Iterator[Finding]:
    """Whether the cluster can hold worker pods: one of each group, or those of a document's stages."""
    plans = {f"one pod of {group.name}": {group.name: 1} for group in release.ray.groups}
    if document is not None:
        plans = {}
        for stage in document.spec.stages.trained():
            settings = document.spec.stages[stage]
            demand = Demand(stage.value, settings.workers, settings.resources)
            try:
                plans[f"stage {stage}"] = pods_needed(release.ray.groups, demand)
            except ZhongjingError as error:  # the release can never hold its workers
                yield of_error(f"stage {stage}", error)
    pods: dict[str, Object] = {}

    def read_groups() -> Iterator[Finding]:
        pods.update(worker_pods(api, release))
        missing = ", ".join(group.name for group in release.ray.groups if group.name not in pods)
        if missing:
            remedy = "upgrade the release: the chart makes a ConfigMap for each group"
            said = f"nothing describes the pods of {missing}"
            yield fails("worker groups", said, codes.WORKLOAD_MISSING, remedy)

    yield from part("worker groups", read_groups)
    if pods:
        yield from part("nodes", check_nodes, api, pods, plans)
        yield from part("quotas", check_quotas, api, release, pods, plans)


# Nodes


def check_nodes(api: KubeApi, pods: Mapping[str, Object], plans: Plans) -> Iterator[Finding]:
    """Whether nodes can hold the pods of each group."""
    nodes = api.find(NODES).items
    needed: Counter[str] = Counter()
    for plan in plans.values():
        needed |= Counter(plan)
    scales = _autoscaler(api)
    for group, spec in sorted(pods.items()):
        yield judge_group(group, spec, nodes, needed[group], scales=scales)


def judge_group(group: str, spec: Object, nodes: list[Object], needed: int, *, scales: bool) -> Finding:
    """One worker group against the nodes.

    Args:
        group: its name.
        spec: of its pods.
        nodes: of the cluster.
        needed: pods that must find room together.
        scales: whether an autoscaler may make nodes: then what is missing need not fail.
    """
    name = f"group {group}"
    asked = requests(spec)
    open_ = [node for node in nodes if _takes(node, spec)]
    room = [_fits(_allocatable(node), asked) for node in open_]
    what = ", ".join(_amount(each, value) for each, value in sorted(asked.items())) or "nothing"
    about = f"a pod asks for {what}"
    if not open_:
        selector = ", ".join(f"{key}={value}" for key, value in (spec.get("nodeSelector") or {}).items())
        about += f"; none of {len(nodes)} nodes is ready, has the labels ({selector or 'none'})"
        about += " and no other taints"
        remedy = "see `kubectl get nodes --show-labels`, and set nodeSelector and tolerations of the group"
    elif not sum(room):
        most = {each: max(_allocatable(node).get(each, Decimal(0)) for node in open_) for each in asked}
        short = [each for each in sorted(asked) if most[each] < asked[each]]
        why = ", ".join(f"{each} (at most {_amount(each, most[each])})" for each in short)
        about += f"; no node has enough {why}" if short else "; no node has all of it"
        remedy = _remedy(short, most)
    else:
        holding = sum(1 for each in room if each)
        about += f"; {holding} of {len(nodes)} nodes can hold {sum(room)} pods"
        if needed <= sum(room):
            return fine(name, about)
        about += f", {needed} are needed"
        remedy = "add nodes, or lower workers of the stage"
    if scales:
        return warn(name, f"{about}. An autoscaler may make such nodes.", codes.NO_FITTING_NODE, remedy)
    return fails(name, f"{about}.", codes.NO_FITTING_NODE, remedy)


def _remedy(short: list[str], most: Amounts) -> str:
    told = []
    devices = [each for each in short if "/" in each]
    if any(most[each] == 0 for each in devices):
        told.append(f"see that the device plugin (GPU operator) runs on the GPU nodes: {', '.join(devices)}")
    elif devices:
        told.append("lower gpus of the group (workers.groups)")
    if DISK in short:
        told.append("lower workers.scratch.size, or give nodes larger disks")
    if any(each not in devices and each != DISK for each in short):
        told.append("lower cpus and memory of the group (workers.groups)")
    return "; ".join(told) or codes.NO_FITTING_NODE.remedy


def _autoscaler(api: KubeApi) -> bool:
    """Whether Karpenter or the cluster autoscaler is seen."""
    try:
        if api.serves(NODE_POOLS):
            return True
        return api.get(CONFIG_MAPS, "cluster-autoscaler-status", namespace="kube-system") is not None
    except BackendError:
        return False


def _takes(node: Object, spec: Object) -> bool:
    """Whether a node is ready and open to a pod, by labels and taints."""
    labels = node["metadata"].get("labels") or {}
    own = node.get("spec") or {}
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    selected = all(labels.get(key) == value for key, value in (spec.get("nodeSelector") or {}).items())
    taints = [each for each in own.get("taints") or [] if each.get("effect") != "PreferNoSchedule"]
    tolerations = spec.get("tolerations") or []
    tolerated = all(any(_tolerates(each, taint) for each in tolerations) for taint in taints)
    return ready and selected and tolerated and not own.get("unschedulable")


def _tolerates(toleration: Object, taint: Object) -> bool:
    """As the scheduler decides (Kubernetes documentation, "Taints and Tolerations")."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return all(toleration.get(each, "") == taint.get(each, "") for each in ("key", "value"))


def _allocatable(node: Object) -> Amounts:
    return _amounts((node.get("status") or {}).get("allocatable") or {})


def _fits(has: Amounts, asked: Amounts) -> int:
    """How many pods fit into an empty node."""
    counts = [math.floor(has.get(each, 0) / value) for each, value in asked.items() if value]
    return min([*counts, int(has.get("pods", Decimal(110)))])


# Quotas


def check_quotas(
    api: KubeApi, release: ReleaseConfig, pods: Mapping[str, Object], plans: Plans
) -> Iterator[Finding]:
    """Whether the namespace's quotas let the pods be made. Quotas of a scope are not looked at."""
    quotas = [
        each for each in api.find(QUOTAS).items if not {"scopes", "scopeSelector"} & set(each["spec"] or {})
    ]
    if not quotas:
        yield fine("quotas", f"the namespace {api.namespace} has none")
        return
    workers = api.find(PODS, labels=pod_labels(release, WORKER)).items
    running = _added(_charged(pod["spec"]) for pod in workers)
    for plan, groups in plans.items():
        each = (pods[group] for group, count in groups.items() if group in pods for _ in range(count))
        charged = _added(map(_charged, each))
        for quota in quotas:
            yield judge_quota(quota, plan, charged, running)


def judge_quota(quota: Object, plan: str, charged: Amounts, running: Amounts) -> Finding:
    """What keeps a plan's pods.

    Args:
        quota: of the namespace.
        plan: what the pods are for.
        charged: what they count.
        running: what worker pods count that are there already, and that the plan uses first.
    """
    status, called = quota.get("status") or {}, quota["metadata"]["name"]
    hard = _amounts(status.get("hard") or quota["spec"].get("hard") or {})
    used = _amounts(status.get("used") or {})
    free = {name: most - max(used.get(name, 0) - running.get(name, 0), 0) for name, most in hard.items()}
    over = [each for each in sorted(charged) if each in hard and charged[each] > hard[each]]
    full = [each for each in sorted(charged) if each in hard and charged[each] > free[each]]
    if not (over or full):
        return fine("quotas", f"{plan} fits into the quota {called}")
    most, words = (hard, "allows") if over else (free, "has left")
    told = ", ".join(
        f"{_amount(each, charged[each])} (it {words} {_amount(each, most[each])})" for each in over or full
    )
    said = f"{plan} takes more than the quota {called}: {told}"
    remedy = f"`kubectl describe quota {called}`; have it raised, or lower the worker groups"
    return graded("quotas", said, codes.QUOTA_EXCEEDED, bad=bool(over), poor=True, remedy=remedy)


def _charged(spec: Object) -> Amounts:
    """What a pod counts in quotas, by each name that a quota may have for it."""
    asked = requests(spec)
    charged = {"pods": Decimal(1), "count/pods": Decimal(1), **asked}
    charged |= {f"requests.{name}": value for name, value in asked.items()}
    limits = _added(_amounts(_resources(each, "limits")) for each in spec.get("containers") or [])
    return charged | {f"limits.{name}": value for name, value in limits.items()}


# Amounts


def requests(spec: Object) -> Amounts:
    """What a pod asks of a node; a limit without a request is one (Kubernetes sets it so)."""
    asked = _added(_container(each) for each in spec.get("containers") or [])
    for each in spec.get("initContainers") or []:
        for name, value in _container(each).items():
            asked[name] = max(asked.get(name, value), value)
    return asked


def _container(container: Object) -> Amounts:
    return _amounts(_resources(container, "limits") | _resources(container, "requests"))


def _resources(container: Object, kind: str) -> dict[str, str]:
    return (container.get("resources") or {}).get(kind) or {}


def _amounts(values: Mapping[str, object]) -> Amounts:
    return {name: parse_quantity(str(value)) for name, value in values.items()}


def _added(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, Decimal(0)) + value
    return total


def _amount(name: str, value: Decimal | int) -> str:
    """``4 nvidia.com/gpu``, ``320 GiB memory``."""
    return f"{gib(float(value))} {name}" if name.rpartition(".")[2] in _BYTES else f"{float(value):g} {name}"
