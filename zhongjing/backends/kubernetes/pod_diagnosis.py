"""What one pod says of why it does not serve: its conditions, containers and events, in our words. Pure.

Kubernetes' own words are kept in the message, because people search for them; a finding adds what it means,
what to do, and whether waiting can help at all. A message names times, not how long ago they were: it stands
in a condition, which is written whenever it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.codes import Code
from zhongjing.codes import pods as codes
from zhongjing.pipeline.state import seconds

STARTING_SECONDS = 60.0  # until then a node, a Secret or an operator may just be coming
LOST_SECONDS = 60.0  # a pod that should have gone so long ago will not
_WORDS = 600  # characters of Kubernetes' own words that are kept


@dataclass(frozen=True)
class Finding:
    """One reason why something of the release does not run.

    Attributes:
        code: from the catalogue.
        place: the object, as ``kubectl`` takes it: ``pod/zhongjing-ray-head-0``.
        message: what is wrong, or still under way.
        remedy: what to do.
        fatal: whether it can never come right by itself.
    """

    code: Code
    place: str
    message: str
    remedy: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def found(code: Code, place: str, message: str, *, remedy: str = "", fatal: bool = False) -> Finding:
    """A finding; the remedy is the code's own unless given."""
    words = " ".join(message.split())
    if len(words) > _WORDS:
        words = words[:_WORDS] + "..."
    return Finding(code, place, words, remedy or code.remedy, fatal)


def about_pod(
    pod: Object, events: Sequence[Object], now: float, managed: Sequence[str] = ()
) -> Finding | None:
    """Why a pod does not serve; None if it does, or has done its work.

    Args:
        pod: as the API has it.
        events: those of this pod, of its claims, and of autoscalers about it.
        now: seconds since the epoch.
        managed: names of Secrets that the controller makes: they are only late.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    place = f"pod/{metadata['name']}"
    if metadata.get("deletionTimestamp"):
        late = now - _seconds(metadata["deletionTimestamp"], now)
        if late < LOST_SECONDS:
            return found(codes.POD_STARTING, place, "is being ended; another takes its place")
        node = (pod.get("spec") or {}).get("nodeName")
        message = f"should have ended at {metadata['deletionTimestamp']}; its node {node} does not end it"
        return found(codes.POD_LOST, place, message)
    if status.get("phase") == "Succeeded":
        return None
    if status.get("reason") == "Evicted":
        return found(codes.POD_EVICTED, place, f"was evicted: {status.get('message', '')}")
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _unscheduled(pod, place, scheduled, events, now)
    for container in _containers(status):
        finding = _about_container(pod, place, container, now, managed)
        if finding is not None:
            return finding
    # Volumes are mounted and the sandbox is made before any container starts: such events are past then.
    began = any((each.get("state") or {}).get("running") for each in _containers(status))
    held = None if began else _unmounted(place, events, managed)
    return _lost(place, events, now) or held or _starting(pod, place, status, events)


def newest(events: Sequence[Object], *reasons: str) -> Object | None:
    """The latest event of these reasons."""
    chosen = [event for event in events if event.get("reason") in reasons]
    return max(chosen, key=last_seen, default=None)


def last_seen(event: Object) -> float:
    """When an event was last seen, seconds since the epoch."""
    series = event.get("series") or {}
    text = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return _seconds(text or event["metadata"].get("creationTimestamp"), 0.0)


def age(thing: Object, now: float) -> float:
    """Seconds since an object was made."""
    return now - _seconds(thing["metadata"].get("creationTimestamp"), now)


def _seconds(text: object, otherwise: float) -> float:
    try:
        return seconds(str(text))
    except ValueError:
        return otherwise


def _containers(status: Mapping[str, object]) -> Iterator[Object]:
    """Containers that do not run as they should, the first to run first."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        statuses = status.get(kind) or []
        assert isinstance(statuses, list)
        for container in statuses:
            ended = container.get("state", {}).get("terminated") or {}
            if kind == "initContainerStatuses" and ended.get("exitCode") == 0:
                continue
            yield container


# Scheduling

_SCALE_UP = ("TriggeredScaleUp", "Nominated")  # of the cluster autoscaler, of Karpenter
_TOTAL = re.compile(r"^0/(\d+) nodes are available")
_HELPLESS = re.compile(r"(\d+) Preemption is not helpful")


