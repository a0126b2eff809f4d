"""``zhongjing dashboard``: Ray's dashboard of a release, forwarded to a port of this machine."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import OK, guarded
from zhongjing.cli.target import ClusterTarget, Target, on_target
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.ray import NOTHING_RUNS
from zhongjing.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.forward import Forward
    from zhongjing.backends.kubernetes.session import KubernetesSession

EPILOG = """
\b
Examples:
  zhongjing dashboard
  zhongjing dashboard -n train --port 9000
  zhongjing dashboard --show-token
  zhongjing dashboard --local

The dashboard asks for the release's token once and keeps it in a cookie. Ctrl-C ends the forward.
"""

PORT = 8265
"""Of Ray's dashboard wherever it can be chosen: taken here unless something else listens there."""

_LOOK_SECONDS = 0.5


@guarded
@on_target()
def dashboard(
    *,
    target: Target,
    port: Annotated[
        int | None,
        typer.Option(help=f"Port of this machine; {PORT} unless given, or any if that is taken.", min=1),
    ] = None,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the token itself.")] = False,
) -> int:
    """Open Ray's dashboard: forward it to this machine, and say how to log in."""
    console = Console()
    if not isinstance(target, ClusterTarget):
        with target.open() as session:
            if session.dashboard_url is None:
                raise BackendError(
                    "no Ray runs in this workdir",
                    code=NOTHING_RUNS,
                    where=str(target.workdir),
                    remedy="its dashboard is there while a run is",
                )
            console.say(f"Ray dashboard: {session.dashboard_url}")
            if session.dashboard_login:
                console.say(session.dashboard_login)
        return OK
    from zhongjing.backends.kubernetes.secrets import ray_token

    with target.open() as cluster:
        ray = cluster.release.ray
        token = ray_token(cluster.api, cluster.release) if show_token else None
        with closing(_forward(cluster, port)) as forward:
            console.say(f"Ray dashboard: {forward.url}")
            console.say(f"forwarded from the service {ray.service} of the namespace {cluster.namespace}")
            if token is not None:
                console.say(f"log in with the token: {token}")
            else:
                console.say("log in with the token that this prints:")
                console.say(f"  {token_command(cluster)}")
            console.say("Ctrl-C ends the forward")
            _wait(forward, console)
    return OK


def token_command(cluster: KubernetesSession) -> str:
    """The command line that prints the token of a release's Ray."""
    words = ["kubectl"]
    if cluster.api.context is not None:
        words += ["--context", cluster.api.context]
    words += ["-n", cluster.namespace, "get", "secret", cluster.release.ray.token_secret]
    return f"{' '.join(words)} -o jsonpath='{{.data.auth_token}}' | base64 -d"


def _forward(cluster: KubernetesSession, port: int | None) -> Forward:
    """The open forward.

    Raises:
        ConfigError: the port that was asked for is taken.
        BackendError: the head's pod cannot be reached.
    """
    from zhongjing.backends.kubernetes.forward import Forward

    def fresh() -> Forward:
        return Forward(cluster.api, cluster.release.ray.service, cluster.release.ray.dashboard_port)

    try:
        return fresh().open(port or PORT)
    except OSError as error:
        if port is not None:
            raise ConfigError(
                f"the port {port} cannot be used: {error.strerror or error}",
                code=INVALID_OPTION,
                where="--port",
                remedy="give another one, or leave --port out",
            ) from error
    return fresh().open()


def _wait(forward: Forward, console: Console) -> None:
    """Waits for Ctrl-C; says when the pod cannot be reached, and when it can again."""
    said: str | None = None
    try:
        while True:
            failure = forward.failure
            if failure is not None and failure.message != said:
                console.warn(f"{failure.where}: {failure.message}" if failure.where else failure.message)
            elif failure is None and said is not None:
                console.warn("the dashboard can be reached again")
            said = failure.message if failure is not None else None
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        console.say("ended")
