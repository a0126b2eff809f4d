"""A release on a cluster, from outside: definition, controller, pods, nodes, quotas, Secrets, store, clock.

Nothing is written, and no pod is started: what only a pod can see is told as ``helm test`` and the controller
saw it. A right that is missing is one line, and the other checks go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

from zhongjing import __version__
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.diagnosis import ALL, CONTROLLER, Explainer
from zhongjing.backends.kubernetes.provision import worker_pods
from zhongjing.backends.kubernetes.releases import find_release
from zhongjing.backends.kubernetes.resources import (
    CLAIMS,
    DEFINITIONS,
    DEPLOYMENTS,
    PIPELINES,
    PODS,
    SECRETS,
    Object,
)
from zhongjing.backends.kubernetes.secrets import check_secrets
from zhongjing.backends.kubernetes.workloads import INSTANCE, pod_labels
from zhongjing.cli.diagnosis.capacity import check_capacity
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, graded, of_error, skew, warn
from zhongjing.codes import cluster as codes
from zhongjing.codes import find as find_code
from zhongjing.codes import pods as pod_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendUnavailableError, ZhongjingError
from zhongjing.pipeline.state import ConditionType

if TYPE_CHECKING:
    from zhongjing.cli.diagnosis.checks import Situation

FIELDS = "crd_fields.txt"  # generated: what this version writes
_SHOWN = 4  # fields in one line
# What may come right by itself, unless a finding says that it cannot.
_PASSING = (pod_codes.POD_STARTING, pod_codes.POD_UNSCHEDULABLE, pod_codes.WORKLOAD_MISSING)
_KUBERAY = (pod_codes.KUBERAY_MISSING, pod_codes.KUBERAY_NOT_RUNNING, pod_codes.PROVISIONER_MISMATCH)
_OPERATOR = "app.kubernetes.io/name=kuberay-operator"
_REGISTRY_KEYS = {".dockerconfigjson", ".dockercfg"}


def cluster(situation: Situation) -> Iterator[Finding]:
    """Looks at the cluster and the release that the options name."""
    target = situation.cluster
    if target is None:
        yield fine("cluster", "not checked: no release was named (-n NAMESPACE; it takes a kubeconfig)")
        return
    api = connect(target.context, target.namespace)
    try:
        yield from look(api, target.release, situation.document)
    finally:
        api.close()


def look(
    api: KubeApi, name: str | None = None, document: TrainingPipeline | None = None
) -> Iterator[Finding]:
    """Looks at one release.

    Args:
        api: the cluster; its namespace is the release's.
        name: of the release, where there are several.
        document: whose stages should find room.

    Raises:
        BackendUnavailableError: the API does not answer.
    """
    ahead = api.clock_skew()
    yield fine("api", f"{api.address} answers; the namespace is {api.namespace}")
    if ahead is not None:
        yield skew("cluster clock", ahead, "the API server", "certificates and tokens are refused")
    yield from _part("crd", definition, api)
    try:
        release = find_release(api, name)
    except ZhongjingError as error:
        yield _refused("release", error)
        return
    about = f"{release.release}: chart {release.chart_version}, image {release.image}, {release.provisioner}"
    other = release.chart_version != __version__
    more = f"; this command line is {__version__}"
    yield graded("release", about, codes.INVALID_RELEASE, poor=other, more=more)
    yield from _part("controller", controller, api, release)
    yield from _part("pods", pods, api, release)
    yield from check_capacity(api, release, document, _part)
    for run in (secrets, images, volumes, store, network):
        yield from _part(run.__name__, run, api, release)


def _part(name: str, run: Callable[..., Iterable[Finding]], *arguments: object) -> list[Finding]:
    """One part's findings; what it may not read, or cannot, is a finding too."""
    try:
        return list(run(*arguments))
    except BackendUnavailableError:
        raise
    except ZhongjingError as error:
        return [_refused(name, error)]


def _refused(name: str, error: ZhongjingError) -> Finding:
    if error.code is codes.FORBIDDEN:
        return warn(name, f"not checked: {error.message}", codes.FORBIDDEN, error.remedy)
    return of_error(name, error)


# The definition


