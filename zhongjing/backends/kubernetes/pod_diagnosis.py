"""What one pod says of why it does not serve: its conditions, containers and events, in our words. Pure.

Kubernetes' own words are kept in the message, because people search for them; a finding adds what it means,
what to do, and whether waiting can help at all (:data:`RULES`). A message names times, not how long ago they
were: it stands in a condition, which is written whenever it changes.
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
_NODE_SECONDS = 3600.0  # an event that a node does not answer counts for so long
_PAST_SECONDS = 600.0  # a container that has been running again for so long has no past
_WORDS = 600  # characters of Kubernetes' own words that are kept


@dataclass(frozen=True)
class Finding:
    """One reason why something of the release does not run."""

    code: Code  # from the catalogue
    place: str  # the object, as `kubectl` takes it: `pod/zhongjing-ray-head-0`
    message: str  # what is wrong, or still under way
    remedy: str  # what to do
    fatal: bool = False  # whether it can never come right by itself

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def found(code: Code, place: str, message: str, *, remedy: str = "", fatal: bool = False) -> Finding:
    """A finding; the remedy is the code's own unless given."""
    words = " ".join(message.split())
    if len(words) > _WORDS:
        words = words[:_WORDS] + "..."
    return Finding(code, place, words, remedy or code.remedy, fatal)


@dataclass(frozen=True)
class Rule:
    """What it means that Kubernetes gives a reason, with a message."""

    reasons: str  # pattern of the reason of a container's state, of a pod's status or of an event
    text: str  # pattern that the message holds
    code: Code  # from the catalogue
    message: str  # ours; `{text}` is Kubernetes'
    remedy: str = ""  # the code's own unless given
    fatal: bool = False  # whether it can never come right by itself


_PULLS = "ImagePullBackOff|ErrImagePull|RegistryUnavailable"
_NEVER_PULLS = "ErrImageNeverPull|InvalidImageName"
_PULL = "the image {image} cannot be pulled: {text}"
# A registry that says these will say them again; an answer that did not come may come.
_NO_IMAGE = "not found|manifest unknown|denied|unauthorized|authorization failed|insufficient_scope|403|401"
_CONFIG = "CreateContainerConfigError"
_RUN = "RunContainerError|CreateContainerError"
_NO_PROGRAM = r"no such file or directory|permission denied|exec format error|not found in \$PATH"
_MOUNTS = "FailedMount|FailedAttachVolume"
_NO_OBJECT = r"(secret|configmap)\b.*\bnot found|non-existent (secret|config)"
_CLAIMS = "FailedBinding|ProvisioningFailed"
_UNBOUND = "its volume claim {name} is not bound: {text}"
_REFUSED = "its pods are refused: {text}"
_USER = "use the chart's own image, or one whose user is a number other than 0"
_SECURITY = (
    "use options that the namespace's Pod Security level allows (hostPath, hostNetwork and capabilities are "
    "outside 'restricted'), or label the namespace with another level"
)

RULES = (
    Rule(_NEVER_PULLS, "", codes.IMAGE_PULL_FAILED, _PULL, fatal=True),
    Rule(_PULLS, _NO_IMAGE, codes.IMAGE_PULL_FAILED, _PULL, fatal=True),
    Rule(_PULLS, "", codes.IMAGE_PULL_FAILED, _PULL),
    Rule(_CONFIG, "runAsNonRoot", codes.POD_MISCONFIGURED, "cannot start: {text}", _USER, fatal=True),
    Rule(f"{_CONFIG}|{_MOUNTS}", _NO_OBJECT, codes.POD_MISCONFIGURED, "cannot start: {text}", fatal=True),
    Rule(_CONFIG, "", codes.POD_MISCONFIGURED, "cannot start: {text}", fatal=True),
    Rule(_RUN, _NO_PROGRAM, codes.POD_CRASHES, "container {name} does not start: {text}", fatal=True),
    Rule(_RUN, "", codes.POD_CRASHES, "container {name} does not start: {text}"),
    Rule(_MOUNTS, "", codes.VOLUME_PENDING, "{text}"),
    Rule("FailedCreatePodSandBox", "", codes.POD_STARTING, "cannot be started yet: {text}"),
    Rule("NodeNotReady", "", codes.POD_LOST, "its node does not answer: {text}"),
    Rule("Evicted", "", codes.POD_EVICTED, "was evicted: {text}"),
    Rule(_CLAIMS, "no storage class is set", codes.VOLUME_PENDING, _UNBOUND, fatal=True),
    Rule(_CLAIMS, r'storageclass\S* "[^"]*" not found', codes.VOLUME_PENDING, _UNBOUND, fatal=True),
    Rule(_CLAIMS, "", codes.VOLUME_PENDING, _UNBOUND),
    Rule("FailedCreate", "failed calling webhook|timeout|try again", codes.POD_REFUSED, _REFUSED),
    Rule("FailedCreate", "violates PodSecurity", codes.POD_REFUSED, _REFUSED, _SECURITY, fatal=True),
    Rule("FailedCreate", "", codes.POD_REFUSED, _REFUSED, fatal=True),
)
"""The first that matches holds."""


