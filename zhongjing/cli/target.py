"""Where a command works: a work directory of this machine, or a release on a cluster.

Both open the session that runs are seen and steered through, and both make the command lines that messages
name.
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zhongjing.cli.options import (
    DEFAULT_RECIPE,
    DEFAULT_WORKDIR,
    KubeContext,
    Local,
    Namespace,
    Release,
    Workdir,
)
from zhongjing.codes.command import INVALID_OPTION, UNKNOWN_PIPELINE
from zhongjing.codes.document import UNKNOWN_STAGE
from zhongjing.codes.local import UNUSABLE_WORKDIR
from zhongjing.codes.ray import NO_CLUSTER, NOTHING_RUNS
from zhongjing.config.commands import Commands
from zhongjing.config.resolve import recipe_names
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
    from zhongjing.pipeline.session import Session
    from zhongjing.pipeline.state import DesiredState

_R = TypeVar("_R")

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_OPTIONS = {
    "local": (Local, False),
    "workdir": (Workdir, None),
    "namespace": (Namespace, None),
    "context": (KubeContext, None),
    "release": (Release, None),
}


@dataclass(frozen=True)
class LocalTarget:
    """This machine. What runs there is kept in ``workdir``."""

    workdir: Path

    @property
    def flags(self) -> str:
        """The options that name the target."""
        words = ["--local"]
        if self.workdir != DEFAULT_WORKDIR:
            words += ["--workdir", str(self.workdir)]
        return shlex.join(words)

    def open(self, *, create: bool = False) -> Session:
        """The session of the work directory.

        Args:
            create: make the directory where there is none.

        Raises:
            ConfigError: the directory cannot be made.
            BackendError: there is none, or its services do not start.
        """
        if create:
            try:
                # It holds corpora and keys from the start.
                self.workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise ConfigError(
                    f"cannot be made: {error.strerror or error}",
                    code=UNUSABLE_WORKDIR,
                    where=f"--workdir {self.workdir}",
                ) from error
        elif not self.workdir.is_dir():
            raise BackendError(
                "nothing was run here yet",
                code=NOTHING_RUNS,
                where=str(self.workdir),
                remedy="start a run with: `zhongjing submit --local`, or give its folder with --workdir",
            )
        return OPENER.get()(self.workdir, True)


@dataclass(frozen=True)
class ClusterTarget:
    """A release on a cluster; None: the context's namespace, the current context, the only release."""

    namespace: str | None = None
    context: str | None = None
    release: str | None = None

    @property
    def flags(self) -> str:
        """The options that name the target, as they were given."""
        given = {"-n": self.namespace, "--context": self.context, "--release": self.release}
        return shlex.join(word for name, value in given.items() if value for word in (name, value))

    def open(self) -> KubernetesSession:
        """The session of the release.

        Raises:
            BackendError: the cluster cannot be reached, or has no release there.
        """
        return CLUSTER_OPENER.get()(self)


Target = LocalTarget | ClusterTarget

Opener = Callable[[Path, bool], "Session"]
"""Opens the session of a workdir; the flag says whether its services may be started."""

ClusterOpener = Callable[[ClusterTarget], "KubernetesSession"]
"""Opens the session of a release."""


def _open_local(workdir: Path, start: bool) -> Session:
    from zhongjing.backends.local.session import LocalSession

    return LocalSession.open(workdir, start=start, flags=LocalTarget(workdir).flags)


def _open_cluster(target: ClusterTarget) -> KubernetesSession:
    from zhongjing.backends.kubernetes.session import KubernetesSession

    return KubernetesSession.open(namespace=target.namespace, context=target.context, release=target.release)


OPENER: ContextVar[Opener] = ContextVar("OPENER", default=_open_local)
"""What opens local sessions. Tests put a session in memory here."""

CLUSTER_OPENER: ContextVar[ClusterOpener] = ContextVar("CLUSTER_OPENER", default=_open_cluster)
"""What opens sessions on clusters. Tests put a session in memory here."""


def choose(
    *,
    local: bool,
    workdir: Path | None,
    namespace: str | None = None,
    context: str | None = None,
    release: str | None = None,
    strict: bool = False,
) -> Target:
    """The target that the options name.

    ``--local`` and ``--workdir`` mean this machine, and so does a machine without a kubeconfig for commands
    that only look (``strict=False``) where the default workdir is there. Else it is the cluster.

    Args:
        local: whether ``--local`` was given.
        workdir: ``--workdir``, if given.
        namespace: ``--namespace``, if given; belongs to a cluster, like the next two.
        context: ``--context``, if given.
        release: ``--release``, if given.
        strict: only ``--local`` means this machine (submit).

    Raises:
        ConfigError: options of a cluster beside those of this machine, or an unknown context.
        BackendError: there is no kubeconfig.
    """
    cluster = {"--namespace": namespace, "--context": context, "--release": release}
    given = [name for name, value in cluster.items() if value is not None]
    mine = "--local" if local else "--workdir" if workdir is not None else None
    if mine is not None and given:
        raise ConfigError(
            f"{' and '.join(given)} belong to a cluster, {mine} to this machine",
            code=INVALID_OPTION,
            remedy="leave one of them out",
        )
    if strict and workdir is not None and not local:
        raise ConfigError("--workdir is the folder of a local run", code=INVALID_OPTION, remedy="add --local")
    if mine is not None:
        return LocalTarget(workdir or DEFAULT_WORKDIR)
    if find_kubeconfig(context) is not None:
        return ClusterTarget(namespace, context, release)
    if not strict and not given and DEFAULT_WORKDIR.is_dir():
        return LocalTarget(DEFAULT_WORKDIR)
    raise BackendError(
        "there is no cluster: no usable kubeconfig was found",
        code=NO_CLUSTER,
        remedy="add --local to run on this machine, or point KUBECONFIG to a cluster",
    )