def definition(api: KubeApi) -> Iterator[Finding]:
    """TrainingPipelines are known, with the fields that this version writes."""
    if not api.serves(PIPELINES):
        yield fails("crd", f"the cluster does not know {PIPELINES.full_name}", codes.CRD_MISSING)
        return
    there = api.get(DEFINITIONS, PIPELINES.full_name)
    own = set((resources.files("zhongjing.cli.diagnosis") / FIELDS).read_text(encoding="utf-8").split())
    others = definition_fields(there or {})
    version = f"{PIPELINES.full_name}, {PIPELINES.version}"
    if own - others:
        lacking = _listed(own - others)
        yield fails("crd", f"{version} lacks what version {__version__} writes: {lacking}", codes.CRD_VERSION)
    elif others - own:
        yield warn(
            "crd", f"{version} is newer than this command line: {_listed(others - own)}", codes.CRD_VERSION
        )
    else:
        yield fine("crd", f"{version} has the {len(own)} fields of version {__version__}")


def definition_fields(definition: Object) -> set[str]:
    """Paths of all fields of the definition's version that this release speaks."""
    versions = (definition.get("spec") or {}).get("versions") or []
    found: set[str] = set()
    for version in versions:
        if version["name"] == PIPELINES.version:
            for part in ("spec", "status"):
                properties = version["schema"]["openAPIV3Schema"].get("properties") or {}
                found.update(_paths(properties.get(part) or {}, part))
    return found


def _paths(schema: dict[str, Any], path: str) -> Iterator[str]:
    yield path
    for name, field in (schema.get("properties") or {}).items():
        yield from _paths(field, f"{path}.{name}")
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from _paths(schema[below], f"{path}[]")


def _listed(fields: set[str]) -> str:
    """The topmost of these fields, a few by name."""
    top = sorted(each for each in fields if each.removesuffix("[]").rpartition(".")[0] not in fields)
    more = f" and {len(top) - _SHOWN} more" if len(top) > _SHOWN else ""
    return ", ".join(top[:_SHOWN]) + more


# The release


