"""Why pods of a release are not there, or do not serve. For the condition ClusterNotReady and for ``submit``.

Looks at pods, at what makes them, and at the namespace's events; needs list on ``pods``, ``events``,
``statefulsets`` and ``deployments``, or get on ``rayclusters``. What the caller may not read is left out.
Nothing is written.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.pod_diagnosis import (
    STARTING_SECONDS,
    Finding,
    about_pod,
    age,
    explain_reason,
    found,
    last_seen,
    newest,
)
from zhongjing.backends.kubernetes.resources import (
    CORE_EVENTS,
    DEPLOYMENTS,
    PODS,
    RAY_CLUSTERS,
    STATEFUL_SETS,
    Object,
    Resource,
)
from zhongjing.backends.kubernetes.workloads import COMPONENT, HEAD, WORKER, label, of_component, pod_labels
from zhongjing.codes import pods as codes
from zhongjing.codes.cluster import FORBIDDEN
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendError
from zhongjing.pipeline.state import seconds, stamp

S3 = "s3"
CONTROLLER = "controller"
ALL = (HEAD, WORKER, S3, CONTROLLER)

_REFUSED_SECONDS = 1200.0  # Kubernetes tries a refused pod again after at most 1,000 s
_SHOWN = 3  # findings in one sentence

# Normal events that say as much as warnings: a claim without a class, an autoscaler at work, a pull.
_TELLING = (
    "involvedObject.kind=PersistentVolumeClaim,type=Normal",
    "reason=TriggeredScaleUp",
    "reason=Nominated",
    "reason=Pulling",
    "reason=NotTriggerScaleUp",
)
# Kinds of event objects that make pods. A Deployment's pods are made by its ReplicaSets.
_MAKERS = ("StatefulSet", "ReplicaSet", "RayCluster")


@dataclass(frozen=True)
class Scene:
    """What an explanation is made from. Plain data."""

    now: float
    pods: Sequence[Object] = ()
    workloads: Sequence[Object] = ()  # StatefulSets and Deployments
    cluster: Object | None = None  # the RayCluster
    serves_clusters: bool = True
    events: Sequence[Object] = field(default=(), repr=False)


class Explainer:
    """Looks at a release and says what keeps it."""

    def __init__(
        self,
        api: KubeApi,
        release: ReleaseConfig,
        *,
        components: Sequence[str] = ALL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._release = release
        self._components = tuple(components)
        self._clock = clock

    def findings(self) -> list[Finding]:
        """What keeps the release, the gravest first; empty when all that is asked for serves."""
        return explain(self.look(), self._release, self._components)

    def look(self) -> Scene:
        """Reads what an explanation needs: two requests when all is well, eight while pods are pending."""
        release, ours = self._release, pod_labels(self._release, *self._components)
        pods = self._list(PODS, ours)
        workloads = self._list(STATEFUL_SETS, ours)
        if CONTROLLER in self._components or WORKER in self._components:
            workloads += self._list(DEPLOYMENTS, ours)
        scene = Scene(self._clock(), pods, workloads)
        if release.provisioner == "kuberay" and HEAD in self._components:
            serves_clusters = self._api.serves(RAY_CLUSTERS)
            clusters = self._list(RAY_CLUSTERS, name=release.ray.cluster) if serves_clusters else []
            scene = replace(scene, cluster=next(iter(clusters), None), serves_clusters=serves_clusters)
        serves = all(about_pod(pod, (), scene.now) is None for pod in pods) and not _lacking(workloads)
        if serves and release.provisioner == "static":
            return scene
        events = self._list(CORE_EVENTS, fields="type=Warning")
        if any((pod.get("status") or {}).get("phase") == "Pending" for pod in pods):
            for fields in _TELLING:
                events += self._list(CORE_EVENTS, fields=fields)
        return replace(scene, events=events)

    def _list(
        self, resource: Resource, labels: str | None = None, *, fields: str | None = None, name: str = ""
    ) -> list[Object]:
        """Objects that match, or the one of that name; none where this user may not look."""
        try:
            if name:
                one = self._api.get(resource, name)
                return [one] if one is not None else []
            return self._api.find(resource, labels=labels, fields=fields).items
        except BackendError as error:
            if error.code is not FORBIDDEN:
                raise
            return []


def explain(scene: Scene, release: ReleaseConfig, components: Sequence[str] = ALL) -> list[Finding]:
    """What keeps the release, the gravest first. Pods that are kept by the same thing are told once."""
    secrets = [release.ray.token_secret] if release.ray.token_managed else []
    if release.storage.secret is not None and release.storage.secret_managed:
        secrets.append(release.storage.secret)
    order = {component: number for number, component in enumerate(components)}
    pods = sorted(scene.pods, key=lambda pod: order.get(label(pod, COMPONENT), len(order)))
    told = [about_pod(pod, _events_about(pod, scene.events), scene.now, secrets) for pod in pods]
    kept = [finding for finding in told if finding is not None]
    findings = _once([*_provisioned(scene, release, components), *_refused(scene), *kept])
    # What only takes its time comes last.
    return sorted(findings, key=lambda each: (not each.fatal, each.code is codes.POD_STARTING))


def sentence(findings: Sequence[Finding]) -> str:
    """The gravest findings in one line, for a condition."""
    told = "; ".join(str(finding) for finding in findings[:_SHOWN])
    more = len(findings) - _SHOWN
    return f"{told}; and {more} more" if more > 0 else told


def _events_about(pod: Object, events: Iterable[Object]) -> list[Object]:
    """Events of the pod, and of its volume claims."""
    name, uid = pod["metadata"]["name"], pod["metadata"].get("uid")
    claims = set()
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        if "persistentVolumeClaim" in volume:
            claims.add(volume["persistentVolumeClaim"]["claimName"])
        elif "ephemeral" in volume:
            claims.add(f"{name}-{volume['name']}")

    def is_about(event: Object) -> bool:
        about = event.get("involvedObject") or {}
        if about.get("kind") == "PersistentVolumeClaim":
            return about.get("name") in claims
        # Names of a StatefulSet's pods come again: the uid tells an earlier one's events.
        return about.get("kind") == "Pod" and about.get("uid") == uid

    return [event for event in events if is_about(event)]


# What makes the pods


def _provisioned(scene: Scene, release: ReleaseConfig, components: Sequence[str]) -> list[Finding]:
    """Whether what should make the Ray pods is there, and at work."""
    names = {workload["metadata"]["name"] for workload in scene.workloads if workload.get("spec")}
    if HEAD not in components:
        return []
    if release.provisioner == "static":
        findings = []
        head = f"{release.fullname}-ray-head"
        if head not in names:
            place = f"statefulset/{head}"
            findings.append(found(codes.WORKLOAD_MISSING, place, "does not exist", fatal=True))
        groups = [group.workload for group in release.ray.groups if WORKER in components]
        return findings + [_not_made(f"deployment/{name}") for name in groups if name not in names]
    place = f"raycluster/{release.ray.cluster}"
    if not scene.serves_clusters:
        message = "the release is for KubeRay, and the cluster knows no RayClusters"
        return [found(codes.KUBERAY_MISSING, place, message, fatal=True)]
    findings = []
    if scene.cluster is None:
        findings.append(_not_made(place))
    else:
        finding = _operated(scene.cluster, place, scene.now) or _headless(scene, scene.cluster, place)
        findings += [finding] if finding is not None else []
    parts = (each for each in scene.workloads if each.get("spec"))
    left = sorted(_place(each) for each in parts if _name(each).startswith(f"{release.fullname}-ray-"))
    if left:
        message = f"the release is for KubeRay, and parts without it are there: {', '.join(left)}"
        remedy = f"`kubectl delete {' '.join(left)}`"
        findings.append(found(codes.PROVISIONER_MISMATCH, left[0], message, remedy=remedy, fatal=True))
    return findings


def _name(workload: Object) -> str:
    return str(workload["metadata"]["name"])


def _place(workload: Object) -> str:
    """A StatefulSet or Deployment as kubectl takes it. Of a list the API tells no kinds."""
    kind = "deployment" if "strategy" in workload["spec"] else "statefulset"
    return f"{kind}/{_name(workload)}"


def _not_made(place: str) -> Finding:
    """The controller makes it, at its start and whenever it is missing."""
    remedy = "wait; where it does not come, the log of the controller says why"
    return found(codes.WORKLOAD_MISSING, place, "is not made yet", remedy=remedy)


def _operated(cluster: Object, place: str, now: float) -> Finding | None:
    """Whether KubeRay's operator looks after the RayCluster, and what it says."""
    status = cluster.get("status") or {}
    for condition in _conditions(status):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return _refusal(place, str(condition.get("message", "")))
    seen = status.get("observedGeneration")
    current = cluster["metadata"].get("generation")
    if status and (seen is None or seen == current):
        return None
    since = _written(cluster)
    if now - since < STARTING_SECONDS:
        return None
    what = "has not taken it up" if not status else "has not seen its last change"
    message = f"KubeRay's operator {what}, since {stamp(since)}: it does not run, or not for this namespace"
    return found(codes.KUBERAY_NOT_RUNNING, place, message, fatal=True)


