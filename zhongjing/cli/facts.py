"""What may stand in an issue report: an allow-list, so that no text of a user or a patient can get in.

Numbers, booleans and times pass. A text passes only if it is a word of our own: a choice or default of its
field, a code, a state, a reason that Kubernetes knows. Any other text is replaced by a tag (``#1a2b3c4d``):
equal texts have equal tags within one report, and the key of the tags is thrown away with the process.
Logs are never copied: what is recognised in them is counted.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import math
import re
import secrets
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

import zhongjing
from zhongjing import errors
from zhongjing.codes import GROUPS
from zhongjing.config.sources import KNOWN_DELTAS
from zhongjing.config.stages import Stage
from zhongjing.pipeline import state
from zhongjing.train.job.prometheus import POINTS

MOST_ITEMS = 64
"""Of a list; the rest is counted."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CODES = frozenset(code.name for group in GROUPS for code in group.codes)
METRICS = frozenset(name.partition("_")[2] for name in POINTS)
KUBERNETES = _words("""
    True False Unknown Normal Warning Pending Running Succeeded Failed Ready Initialized PodScheduled
    ContainersReady PodReadyToStartContainers DisruptionTarget MemoryPressure DiskPressure PIDPressure
    NetworkUnavailable NoSchedule PreferNoSchedule NoExecute Pod Node Service Secret ConfigMap Event
    Lease Deployment ReplicaSet StatefulSet Job RayCluster TrainingPipeline PersistentVolumeClaim
    Unschedulable SchedulingGated NodeLost NodeNotReady NotReady Evicted Preempted Preempting
    TriggeredScaleUp NotTriggerScaleUp Nominated FailedScheduling Scheduled Pulling Pulled Created
    Started Killing BackOff CrashLoopBackOff ImagePullBackOff ErrImagePull ErrImageNeverPull
    InvalidImageName RegistryUnavailable ContainerCreating PodInitializing CreateContainerConfigError
    CreateContainerError RunContainerError StartError ContainerCannotRun ContainersNotReady
    ContainersNotInitialized OOMKilled OOMKilling Error Completed PodCompleted DeadlineExceeded
    Unhealthy ProbeWarning FailedMount FailedAttachVolume FailedBinding ProvisioningFailed
    FailedCreatePodSandBox SandboxChanged FailedCreate SuccessfulCreate SuccessfulDelete
    ScalingReplicaSet ReplicaFailure FreeDiskSpaceFailed EvictionThresholdMet NodeHasDiskPressure
    NodeHasSufficientMemory KubeletReady KubeletNotReady Rebooted SystemOOM ray-head ray-worker
    controller s3 config test node.kubernetes.io/not-ready node.kubernetes.io/unreachable
    node.kubernetes.io/unschedulable node-role.kubernetes.io/control-plane
""")
RESOURCES = _words("cpu memory ephemeral-storage pods nvidia.com/gpu amd.com/gpu")
COMPONENT = "app.kubernetes.io/component"
GPU = "nvidia.com/gpu.product"
KEYS = (
    RESOURCES
    | {COMPONENT, GPU}
    | _words("""
    metadata labels creationTimestamp deletionTimestamp spec nodeName unschedulable taints key effect
    containers name resources requests limits status phase reason type conditions lastTransitionTime
    containerStatuses initContainerStatuses ready restartCount state lastState waiting running
    terminated exitCode signal startedAt finishedAt image capacity allocatable nodeInfo kubeletVersion
    containerRuntimeVersion kernelVersion involvedObject kind count lastTimestamp eventTime
""")
)
"""Keys of Kubernetes objects that are told; all others are left out with what is below them."""