def controller(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """Whether a controller is ready."""
    found = api.find(DEPLOYMENTS, labels=pod_labels(release, CONTROLLER)).items
    if not found:
        yield fails("controller", "its Deployment does not exist", pod_codes.WORKLOAD_MISSING)
        return
    name, status = found[0]["metadata"]["name"], found[0].get("status") or {}
    asked, ready = int(found[0]["spec"].get("replicas", 1)), int(status.get("readyReplicas") or 0)
    about = f"deployment/{name}: {ready} of {asked} replicas ready"
    more = "" if asked and ready else ": nothing looks after pipelines"
    scale = f"`kubectl -n {release.namespace} scale deployment {name} --replicas=2`"
    remedy = None if asked else scale
    bad, poor = not (asked and ready), ready < asked
    yield graded("controller", about, codes.POD_NOT_READY, bad=bad, poor=poor, more=more, remedy=remedy)


def pods(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """What keeps pods of the release: images, nodes, volumes, crashes, KubeRay."""
    # The explainer leaves out what it may not read.
    there = api.find(PODS, labels=pod_labels(release, *ALL)).items
    obstacles = Explainer(api, release).findings()
    if release.provisioner == "kuberay" and not any(each.code in _KUBERAY for each in obstacles):
        yield fine("kuberay", f"its operator looks after raycluster/{release.ray.cluster}")
    for each in obstacles:
        name = "kuberay" if each.code in _KUBERAY else "pods"
        tell = fails if each.fatal or each.code not in _PASSING else warn
        yield tell(name, str(each), each.code, each.remedy)
    if not obstacles:
        yield fine("pods", f"all {len(there)} serve, their images were pulled")
    if release.provisioner == "kuberay":
        yield from _part("operator", operator, api)


def operator(api: KubeApi) -> Iterator[Finding]:
    """Which version of KubeRay's operator runs; a provider may run it out of sight."""
    found = api.find(DEPLOYMENTS, labels=_OPERATOR, everywhere=True).items
    if not found:
        yield fine("operator", "no Deployment of KubeRay's is seen: the cluster's provider may run it")
        return
    metadata, ready = found[0]["metadata"], int((found[0].get("status") or {}).get("readyReplicas") or 0)
    image = found[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    about = f"deployment/{metadata['name']} in {metadata['namespace']}, {image}: {ready} replicas ready"
    yield graded("operator", about, pod_codes.KUBERAY_NOT_RUNNING, bad=ready == 0)


def secrets(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """The store's credentials and Ray's token are there and can be used. No value is told."""
    wrong = check_secrets(api, release)
    for each in wrong:
        yield fails("secrets", str(each), each.code, each.remedy)
    if not wrong:
        store = release.storage.secret or "none for the store (the pods' own role)"
        about = f"Ray's token ({release.ray.token_secret}) and the store's keys ({store}) are there"
        yield fine("secrets", about)


def images(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """Pull secrets that pods name are there; what a pod could not pull, the line ``pods`` tells."""
    there = api.find(PODS, labels=pod_labels(release, *ALL)).items
    specs = [*(pod["spec"] for pod in there), *worker_pods(api, release).values()]
    names = sorted({each["name"] for spec in specs for each in spec.get("imagePullSecrets") or []})
    missing = [
        name for name in names if not _REGISTRY_KEYS & set((api.get(SECRETS, name) or {}).get("data") or {})
    ]
    for name in missing:
        said = f"secret/{name} is missing or no login of a registry: images are pulled without it"
        remedy = f"`kubectl create secret docker-registry {name}`, or correct image.pullSecrets"
        yield warn("images", said, pod_codes.IMAGE_PULL_FAILED, remedy)
    if not missing:
        yield fine("images", f"pull secrets: {', '.join(names) or 'none is named'}")


def volumes(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """Volume claims of the release are bound."""
    bound = []
    claims = api.find(CLAIMS, labels=f"{INSTANCE}={release.release}").items
    for claim in claims:
        name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase", "Pending")
        if phase == "Bound":
            bound.append(name)
            continue
        remedy = f"`kubectl -n {release.namespace} describe pvc {name}` says why"
        yield fails("volumes", f"pvc/{name} is {phase}", pod_codes.VOLUME_PENDING, remedy)
    if not claims:
        yield fine("volumes", "the release has no claims")
    elif len(bound) == len(claims):
        yield fine("volumes", f"{len(bound)} claims are bound ({', '.join(bound)})")


# What only pods see


def store(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """What the controller says of the store: it uses it from inside, with the release's credentials."""
    told = set()
    for pipeline in api.find(PIPELINES).items:
        for each in (pipeline.get("status") or {}).get("conditions") or []:
            code = find_code(str(each.get("reason")))
            known = code in (*storage_codes.GROUP.codes, *storage_codes.SETTINGS.codes)
            if known and code is not None and each.get("status") == "True" and code not in told:
                told.add(code)
                since = f" since {each['lastTransitionTime']}" if "lastTransitionTime" in each else ""
                said = f"the controller, for {pipeline['metadata']['name']}{since}: {each.get('message', '')}"
                # A pipeline that failed long ago says nothing of the store as it is.
                ended = each.get("type") == ConditionType.FAILED
                yield (warn if ended else fails)("store", said, code, each.get("remedy"))
    if not told:
        at = f"{release.storage.uri} at {release.storage.endpoint or 'AWS'}"
        yield fine("store", f"{at}: the controller tells of no trouble with it")


def network(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """What the pod of the last ``helm test`` found between pods, and of the store from a pod."""
    test = f"helm test {release.release} -n {release.namespace}"
    if api.context is not None:
        test += f" --kube-context {api.context}"
    pod = api.get(PODS, f"{release.fullname}-verify")
    status = (pod or {}).get("status") or {}
    state = ((status.get("containerStatuses") or [{}])[0].get("state") or {}).get("terminated") or {}
    at = state.get("finishedAt")
    if status.get("phase") == "Succeeded":
        yield fine("network", f"a pod reached Ray and the store in the last `{test}` ({at})")
    elif status.get("phase") == "Failed":
        lines = str(state.get("message", "")).splitlines()
        wrong = [line.removeprefix("failed").strip() for line in lines if line.startswith("failed")]
        said = "; ".join(wrong) or status.get("message") or "its log says why"
        yield fails("network", f"the last `{test}` failed ({at}): {said}", pod_codes.POD_CRASHES, f"`{test}`")
    else:
        said = f"not checked from here: `{test}` tries it between pods, and the store from a pod"
        yield fine("network", said)