def _headless(scene: Scene, cluster: Object, place: str) -> Finding | None:
    """Why a RayCluster that the operator has seen has no head pod: it is suspended, or none is made."""
    if of_component(scene.pods, HEAD):
        return None
    if cluster["spec"].get("suspend"):
        remedy = "see what its queue says, e.g. `kubectl describe workloads.kueue.x-k8s.io`"
        return found(codes.POD_UNSCHEDULABLE, place, "is suspended, as a queue does it", remedy=remedy)
    status = cluster.get("status") or {}
    told = [status.get("lastUpdateTime"), *(each.get("lastTransitionTime") for each in _conditions(status))]
    since = max([_written(cluster), *(seconds(str(each)) for each in told if each)])
    if scene.now - since < STARTING_SECONDS:
        return found(codes.POD_STARTING, place, "its head pod is being made")
    message = f"KubeRay's operator makes no head pod, and was last seen at {stamp(since)}: does it run?"
    return found(codes.KUBERAY_NOT_RUNNING, place, message)


def _conditions(status: Object) -> list[Object]:
    return status.get("conditions") or []


def _written(thing: Object) -> float:
    """When an object was last written, its status aside."""
    metadata = thing["metadata"]
    fields = metadata.get("managedFields") or []
    times = [entry["time"] for entry in fields if entry.get("time") and not entry.get("subresource")]
    return max(seconds(str(time)) for time in (metadata["creationTimestamp"], *times))


