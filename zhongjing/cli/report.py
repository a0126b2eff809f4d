"""``zhongjing report``: packs what an issue report needs of a run, without secrets or record text."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import (
    Format,
    KubeContext,
    Local,
    Namespace,
    OptionalName,
    Release,
)
from zhongjing.cli.options import Workdir as WorkdirOption
from zhongjing.cli.target import OPENER, ClusterTarget, choose, find
from zhongjing.codes.command import INVALID_OPTION, TARGET_IN_USE, UNKNOWN_PIPELINE
from zhongjing.codes.ray import NOTHING_RUNS
from zhongjing.errors import BackendError, ConfigError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.cli.reporting.bundle import Bundle
    from zhongjing.cli.reporting.redact import Identity
    from zhongjing.pipeline.session import Session

SUFFIXES = (".tar.gz", ".tgz")

EPILOG = """
\b
Examples:
  zhongjing report --local
  zhongjing report tiny --local --output tiny-report.tar.gz
  zhongjing report --local -o json | jq -r .archive
  zhongjing report tiny -n train

Packed are documents, manifests, metrics and logs. Never packed are weights, sources and records. Secrets,
your name and this machine's are taken out. Look through the archive before you send it: README.txt in it says
how. A run lies in the workdir's S3 server: if none runs, it is started, as by every other command.
"""

Output = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="json|FILE.tar.gz",
        help="json: exactly one JSON object on stdout, the rest on stderr. FILE.tar.gz: where the archive "
        "goes; ./<pipeline>-report-<time>.tar.gz unless given. May be given once for each.",
    ),
]
Doctor = Annotated[
    bool,
    typer.Option(
        "--doctor/--no-doctor", help="Whether to pack what `zhongjing doctor` finds (some seconds)."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def report(
    *,
    name: OptionalName = None,
    output: Output = None,
    doctor: Doctor = True,
    force: Force = False,
    local: Local = False,
    workdir: WorkdirOption = None,
    namespace: Namespace = None,
    context: KubeContext = None,
    release: Release = None,
) -> None:
    """Pack what an issue report needs of a run, without secrets or record text."""
    values = output or []
    _report(
        output=Format.JSON if Format.JSON in values else Format.TEXT,
        targets=[value for value in values if value not in tuple(Format)],
        name=name,
        doctor=doctor,
        force=force,
        local=local,
        workdir=workdir,
        namespace=namespace,
        context=context,
        release=release,
    )


@guarded
def _report(
    *,
    output: Format,
    targets: list[str],
    name: str | None,
    doctor: bool,
    force: bool,
    local: bool,
    workdir: Path | None,
    namespace: str | None,
    context: str | None,
    release: str | None,
) -> None:
    target = _target(targets, force=force)
    place = choose(local=local, workdir=workdir, namespace=namespace, context=context, release=release)
    if workdir is not None and not workdir.is_dir():
        raise BackendError("nothing was run here yet", code=NOTHING_RUNS, where=str(workdir))
    console = Console(json_mode=output == Format.JSON)
    now = time.time()
    with _spool(target.parent if target is not None else Path.cwd()) as folder:
        if isinstance(place, ClusterTarget):
            bundle, subject = _of_cluster(folder, place, name, console)
        else:
            bundle = _open_bundle(folder, place.workdir)
            subject = _collect(bundle, place.workdir, name, console, doctor=doctor)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        root = f"{subject or 'zhongjing'}-report-{stamp}"
        archive = target or Path(f"{root}.tar.gz")
        _describe(bundle, subject, stamp, archive, root)
        _refuse_existing(archive, force=force)
        bundle.write(archive, root, now)
        files = len(bundle.names)
    size = archive.stat().st_size
    console.say(f"the report is in {archive} ({_amount(size)}, {files} files)")
    if bundle.gaps:
        console.say("left out:")
    for gap in bundle.gaps:
        console.say(f"  {gap.what}: {gap.why}")
    console.say("look through it before you send it; README.txt in it says how")
    if console.json_mode:
        console.result(
            {
                "archive": str(archive.resolve()),
                "bytes": size,
                "files": files,
                "pipeline": subject,
                "leftOut": [{"what": gap.what, "why": gap.why} for gap in bundle.gaps],
            }
        )


def _target(targets: list[str], *, force: bool) -> Path | None:
    """The archive that was asked for, None if none was.

    Raises:
        ConfigError: it is no archive's name, exists already, or its folder does not.
    """
    if not targets:
        return None
    if len(targets) > 1 or not targets[0].endswith(SUFFIXES):
        raise ConfigError(
            f"cannot be used: {', '.join(targets)}",
            code=INVALID_OPTION,
            where="--output",
            remedy="give json, or one file whose name ends with .tar.gz",
        )
    target = Path(targets[0])
    _refuse_existing(target, force=force)
    if not target.parent.is_dir():
        raise ConfigError("there is no such folder", code=TARGET_IN_USE, where=str(target.parent))
    return target


def _refuse_existing(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise ConfigError("is a folder", code=TARGET_IN_USE, where=str(target))
    if target.exists() and not force:
        raise ConfigError(
            "the file is there already",
            code=TARGET_IN_USE,
            where=str(target),
            remedy="give another one with --output, or --force to replace it",
        )


@contextmanager
def _spool(parent: Path) -> Iterator[Path]:
    """A folder beside the archive for what will be in it, removed at the end.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".zhongjing-report-", dir=parent))
    except OSError as error:
        raise ConfigError(
            f"nothing can be written here: {error.strerror or error}",
            code=TARGET_IN_USE,
            where=str(parent),
            remedy="give a place with --output FOLDER/report.tar.gz",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_bundle(folder: Path, workdir: Path) -> Bundle:
    from zhongjing.cli.reporting.bundle import Bundle
    from zhongjing.cli.reporting.redact import Redactor
    from zhongjing.cli.reporting.secrets import find_secrets
    from zhongjing.cli.reporting.workdir import service_environments

    # Taken now: opening a session changes the environment.
    environments = [dict(os.environ), *service_environments(workdir)]
    return Bundle(folder, Redactor(find_secrets(workdir, environments), _identity()))


def _of_cluster(
    folder: Path, place: ClusterTarget, name: str | None, console: Console
) -> tuple[Bundle, str | None]:
    """What can be packed of a run on a cluster; returns the pipeline that it tells of, if there is one.

    Raises:
        BackendError: the cluster cannot be reached, or has no release there.
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.cli.reporting.bundle import Bundle
    from zhongjing.cli.reporting.cluster import collect_cluster, lent_secrets
    from zhongjing.cli.reporting.machine import settings, versions
    from zhongjing.cli.reporting.redact import Redactor
    from zhongjing.cli.reporting.run import collect_run
    from zhongjing.cli.reporting.secrets import find_secrets

    environment = dict(os.environ)  # opening the store changes it
    with place.open() as session:
        secrets = find_secrets(None, [environment, lent_secrets(session)])
        bundle = Bundle(folder, Redactor(secrets, _identity()))
        console.say("packing versions and settings")
        bundle.json("versions.json", versions())
        bundle.json("settings.json", settings(environment))
        if name is None and not session.pipelines():
            bundle.gap("run", "there are no pipelines here yet")
            collect_cluster(bundle, session, None)
            return bundle, None
        name = find(session, name).pipeline
        console.say("packing what the cluster says")
        collect_cluster(bundle, session, name)
        console.say(f"packing the run {name}")
        try:
            collect_run(bundle, session, name, [])
        except ZhongjingError as error:
            bundle.gap("run", error)  # a store that cannot be reached is what reports are made of
    return bundle, name


def _identity() -> Identity:
    from zhongjing.cli.reporting.redact import Identity
    from zhongjing.cli.reporting.secrets import user_names

    home = Path.home()
    hosts = {socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")}
    hosts |= {host.partition(".")[0] for host in hosts}
    return Identity(
        homes=sorted({str(home), str(home.resolve())}),
        users=user_names(),
        hosts=sorted(host for host in hosts if host),
    )


def _collect(bundle: Bundle, place: Path, name: str | None, console: Console, *, doctor: bool) -> str | None:
    """Fills the bundle; returns the pipeline that it tells of, if there is one.

    Raises:
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.backends.local.workdir import Workdir
    from zhongjing.cli.reporting.machine import findings, settings, versions
    from zhongjing.cli.reporting.run import collect_run
    from zhongjing.cli.reporting.workdir import collect_stray_logs, collect_workdir

    console.say("packing versions and settings")
    bundle.json("versions.json", versions())
    bundle.json("settings.json", settings(os.environ))
    collect_stray_logs(bundle)
    there = place.is_dir()
    if there:
        console.say("packing the workdir's records and logs")
        collect_workdir(bundle, place)
    elif name is not None:
        raise ConfigError(f"there is no pipeline {name!r}", code=UNKNOWN_PIPELINE, where=str(place))
    if doctor:
        console.say("packing what doctor finds")
        bundle.json("doctor.json", findings(place))
    if not there:
        bundle.gap("run", "nothing was run here yet")
        return None
    try:
        with _open_session(place, console) as session:
            if name is None and not session.pipelines():
                bundle.gap("run", "there are no pipelines here yet")
                return None
            name = find(session, name).pipeline
            console.say(f"packing the run {name}")
            collect_run(bundle, session, name, _packed_drivers(bundle))
    except ZhongjingError as error:
        if error.code is UNKNOWN_PIPELINE:
            raise
        # A store or supervisor that does not start is what reports are made of: the rest is packed.
        bundle.gap("run", error)
        known = Workdir(place).pipelines()
        return name or (known[0] if len(known) == 1 else None)
    return name


def _open_session(place: Path, console: Console) -> Session:
    """The workdir's session; its services are only started where none runs.

    Raises:
        BackendError: they do not start.
    """
    try:
        return OPENER.get()(place, False)
    except BackendError:
        console.say("starting the workdir's services: the run lies in its S3 server")
        return OPENER.get()(place, True)


def _packed_drivers(bundle: Bundle) -> list[str]:
    """Submission ids of the jobs whose driver's log came from Ray's folder."""
    prefix, suffix = "job-driver-", ".log"
    files = [name.rpartition("/")[2] for name in bundle.names]
    return [
        file.removeprefix(prefix).removesuffix(suffix)
        for file in files
        if file.startswith(prefix) and file.endswith(suffix)
    ]


def _describe(bundle: Bundle, subject: str | None, stamp: str, archive: Path, root: str) -> None:
    from zhongjing import __version__
    from zhongjing.cli.reporting.contents import readme
    from zhongjing.cli.reporting.secrets import too_short

    text = readme(
        bundle.names,
        bundle.gaps,
        subject=f"the pipeline {subject}" if subject else "this machine",
        time=stamp,
        version=__version__,
        archive=archive.name,
        root=root,
        short=too_short([os.environ]),
    )
    bundle.plain("README.txt", text)


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{max(size // 1024, 1)} kB"