def _unscheduled(
    pod: Object, place: str, condition: Mapping[str, str], events: Sequence[Object], now: float
) -> Finding:
    text = condition.get("message", "")
    if condition.get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in pod["spec"].get("schedulingGates") or [])
        remedy = "see what its queue says, e.g. `kubectl describe workloads.kueue.x-k8s.io`"
        return found(codes.POD_UNSCHEDULABLE, place, f"is held back by {gates}", remedy=remedy)
    if "PersistentVolumeClaim" in text or "persistentvolumeclaim" in text or "volume node affinity" in text:
        return _unbound(place, text, events)
    if newest(events, *_SCALE_UP) is not None:
        remedy = "wait: the cluster's autoscaler is making a node"
        return found(codes.POD_STARTING, place, f"waits for a node: {text}", remedy=remedy)
    if not _fits_no_node(text):
        return found(codes.POD_UNSCHEDULABLE, place, f"no node has room for it now ({_asks(pod)}): {text}")
    refusal = newest(events, "NotTriggerScaleUp")
    if refusal is not None:
        text += f" {refusal.get('message', '')}"
    message = f"no node of the cluster can ever hold it ({_asks(pod)}): {text}"
    fatal = age(pod, now) >= STARTING_SECONDS
    return found(codes.NO_FITTING_NODE, place, message, remedy=_node_remedy(pod, text), fatal=fatal)


def _fits_no_node(text: str) -> bool:
    """Whether the scheduler says of every node that even an empty one would not do."""
    total, helpless = _TOTAL.search(text), _HELPLESS.search(text)
    return total is not None and helpless is not None and total[1] == helpless[1]


def _asks(pod: Object) -> str:
    """What a pod asks of a node."""
    spec = pod.get("spec") or {}
    asked: dict[str, list[str]] = {}
    for container in spec.get("containers") or []:
        resources = container.get("resources") or {}
        for name, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            asked.setdefault(name, []).append(str(value))
    parts = [f"{name} {' + '.join(values)}" for name, values in sorted(asked.items())]
    parts += [f"{name}={value}" for name, value in sorted((spec.get("nodeSelector") or {}).items())]
    return "it asks for " + ", ".join(parts) if parts else "it asks for nothing in particular"


def _node_remedy(pod: Object, text: str) -> str:
    remedies = []
    if "affinity/selector" in text:
        selector = (pod.get("spec") or {}).get("nodeSelector") or {}
        names = ", ".join(f"{name}={value}" for name, value in sorted(selector.items()))
        # Most such labels say what a node is: to write them onto another one would be a lie that costs a day.
        wanted = (
            f"set nodeSelector of the group, now {names}, to" if names else "make the group's affinity take"
        )
        remedies.append(f"{wanted} labels that the nodes have (`kubectl get nodes --show-labels`)")
    lacking = sorted(set(re.findall(r"Insufficient ([\w./-]+\w)", text)))
    devices = [name for name in lacking if "/" in name]
    if devices:
        remedies.append(
            f"see whether nodes offer {', '.join(devices)} (device plugin, GPU operator), or lower gpus"
        )
    if len(lacking) > len(devices):
        others = ", ".join(name for name in lacking if name not in devices)
        remedies.append(f"lower what its pods ask for ({others}) in the chart's values")
    if "untolerated taint" in text:
        remedies.append("add tolerations for the taints to the group")
    return "; ".join(remedies)


# Volumes


def _unbound(place: str, text: str, events: Sequence[Object]) -> Finding:
    for event in sorted(events, key=last_seen, reverse=True):
        words = str(event.get("message", ""))
        if event.get("reason") not in ("FailedBinding", "ProvisioningFailed"):
            continue
        claim = (event.get("involvedObject") or {}).get("name")
        hopeless = "no storage class is set" in words or re.search(
            r'storageclass\S* "[^"]*" not found', words
        )
        message = f"its volume claim {claim} is not bound: {words}"
        return found(codes.VOLUME_PENDING, place, message, fatal=bool(hopeless))
    return found(codes.VOLUME_PENDING, place, f"its volume is not there: {text}")


# Containers

_PULLS = ("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable")
# A registry that says these will say them again; an answer that did not come may come.
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|denied|unauthorized|authorization failed|insufficient_scope|403|401", re.I
)
_NO_PROGRAM = re.compile(r"no such file or directory|permission denied|exec format error|not found in \$PATH")
_SECRET = re.compile(r'secret "(?P<name>[^"]+)" not found', re.I)