def _lacking(workloads: Iterable[Object]) -> list[Object]:
    """Workloads that have made fewer pods than they should."""
    return [
        workload
        for workload in workloads
        if int(workload["spec"].get("replicas", 1)) > int((workload.get("status") or {}).get("replicas") or 0)
    ]


def _refused(scene: Scene) -> list[Finding]:
    """Pods that the API did not let be made."""
    findings = []
    for workload in _lacking(scene.workloads):
        name, place = _name(workload), _place(workload)
        failures = [event for event in scene.events if _tells_of(event, name, workload, scene.now)]
        last = newest(failures, *{str(event["reason"]) for event in failures})
        if last is not None:
            findings.append(_refusal(place, str(last.get("message", ""))))
        elif age(workload, scene.now) < STARTING_SECONDS:
            findings.append(found(codes.POD_STARTING, place, "its pods are being made"))
    return findings


def _tells_of(event: Object, name: str, workload: Object, now: float) -> bool:
    about = event.get("involvedObject") or {}
    if about.get("kind") not in _MAKERS or not str(event.get("reason", "")).startswith("Failed"):
        return False
    if now - last_seen(event) > _REFUSED_SECONDS:
        return False
    if about["kind"] == "ReplicaSet":
        return str(about.get("name", "")).rpartition("-")[0] == name
    return bool(about.get("uid") == workload["metadata"].get("uid"))


_LIMITED = re.compile(
    r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.*?), used: .*?, limited: (?P<most>.*)"
)


def _refusal(place: str, text: str) -> Finding:
    # 'Create Pod x-0 in StatefulSet x failed error: pods "x-0" is forbidden: <why>'
    why = text.partition(" is forbidden: ")[2] or text.partition(" failed error: ")[2] or text
    quota = _LIMITED.search(why)
    if quota is not None:
        message = f"its pods do not fit into the quota {quota['quota']}: {why}"
        remedy = f"`kubectl describe quota {quota['quota']}`; raise it, or lower the worker groups"
        never = _exceeds(quota["asked"], quota["most"])
        return found(codes.QUOTA_EXCEEDED, place, message, remedy=remedy, fatal=never)
    return explain_reason(place, "FailedCreate", why) or found(codes.POD_REFUSED, place, why)


def _exceeds(asked: str, most: str) -> bool:
    """Whether one pod asks for more than the whole quota: then no other pod's end helps."""
    limits = _quantities(most)
    return any(value > limits.get(name, value) for name, value in _quantities(asked).items())


def _quantities(text: str) -> dict[str, Decimal]:
    """Quantities by resource, of ``cpu=2,memory=4Gi``; what cannot be read is left out."""
    found: dict[str, Decimal] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        with contextlib.suppress(ValueError):
            found[name] = parse_quantity(value.strip())
    return found


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that differ only in the pod, as one that counts them."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        name = "" if finding.place.startswith("pod/") else finding.place
        key = (finding.code, finding.fatal, name, _bare(finding))
        groups.setdefault(key, []).append(finding)
    return [
        replace(first, place=f"{first.place} and {len(more)} more" if more else first.place)
        for first, *more in groups.values()
    ]


def _bare(finding: Finding) -> str:
    """The message without names of pods, times and addresses."""
    name = finding.place.partition("/")[2]
    text = finding.message.replace(name, "").replace(re.sub(r"-\d+$", "", name), "")
    return re.sub(r"\d+(\.\d+)*", "", text)
