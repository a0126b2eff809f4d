"""Finds the release of the chart that a command speaks to: a ConfigMap of the namespace describes each."""

from __future__ import annotations

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, NAMESPACES, Object
from zhongjing.codes import cluster as codes
from zhongjing.config.release import RELEASE_KEY, ReleaseConfig, parse_release
from zhongjing.errors import BackendError

CONFIG_LABELS = "app.kubernetes.io/part-of=zhongjing,app.kubernetes.io/component=config"
"""Selects the ConfigMaps that describe releases."""

_INSTANCE = "app.kubernetes.io/instance"


def find_release(api: KubeApi, name: str | None = None) -> ReleaseConfig:
    """The release in the namespace of ``api``.

    Raises:
        BackendError: there is none (of that name), or there are several and none was named; or the API does
            not answer or refuses.
        ConfigError: the release is of another version.
    """
    found = {_name(each): each for each in _configs(api)}
    if name is None and len(found) > 1:
        raise BackendError(
            f"there are several releases in the namespace {api.namespace}: {', '.join(sorted(found))}",
            code=codes.SEVERAL_RELEASES,
            remedy=f"name one: --release {min(found)}",
        )
    chosen = name if name is not None else next(iter(found), None)
    if chosen is None or chosen not in found:
        raise _missing(api, name, sorted(found))
    config = found[chosen]
    where = f"{api.namespace}/configmaps/{config['metadata']['name']}"
    return parse_release(str(config["data"][RELEASE_KEY]), where)


def installed(api: KubeApi) -> list[str]:
    """Names of the releases in the namespace of ``api``, sorted."""
    return sorted({_name(each) for each in _configs(api)})


def _configs(api: KubeApi, *, everywhere: bool = False) -> list[Object]:
    found = api.find(CONFIG_MAPS, labels=CONFIG_LABELS, everywhere=everywhere).items
    # The chart keeps other settings of a release in ConfigMaps with the same labels.
    return [each for each in found if RELEASE_KEY in (each.get("data") or {})]


def _name(config: Object) -> str:
    metadata = config["metadata"]
    return str((metadata.get("labels") or {}).get(_INSTANCE) or metadata["name"])


def _missing(api: KubeApi, name: str | None, there: list[str]) -> BackendError:
    place = f"the namespace {api.namespace}"
    if api.context is not None:
        place += f" (context {api.context})"
    if there:
        remedy = f"there is: {', '.join(there)}"
        return BackendError(f"there is no release {name!r} in {place}", code=codes.NO_RELEASE, remedy=remedy)
    message = f"Zhongjing is not installed in {place}"
    if elsewhere := _elsewhere(api, name):
        shown = ", ".join(f"{namespace} ({release})" for namespace, release in elsewhere[:5])
        remedy = f"add -n {elsewhere[0][0]}"
        return BackendError(f"{message}, but in: {shown}", code=codes.NO_RELEASE, remedy=remedy)
    exists = _exists(api)
    return BackendError(
        message + ("" if exists else ", which does not exist"),
        code=codes.NO_RELEASE,
        remedy="name its namespace with -n, or install it: "
        f"`helm install zhongjing ./helm -n {api.namespace}{'' if exists else ' --create-namespace'}`; "
        "--local runs on this machine",
    )


def _elsewhere(api: KubeApi, name: str | None) -> list[tuple[str, str]]:
    """Namespaces that have a release, with its name; nothing where this user may not look."""
    try:
        configs = _configs(api, everywhere=True)
    except BackendError:
        return []
    found = sorted((str(each["metadata"]["namespace"]), _name(each)) for each in configs)
    return [entry for entry in found if name is None or entry[1] == name]


def _exists(api: KubeApi) -> bool:
    try:
        return api.get(NAMESPACES, api.namespace) is not None
    except BackendError:
        return True  # who may not look gets no hint