def _about_container(
    pod: Object, place: str, container: Object, now: float, managed: Sequence[str]
) -> Finding | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, text = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    name = container.get("name")
    if reason in _PULLS:
        return _unpulled(place, str(container.get("image", "")), reason, text)
    if reason == "CreateContainerConfigError":
        return _misconfigured(place, text, managed)
    if reason in ("RunContainerError", "CreateContainerError"):
        fatal = bool(_NO_PROGRAM.search(text))
        return found(codes.POD_CRASHES, place, f"container {name} does not start: {text}", fatal=fatal)
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended or state.get("terminated", {}).get("exitCode") == 0:
        return None
    if state.get("running") and now - _seconds(ended.get("finishedAt"), now) > 600:
        return None  # it has been running again for long
    restarts = int(container.get("restartCount") or 0)
    times = f"was started {restarts + 1} times" if restarts else "ended"
    if ended.get("reason") == "OOMKilled":
        limit = _limit(pod, str(name))
        message = f"container {name} {times} and was killed for its memory{limit}"
        return found(codes.POD_OUT_OF_MEMORY, place, message)
    words = str(ended.get("message") or "").strip()
    code, why = ended.get("exitCode"), ended.get("reason")
    outcome = f"exit code {code}" if why in (None, "Error") else f"exit code {code} ({why})"
    message = f"container {name} {times}, last with {outcome}{': ' + words[-300:] if words else ''}"
    fatal = why == "StartError" and bool(_NO_PROGRAM.search(words))
    remedy = f"`kubectl logs {place.partition('/')[2]} -c {name} --previous`"
    return found(codes.POD_CRASHES, place, message, remedy=f"see its last words: {remedy}", fatal=fatal)


def _unpulled(place: str, image: str, reason: str, text: str) -> Finding:
    cause = text.split("ErrImagePull: ", 1)[-1]
    never = reason in ("ErrImageNeverPull", "InvalidImageName")
    # The reference itself stands in most of these messages, and may hold any of the words.
    hopeless = never or bool(_NO_IMAGE.search(cause.replace(image, "")))
    return found(
        codes.IMAGE_PULL_FAILED, place, f"the image {image} cannot be pulled: {cause}", fatal=hopeless
    )


def _misconfigured(place: str, text: str, managed: Sequence[str]) -> Finding:
    secret = _SECRET.search(text)
    if secret is not None and secret["name"] in managed:
        remedy = "wait: the controller makes it; see its log if it does not"
        return found(codes.POD_MISCONFIGURED, place, f"cannot start yet: {text}", remedy=remedy)
    remedy = ""
    if "runAsNonRoot" in text:
        remedy = "use the chart's own image, or one whose user is a number other than 0"
    return found(codes.POD_MISCONFIGURED, place, f"cannot start: {text}", remedy=remedy, fatal=True)


def _limit(pod: Object, container: str) -> str:
    for each in (pod.get("spec") or {}).get("containers") or []:
        limit = ((each.get("resources") or {}).get("limits") or {}).get("memory")
        if each.get("name") == container and limit:
            return f": its limit is {limit}"
    return ""


# Events


def _lost(place: str, events: Sequence[Object], now: float) -> Finding | None:
    lost = newest(events, "NodeNotReady")
    if lost is not None and now - last_seen(lost) < 3600:
        return found(codes.POD_LOST, place, f"its node does not answer: {lost.get('message', '')}")
    return None


def _unmounted(place: str, events: Sequence[Object], managed: Sequence[str]) -> Finding | None:
    """What keeps the containers of a pod that is on a node from being started."""
    mount = newest(events, "FailedMount", "FailedAttachVolume")
    if mount is None:
        sandbox = newest(events, "FailedCreatePodSandBox")
        if sandbox is None:
            return None
        return found(codes.POD_STARTING, place, f"cannot be started yet: {sandbox.get('message', '')}")
    text = str(mount.get("message", ""))
    if re.search(r"(secret|configmap)\b.*\bnot found|non-existent (secret|config)", text, re.I):
        return _misconfigured(place, text, managed)
    return found(codes.VOLUME_PENDING, place, text)


def _starting(pod: Object, place: str, status: Mapping[str, object], events: Sequence[Object]) -> Finding:
    for container in _containers({"initContainerStatuses": status.get("initContainerStatuses")}):
        if (container.get("state") or {}).get("running"):
            message = f"waits in its init container {container['name']}"
            return found(codes.POD_STARTING, place, message)
    since = f"since {pod['metadata'].get('creationTimestamp')}"
    running = any((each.get("state") or {}).get("running") for each in _containers(status))
    if running:
        probe = newest(events, "Unhealthy")
        words = f": {probe.get('message', '')}" if probe is not None else ""
        return found(codes.POD_STARTING, place, f"runs and is not ready yet, {since}{words}")
    pulling, pulled = newest(events, "Pulling"), newest(events, "Pulled")
    if pulling is not None and (pulled is None or last_seen(pulled) < last_seen(pulling)):
        image = str(pulling.get("message", "")).removeprefix("Pulling image ")
        message = f"pulls the image {image}, {since}"
        return found(codes.POD_STARTING, place, message)
    return found(codes.POD_STARTING, place, f"is being started, {since}")