def explain_reason(place: str, reason: str, text: str, **names: object) -> Finding | None:
    """What a reason and its message mean by :data:`RULES`; None where no rule is for the reason."""
    # The image's own name stands in most messages about it, and may hold any of the words.
    plain = text.replace(str(names["image"]), "") if names.get("image") else text
    for rule in RULES:
        if re.fullmatch(rule.reasons, reason) and re.search(rule.text, plain, re.IGNORECASE):
            message = rule.message.format(text=text, **names)
            return found(rule.code, place, message, remedy=rule.remedy, fatal=rule.fatal)
    return None


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
        return explain_reason(place, "Evicted", str(status.get("message", "")))
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
    lost = newest(events, "NodeNotReady")
    if lost is not None and now - last_seen(lost) < _NODE_SECONDS:
        return _of_event(place, lost)
    # Volumes are mounted and the sandbox is made before any container starts: such events are past then.
    began = any((each.get("state") or {}).get("running") for each in _containers(status))
    held = newest(events, "FailedMount", "FailedAttachVolume") or newest(events, "FailedCreatePodSandBox")
    if held is not None and not began:
        return _awaiting(_of_event(place, held), str(held.get("message", "")), managed)
    return _starting(pod, place, status, events)


def _of_event(place: str, event: Object) -> Finding | None:
    name = (event.get("involvedObject") or {}).get("name")
    return explain_reason(place, str(event["reason"]), str(event.get("message", "")), name=name)


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
        claim = newest(events, "FailedBinding", "ProvisioningFailed")
        unbound = _of_event(place, claim) if claim is not None else None
        return unbound or found(codes.VOLUME_PENDING, place, f"its volume is not there: {text}")
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
    return f"it asks for {', '.join(parts) or 'nothing in particular'}"


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


_SECRET = re.compile(r'secret "(?P<name>[^"]+)" not found', re.I)


def _about_container(
    pod: Object, place: str, container: Object, now: float, managed: Sequence[str]
) -> Finding | None:
    state, name = container.get("state") or {}, container.get("name")
    waiting = state.get("waiting") or {}
    text = str(waiting.get("message", ""))
    cause = text.split("ErrImagePull: ", 1)[-1]
    reason, image = str(waiting.get("reason", "")), container.get("image", "")
    if finding := explain_reason(place, reason, cause, name=name, image=image):
        return _awaiting(finding, text, managed)
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended or state.get("terminated", {}).get("exitCode") == 0:
        return None
    if state.get("running") and now - _seconds(ended.get("finishedAt"), now) > _PAST_SECONDS:
        return None
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
    fatal = why == "StartError" and re.search(_NO_PROGRAM, words) is not None
    remedy = f"see its last words: `kubectl logs {place.partition('/')[2]} -c {name} --previous`"
    return found(codes.POD_CRASHES, place, message, remedy=remedy, fatal=fatal)


def _awaiting(finding: Finding | None, text: str, managed: Sequence[str]) -> Finding | None:
    """The same finding, or that a Secret is only late because the controller makes it."""
    secret = _SECRET.search(text)
    if finding is None or secret is None or secret["name"] not in managed:
        return finding
    remedy = "wait: the controller makes it; see its log if it does not"
    return found(codes.POD_MISCONFIGURED, finding.place, f"cannot start yet: {text}", remedy=remedy)


def _limit(pod: Object, container: str) -> str:
    containers = [
        each for each in (pod.get("spec") or {}).get("containers") or [] if each["name"] == container
    ]
    limits = [((each.get("resources") or {}).get("limits") or {}).get("memory") for each in containers]
    return f": its limit is {limits[0]}" if limits and limits[0] else ""


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
