"""Which backend a command speaks to: this machine's workdir, or a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.ray import NO_CLUSTER
from zhongjing.errors import BackendError, ConfigError

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def local_workdir(
    *,
    local: bool,
    workdir: Path | None,
    namespace: str | None = None,
    context: str | None = None,
    release: str | None = None,
    strict: bool = False,
) -> Path:
    """The workdir of a local run.

    ``--local`` and ``--workdir`` say so plainly. Without them a command that only looks (``strict=False``)
    takes the default workdir when it is there and nothing points to a cluster.

    Args:
        local: whether ``--local`` was given.
        workdir: ``--workdir``, if given.
        namespace: ``--namespace``, if given; belongs to a cluster, like the next two.
        context: ``--context``, if given.
        release: ``--release``, if given.
        strict: only ``--local`` means this machine (submit).

    Raises:
        ConfigError: options of a cluster beside ``--local``.
        BackendError: no cluster can be reached.
    """
    cluster = {"--namespace": namespace, "--context": context, "--release": release}
    given = [name for name, value in cluster.items() if value is not None]
    if local and given:
        raise ConfigError(
            f"{' and '.join(given)} belong to a cluster, --local to this machine",
            code=INVALID_OPTION,
            remedy="leave one of them out",
        )
    if local or (workdir is not None and not strict and not given):
        return workdir or DEFAULT_WORKDIR
    kubeconfig = find_kubeconfig(context)
    if kubeconfig is None and not strict and not given and DEFAULT_WORKDIR.is_dir():
        return DEFAULT_WORKDIR
    raise _no_cluster(kubeconfig)


def _no_cluster(kubeconfig: str | None) -> BackendError:
    if kubeconfig is None:
        return BackendError(
            "there is no cluster: no usable kubeconfig was found",
            code=NO_CLUSTER,
            remedy="add --local to run on this machine, or point KUBECONFIG to a cluster",
        )
    return BackendError(
        "this version does not submit to clusters yet",
        code=NO_CLUSTER,
        where=kubeconfig,
        remedy="add --local to run on this machine",
    )


def find_kubeconfig(context: str | None = None) -> str | None:
    """The file (or service account) through which a cluster can be reached, None if there is none.

    The rules are kubectl's: the files of ``KUBECONFIG``, else ``~/.kube/config``, else the pod's account.

    Raises:
        ConfigError: ``context`` was asked for and no kubeconfig has it.
    """
    listed = os.environ.get("KUBECONFIG", "")
    files = [Path(part) for part in listed.split(os.pathsep) if part]
    if not files:
        files = [Path("~/.kube/config").expanduser()]
    known: list[str] = []
    for file in files:
        contexts, current = _contexts(file)
        known.extend(contexts)
        if (context is None and current in contexts) or (context is not None and context in contexts):
            return str(file)
    if context is not None:
        raise ConfigError(
            f"the kubeconfig has no context {context!r}",
            code=INVALID_OPTION,
            where="--context",
            remedy=f"the contexts are: {', '.join(known)}" if known else "add --local to run on this machine",
        )
    if "KUBERNETES_SERVICE_HOST" in os.environ and _SERVICE_ACCOUNT.is_file():
        return str(_SERVICE_ACCOUNT)
    return None


def _contexts(file: Path) -> tuple[list[str], str | None]:
    """Names of a kubeconfig's contexts, and the current one; nothing for a file that is none."""
    import yaml

    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return [], None
    if not isinstance(data, dict) or not data.get("clusters"):
        return [], None
    entries = data.get("contexts") or []
    names = [str(entry["name"]) for entry in entries if isinstance(entry, dict) and "name" in entry]
    current = data.get("current-context")
    return names, str(current) if current else None