def on_target(
    *, strict: bool = False, check: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> Callable[[Callable[..., _R]], Callable[..., _R]]:
    """Gives a command the options that name a target. It is called with what they mean, as ``target``.

    Args:
        strict: as in :func:`choose`.
        check: refuses the command's own options, whether there is a cluster or not.
    """

    def decorate(command: Callable[..., _R]) -> Callable[..., _R]:
        @functools.wraps(command)
        def run(**given: Any) -> _R:
            chosen = {name: given.pop(name) for name in _OPTIONS}
            check(given)
            return command(target=choose(**chosen, strict=strict), **given)

        own = inspect.signature(command, eval_str=True).parameters
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in _OPTIONS.items()
        ]
        shown = [*(each for name, each in own.items() if name != "target"), *added]
        run.__dict__["__signature__"] = inspect.Signature(shown)
        run.__annotations__ = {each.name: each.annotation for each in shown}
        return run

    return decorate


def commands_of(options: Mapping[str, Any]) -> Commands:
    """The command lines for the target and the document that the options of a command name."""
    given = {name: options.get(name) for name in ("namespace", "context", "release")}
    here = bool(options.get("local") or options.get("workdir"))
    flags: str | None = None
    if here or "namespace" in options:  # else a command without a target, or of this machine only
        with suppress(ZhongjingError):  # the very error, perhaps
            strict = "overrides" in options
            flags = choose(local=here, workdir=options.get("workdir"), **given, strict=strict).flags
    word = options.get("document")
    is_recipe = word in recipe_names() and not Path(word).is_file()
    named = {
        "-f": options.get("file") or (None if is_recipe else word),
        "--recipe": options.get("recipe") or (word if is_recipe else None),
        "--pipeline": options.get("pipeline"),
    }
    document = [word for name, value in named.items() if value for word in (name, str(value))]
    if "overrides" in options and not document:
        document = ["--recipe", DEFAULT_RECIPE]
    for override in options.get("overrides") or ():
        document += ["--set", override]
    if options.get("force") and "overrides" in options:
        document.append("--force")
    return Commands(flags, document)


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
    # Several files count as one: the current context may stand in another one than its definition.
    found: dict[str, Path] = {}
    wanted = context
    for file in files:
        contexts, current = _contexts(file)
        for name in contexts:
            found.setdefault(name, file)
        wanted = wanted or current
    if wanted in found:
        return str(found[wanted])
    known = list(found)
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
    if not isinstance(data, dict):
        return [], None
    entries = data.get("contexts")
    named = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    current = data.get("current-context")
    return [str(entry["name"]) for entry in named if "name" in entry], str(current) if current else None


def find(session: Session, name: str | None) -> DesiredState:
    """A pipeline by name, or the only one there is.

    Raises:
        ConfigError: there is none of that name, or several and no name.
    """
    names = session.pipelines()
    if name is None:
        if len(names) == 1:
            name = names[0]
        elif not names:
            raise ConfigError(
                "there are no pipelines here yet",
                code=UNKNOWN_PIPELINE,
                remedy="start one with: `zhongjing submit`",
            )
        else:
            raise ConfigError(
                "there are several pipelines here",
                code=UNKNOWN_PIPELINE,
                remedy=f"name one of: {', '.join(sorted(names))}",
            )
    desired = session.desired(name) if name in names else None
    if desired is None:
        known = ", ".join(sorted(names)) or "none"
        raise ConfigError(
            f"there is no pipeline {name!r}", code=UNKNOWN_PIPELINE, remedy=f"there is: {known}"
        )
    return desired


def split_result(result: str) -> tuple[str, Stage]:
    """Splits ``tiny/ppo`` into the pipeline's name and the stage.

    Raises:
        ConfigError: it is not of that form, or the stage is unknown.
    """
    name, slash, stage = result.partition("/")
    if not slash or not name or not stage:
        raise ConfigError(
            "a result is named PIPELINE/STAGE", code=INVALID_OPTION, where=result, remedy="e.g. tiny/ppo"
        )
    if stage not in {known.value for known in Stage}:
        stages = ", ".join(known.value for known in Stage)
        raise ConfigError(
            f"there is no stage {stage!r}",
            code=UNKNOWN_STAGE,
            where=result,
            remedy=f"the stages are: {stages}",
        )
    return name, Stage(stage)