_STATES = frozenset(
    [*state.StageState, *state.StopReason, *state.ConditionType, *state.STANDSTILLS, *state.UNREADY]
    + [f"Not{kind}" for kind in state.ConditionType]
).union(
    _words("Retrying Resuming Suspending Stopping DoneBefore StageSubmitted StageRunning StageStopping"),
)
_DOCUMENT = frozenset(
    [*Stage, *KNOWN_DELTAS, "base", "all-linear", "local"]
    + [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    + [f"example://{name}" for name in ("textbook", "dialogues", "rankings", "prompts")]
)
WORDS = CODES | KUBERNETES | RESOURCES | _STATES | _DOCUMENT
EXCEPTIONS = frozenset(
    [
        name
        for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    ]
    + [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
) | _words("""
    OutOfMemoryError AcceleratorError DistBackendError DistStoreError ValidationError TemplateError
    SafetensorError RayTaskError RayActorError ActorDiedError WorkerCrashedError ObjectLostError
    RuntimeEnvSetupError GetTimeoutError WorkerGroupError ControllerError HTTPError MaxRetryError
    ReadTimeoutError ClientError EndpointConnectionError NoCredentialsError JSONDecodeError ParserError
    ArrowInvalid TimeoutExpired CalledProcessError
""")
SYMPTOMS = (
    *("CUDA out of memory", "CUDA error", "NCCL error", "NCCL WARN", "out of memory", "OOM", "SIGKILL"),
    *("SIGSEGV", "SIGTERM", "No space left on device", "Too many open files", "Connection refused"),
    *("Connection reset", "Temporary failure in name resolution", "certificate verify failed", "timed out"),
    *("Permission denied", "Broken pipe", "Unauthorized", "Forbidden", "not a finite number"),
)

_TIME = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d(?:\.\d{1,6})?(?:Z|\+00:00)", re.ASCII)
_TIMES = ("_at", "since", "time", "created")
_QUANTITY = re.compile(r"\d{1,6}(?:\.\d{1,3})?(?:m|[kKMGT]i?)", re.ASCII)
_AMOUNT = re.compile(r"\d{1,15}(?:\.\d{1,3})?(?:m|[kKMGT]i?)?", re.ASCII)
_VERSION = re.compile(
    r"\d{1,4}(?:\.\d{1,6}){1,3}(?:(?:a|b|rc|\.dev|\.post)\d{1,8})?(?:\+(?:cu|cpu|rocm)[\d.]{0,8})?(?![\d./])",
    re.ASCII,
)
_GPU = re.compile(
    r"(?=[A-Z])"
    r"(?:(?:^|[ -])(?:NVIDIA|AMD|Tesla|GeForce|Quadro|Instinct|RTX|GTX|SXM\d?|PCIe|PCIE|NVL|MIG|Ti|SUPER|Ada|"
    r"Generation|[A-Z]{1,2}\d{1,4}[A-Z]?|\d{1,4}(?:GB)?|\dg\.\d{1,3}gb))+",
    re.ASCII,
)
_SCHEME = re.compile(r"(?:s3|hf|https?|file)://")
_RAY_PREFIX = re.compile(r"^(?:\x1b\[\d+m)?\([^()]*pid=[^()]*\)(?:\x1b\[0m)? ?")
_FRAME = re.compile(r'\s+File "[^"]*\b(zhongjing/[a-z0-9_/]+\.py)", line (\d{1,5}), in ([\w<>]+)\s*')
_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?::|$)", re.ASCII)
_CAMEL = re.compile(r"\b[A-Z][A-Za-z0-9]+\b", re.ASCII)
_EXIT = re.compile(r"exit(?:ed)?(?: with)?(?: code| status)?[ :=]{1,2}(-?\d{1,3})\b", re.ASCII)


class Facts:
    """Makes values safe. One for each report: its tags are alike within the report only."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def tag(self, text: str) -> str:
        """What stands for a text that may not be shown."""
        return f"#{hmac.digest(self._key, text.encode(errors='surrogatepass'), hashlib.sha256).hex()[:8]}"

    def text(self, text: str, choices: frozenset[str] = WORDS) -> str:
        """The text itself if it is one of ``choices`` or an amount (``80Gi``); else its tag."""
        if text in choices or _QUANTITY.fullmatch(text):
            return str(text)
        scheme = _SCHEME.match(text)
        return f"{scheme[0] if scheme else ''}{self.tag(text)}"

    def record(self, record: BaseModel) -> dict[str, Any]:
        """The fields of a typed record. What is typed ``Any`` is left out."""
        told: dict[str, Any] = {}
        for name, field in type(record).model_fields.items():
            value = getattr(record, name)
            if value is None or Any in _parts(field.annotation):
                continue
            if isinstance(value, str) and name.endswith(_TIMES) and (moment := time_of(value)):
                told[field.alias or name] = moment
            elif isinstance(value, str) and name.endswith(("version", "python", "image")):
                told[field.alias or name] = version_of(value)
            else:
                choices = WORDS | _choices(field.annotation)
                if isinstance(field.default, str):
                    choices |= {field.default}
                if name == "error":
                    choices |= EXCEPTIONS
                told[field.alias or name] = self.value(value, choices)
        return told

    def value(self, value: Any, choices: frozenset[str] = WORDS) -> Any:
        """A value of a typed field; ``choices`` are the texts that the field may show."""
        if isinstance(value, BaseModel):
            return self.record(value)
        if isinstance(value, str):
            return self.text(value, choices)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, Mapping):
            pairs = list(value.items())[:MOST_ITEMS]
            return {self.text(str(key), choices): self.value(item, choices) for key, item in pairs}
        if isinstance(value, Iterable):
            return _shortened([self.value(item, choices) for item in value])
        return None

    def kubernetes(self, value: Any, key: str = "") -> Any:
        """What Kubernetes says in an object or a list of them: what is below :data:`KEYS`."""
        if isinstance(value, Mapping):
            return {name: self.kubernetes(item, name) for name, item in value.items() if name in KEYS}
        if isinstance(value, list):
            return _shortened([self.kubernetes(item, key) for item in value])
        if not isinstance(value, str):
            return value if value is None or isinstance(value, bool | int | float) else None
        if key == "image" or key.endswith("Version"):
            return version_of(value)
        if key == GPU:
            return gpu_of(value)
        if key in RESOURCES and _AMOUNT.fullmatch(value):
            return value
        return time_of(value) or self.text(value)

    def error(self, error: BaseException) -> dict[str, Any]:
        """Type, code and our own frames of an exception; never its message."""
        code = getattr(error, "code", None)
        log = Log()
        log.read("".join(traceback.format_exception(error)))
        return {
            "error": known(type(error).__name__, EXCEPTIONS),
            "code": known(str(code), CODES),
            **log.facts(),
        }


class Log:
    """What is recognised in logs of one kind: tracebacks, codes, exit codes, symptoms. No line is kept."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("codes", "exits", "symptoms")}
        self._traces: Counter[tuple[str, ...]] = Counter()

    def read(self, text: str, size: int | None = None) -> None:
        """Counts what is in (the end of) a log.

        Args:
            text: that is read.
            size: of the whole log in bytes.
        """
        self.files += 1
        self.bytes += len(text) if size is None else size
        self._counts["codes"].update(word for word in _CAMEL.findall(text) if word in CODES)
        self._counts["exits"].update(_EXIT.findall(text))
        self._counts["symptoms"].update({each: text.count(each) for each in SYMPTOMS if each in text})
        frames: list[str] | None = None
        for line in (_RAY_PREFIX.sub("", each) for each in text.splitlines()):
            if line.startswith("Traceback (most recent call last)"):
                frames = []
            elif frames is not None and (match := _FRAME.fullmatch(line)):
                frames += _frame(*match.groups())
            elif frames is not None and line[:1].strip():
                raised = _RAISED.match(line)
                self._traces[(known(raised[1] if raised else "", EXCEPTIONS), *frames)] += 1
                frames = None

    def facts(self) -> dict[str, Any]:
        """What was found."""
        traces = [
            {"error": error, "frames": frames, "count": count}
            for (error, *frames), count in self._traces.most_common(MOST_ITEMS)
        ]
        counts = {name: dict(found.most_common(MOST_ITEMS)) for name, found in self._counts.items() if found}
        return {
            "files": self.files,
            "bytes": self.bytes,
            **counts,
            **({"tracebacks": traces} if traces else {}),
        }


def known(text: str, choices: frozenset[str] = WORDS) -> str:
    """The text if it is one of ``choices``, else ``other``."""
    return text if text in choices else "other"


def time_of(text: str | None) -> str | None:
    """A time stamp, None if the text is none."""
    return text if text is not None and _TIME.fullmatch(text) else None


def version_of(text: str) -> str | None:
    """The number of a version or of an image's tag: ``1.30.2`` of ``v1.30.2-gke.1``; None: there is none."""
    found = _VERSION.match(text.rpartition(":")[2].lstrip("/v"))
    return found[0] if found else None


def gpu_of(text: str) -> str:
    """The model of a GPU, as drivers and node labels name it."""
    return text if _GPU.fullmatch(text) else "other"


def _shortened(items: list[Any]) -> list[Any]:
    more = len(items) - MOST_ITEMS
    return [*items[:MOST_ITEMS], f"{more} more"] if more > 0 else items


def _parts(annotation: Any) -> set[Any]:
    """A type and all that it is made of, as far as it can be hashed."""
    found = {annotation} if isinstance(annotation, type) or annotation is Any else set()
    return found.union(*(_parts(part) for part in get_args(annotation)))


def _choices(annotation: Any) -> frozenset[str]:
    """The texts that a type allows: of ``Literal``, of ``StrEnum``, and names of metrics as keys."""
    if get_origin(annotation) is Literal:
        return frozenset(each for each in get_args(annotation) if isinstance(each, str))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return frozenset(annotation)
    own = METRICS if annotation == dict[str, float] else frozenset()
    return own.union(*(_choices(part) for part in get_args(annotation)))


@cache
def _source(file: str) -> tuple[int, frozenset[str]]:
    """Lines of a module of this package, and names of its functions; 0 lines if there is no such module."""
    path = Path(zhongjing.__file__).parents[1] / file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    names = set(re.findall(r"\b(?:def|class)\s+(\w+)", text))
    return text.count("\n"), frozenset(names | {"<module>", "<lambda>", "<genexpr>"})


def _frame(file: str, line: str, function: str) -> list[str]:
    """A frame of our own package; nothing if this release has no such line."""
    lines, functions = _source(file)
    return [f"{file}:{line}:{known(function, functions)}"] if 0 < int(line) <= lines else []
