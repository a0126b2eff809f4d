"""A release on a cluster, from outside: definition, controller, pods, nodes, quotas, Secrets, volumes, clock.

Nothing is written, and no pod is started: what only a pod can see ``helm test`` tries. A right that is
missing is one line, and the other checks go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

from zhongjing import __version__
from zhongjing.cli.diagnosis.clock import judge_skew
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, of_error, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import cluster as codes
from zhongjing.codes import pods as pod_codes
from zhongjing.errors import BackendUnavailableError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.api import KubeApi
    from zhongjing.backends.kubernetes.resources import Object
    from zhongjing.config.pipeline import TrainingPipeline
    from zhongjing.config.release import ReleaseConfig

FIELDS = "crd_fields.txt"  # generated: what this version writes
_SHOWN = 4  # fields in one line
# What may come right by itself, unless a finding says that it cannot.
_PASSING = (pod_codes.POD_STARTING, pod_codes.POD_UNSCHEDULABLE, pod_codes.WORKLOAD_MISSING)
_KUBERAY = (pod_codes.KUBERAY_MISSING, pod_codes.KUBERAY_NOT_RUNNING, pod_codes.PROVISIONER_MISMATCH)


def check(situation: Situation) -> Iterator[Finding]:
    """Looks at the cluster and the release that the options name."""
    from zhongjing.backends.kubernetes.api import connect

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
    from zhongjing.backends.kubernetes.releases import find_release
    from zhongjing.cli.diagnosis.capacity import check_capacity

    skew = api.clock_skew()
    yield fine("api", f"{api.address} answers; the namespace is {api.namespace}")
    if skew is not None:
        yield judge_skew("cluster clock", skew, "the API server", "certificates and tokens are refused")
    yield from _part("crd", lambda: check_definition(api))
    try:
        release = find_release(api, name)
    except ZhongjingError as error:
        yield _refused("release", error)
        return
    yield from check_release(api, release)
    yield from _part("pods", lambda: check_pods(api, release))
    yield from check_capacity(api, release, document, _part)
    yield from _part("secrets", lambda: check_secrets(api, release))
    yield from _part("volumes", lambda: check_volumes(api, release))
    test = f"helm test {release.release} -n {release.namespace}"
    if api.context is not None:
        test += f" --kube-context {api.context}"
    yield fine("network", f"not checked from here: `{test}` tries it between pods, and the store from a pod")


def _part(name: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """One part's findings; what it may not read, or cannot, is a finding too."""
    try:
        return list(run())
    except BackendUnavailableError:
        raise
    except ZhongjingError as error:
        return [_refused(name, error)]


def _refused(name: str, error: ZhongjingError) -> Finding:
    if error.code is codes.FORBIDDEN:
        return warn(name, f"not checked: {error.message}", codes.FORBIDDEN, error.remedy)
    return of_error(name, error)


# The definition


def check_definition(api: KubeApi) -> Iterator[Finding]:
    """TrainingPipelines are known, with the fields that this version writes."""
    from zhongjing.backends.kubernetes.resources import DEFINITIONS, PIPELINES

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
    from zhongjing.backends.kubernetes.resources import PIPELINES

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


def check_release(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """Chart and command line are of one version, and a controller is ready."""
    about = f"{release.release}: chart {release.chart_version}, image {release.image}, {release.provisioner}"
    if release.chart_version != __version__:
        yield warn("release", f"{about}; this command line is {__version__}", codes.INVALID_RELEASE)
    else:
        yield fine("release", about)
    yield from _part("controller", lambda: [_controller(api, release)])


def _controller(api: KubeApi, release: ReleaseConfig) -> Finding:
    from zhongjing.backends.kubernetes.diagnosis import CONTROLLER
    from zhongjing.backends.kubernetes.resources import DEPLOYMENTS
    from zhongjing.backends.kubernetes.workloads import pod_labels

    found = api.find(DEPLOYMENTS, labels=pod_labels(release, CONTROLLER)).items
    if not found:
        return fails("controller", "its Deployment does not exist", pod_codes.WORKLOAD_MISSING)
    name, status = found[0]["metadata"]["name"], found[0].get("status") or {}
    asked, ready = int(found[0]["spec"].get("replicas", 1)), int(status.get("readyReplicas") or 0)
    about = f"deployment/{name}: {ready} of {asked} replicas ready"
    if asked == 0:
        remedy = f"`kubectl -n {release.namespace} scale deployment {name} --replicas=2`"
        return fails("controller", f"{about}: nothing looks after pipelines", codes.POD_NOT_READY, remedy)
    if ready == 0:
        return fails("controller", f"{about}: nothing looks after pipelines", codes.POD_NOT_READY)
    return warn("controller", about, codes.POD_NOT_READY) if ready < asked else fine("controller", about)


def check_pods(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """What keeps pods of the release: images, nodes, volumes, crashes, KubeRay."""
    from zhongjing.backends.kubernetes.diagnosis import ALL, Explainer
    from zhongjing.backends.kubernetes.resources import PODS
    from zhongjing.backends.kubernetes.workloads import pod_labels

    pods = api.find(
        PODS, labels=pod_labels(release, *ALL)
    ).items  # the explainer leaves out what it may not read
    obstacles = Explainer(api, release).findings()
    operated = not any(each.code in _KUBERAY for each in obstacles)
    if release.provisioner == "kuberay" and operated:
        yield fine("kuberay", f"its operator looks after raycluster/{release.ray.cluster}")
    for each in obstacles:
        name = "kuberay" if each.code in _KUBERAY else "pods"
        tell = fails if each.fatal or each.code not in _PASSING else warn
        yield tell(name, str(each), each.code, each.remedy)
    if not obstacles:
        yield fine("pods", f"all {len(pods)} serve, their images were pulled")


def check_secrets(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """The store's credentials and Ray's token are there and can be used. No value is told."""
    from zhongjing.backends.kubernetes import secrets

    wrong = secrets.check_secrets(api, release)
    for each in wrong:
        yield fails("secrets", str(each), each.code, each.remedy)
    if not wrong:
        store = release.storage.secret or "none for the store (the pods' own role)"
        yield fine(
            "secrets", f"Ray's token ({release.ray.token_secret}) and the store's keys ({store}) are there"
        )


def check_volumes(api: KubeApi, release: ReleaseConfig) -> Iterator[Finding]:
    """Volume claims of the release are bound."""
    from zhongjing.backends.kubernetes.resources import CLAIMS
    from zhongjing.backends.kubernetes.workloads import INSTANCE

    claims = api.find(CLAIMS, labels=f"{INSTANCE}={release.release}").items
    for claim in claims:
        name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase", "Pending")
        if phase != "Bound":
            remedy = f"`kubectl -n {release.namespace} describe pvc {name}` says why"
            yield fails("volumes", f"pvc/{name} is {phase}", pod_codes.VOLUME_PENDING, remedy)
    bound = [each for each in claims if (each.get("status") or {}).get("phase") == "Bound"]
    if len(bound) == len(claims):
        names = ", ".join(each["metadata"]["name"] for each in bound)
        yield fine(
            "volumes", f"{len(bound)} claims are bound ({names})" if bound else "the release has no claims"
        )
