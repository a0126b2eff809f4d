"""The chart, rendered by helm without a cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from zhongjing.backends.kubernetes.provision import KEY
from zhongjing.config.release import ReleaseConfig, parse_release

CHART = Path(__file__).parents[2] / "helm"
TINY = CHART / "values-tiny.yaml"
RAY_CLUSTERS = "ray.io/v1/RayCluster"
REAL = "apps/v1/Deployment"  # a kind of Kubernetes' own: what only a cluster says that it serves
PIPELINES = "training.zhongjing.dev/v1alpha1/TrainingPipeline"
PROVISIONERS = ("static", "kuberay")
RELEASE, NAMESPACE = "zj", "training"
FULLNAME = "zj-zhongjing"

Object = dict[str, Any]
Values = Mapping[str, Any]
Path_ = tuple[str, ...]


class ChartError(Exception):
    """helm refused; the message is what a user sees."""


def helm_binary() -> str:
    found = shutil.which("helm")
    assert found is not None, "helm is not on PATH"
    return found


def helm(*arguments: str, values: Values | None = None) -> str:
    """Runs helm; ``values`` go in by standard input."""
    command = [helm_binary(), *arguments]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command,
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        raise ChartError(done.stderr)
    return done.stdout


def render_text(
    values: Values | None = None,
    *,
    provisioner: str | None = None,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    files: Iterable[Path] = (),
    served: Iterable[str] = (RAY_CLUSTERS, PIPELINES),
    chart: Path = CHART,
    only: str | None = None,
) -> str:
    """What ``helm install`` would send, as text.

    Args:
        values: over the chart's.
        provisioner: sets ``ray.provisioner``; None leaves it.
        release: name of the release.
        namespace: of the release.
        files: values files.
        served: kinds that the cluster is taken to serve beside Kubernetes' own.
        chart: another one.
        only: this template alone.
    """
    arguments = ["template", release, str(chart), "--namespace", namespace, "--kube-version", "1.29.0"]
    if only is not None:
        arguments += ["--show-only", only]
    for kind in served:
        arguments += ["--api-versions", kind]
    for file in files:
        arguments += ["--values", str(file)]
    if provisioner is not None:
        arguments += ["--set", f"ray.provisioner={provisioner}"]
    return helm(*arguments, values=values or {})


def notes(values: Values | None = None, *, chart: Path, **options: Any) -> str:
    """What ``helm install`` says at its end; it needs a cluster, so a template of a copy includes it.

    Args:
        values: over the chart's.
        chart: an empty folder, for the copy.
        options: as :func:`render_text` has them.
    """
    shutil.copytree(CHART, chart, dirs_exist_ok=True)
    kind = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: "
    text = '{{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}\n'
    (chart / "templates" / "notes.yaml").write_text(kind + text, encoding="utf-8")
    said = yaml.safe_load(render_text(values, chart=chart, only="templates/notes.yaml", **options))
    return str(said["data"]["notes"])


def render(values: Values | None = None, **options: Any) -> list[Object]:
    """The objects that ``helm install`` would send, and those that the controller makes of them.

    Options as :func:`render_text` has them.

    The same values are rendered once only, as two renders are equal (a test holds that). The objects are
    shared and not to be changed.
    """
    key = json.dumps([values or {}, options], sort_keys=True, default=str)
    if key not in _RENDERED:
        text = render_text(values, **options)
        objects = [each for each in yaml.load_all(text, _LOADER) if each]
        _RENDERED[key] = (*objects, *described(objects))
    return list(_RENDERED[key])


def described(objects: Iterable[Object]) -> list[Object]:
    """The workloads that the controller makes, of the ConfigMaps that describe them."""
    return [json.loads(each["data"][KEY]) for each in of_kind(objects, "ConfigMap") if KEY in each["data"]]


def rendered(provisioner: str, *files: Path) -> list[Object]:
    """The objects of the defaults, or of values files."""
    return render(provisioner=provisioner, files=files)


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RENDERED: dict[str, tuple[Object, ...]] = {}


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def named(objects: Iterable[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pod_templates(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that the objects make: a name, and its template."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield name, each["spec"]["template"]
        elif each["kind"] == "Pod":
            yield name, {"metadata": each["metadata"], "spec": each["spec"]}
        elif each["kind"] == "RayCluster":
            yield f"{name}/head", each["spec"]["headGroupSpec"]["template"]
            for group in each["spec"]["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*spec["containers"], *spec.get("initContainers", [])]


def environment(container: Object) -> dict[str, Any]:
    """Name to value, or to where the value is from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def release_config(objects: Iterable[Object]) -> ReleaseConfig:
    """The configuration of the release, read as controller and command line read it."""
    (text,) = [each["data"]["release.yaml"] for each in objects if "release.yaml" in each.get("data", {})]
    return parse_release(text, "release.yaml")


def chart_values() -> Object:
    loaded: Object = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return loaded


def leaves(values: Values, path: Path_ = ()) -> Iterator[Path_]:
    """Paths of the keys that hold no further keys."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


MISSING = object()


def value_at(values: Any, path: Path_) -> Any:
    """The value at a path, or MISSING."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return MISSING
        values = values[key]
    return values


def without(values: Values, path: Path_) -> Object:
    """A copy without the key at a path."""
    changed = deepcopy(dict(values))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects what has these labels."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or []:
        here = labels.get(term["key"])
        holds = {
            "In": here in term.get("values", []),
            "NotIn": here not in term.get("values", []),
            "Exists": here is not None,
            "DoesNotExist": here is None,
        }[term["operator"]]
        if not holds:
            return False
    return True
