"""``zhongjing report``: one file of facts for an issue, without secrets, names or text of records."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import Format, KubeContext, Local, Namespace, OptionalName, Release
from zhongjing.cli.options import Workdir as WorkdirOption
from zhongjing.cli.target import OPENER, ClusterTarget, choose, find
from zhongjing.codes.command import INVALID_OPTION, TARGET_IN_USE, UNKNOWN_PIPELINE
from zhongjing.codes.ray import NOTHING_RUNS
from zhongjing.errors import BackendError, ConfigError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.cli.evidence import Evidence
    from zhongjing.pipeline.session import Session

ARCHIVES = (".tar.gz", ".tgz")
SUFFIXES = (".json", *ARCHIVES)

EPILOG = """
\b
Examples:
  zhongjing report --local
  zhongjing report tiny --local --output tiny-report.json
  zhongjing report --local -o json | jq -r .archive
  zhongjing report tiny -n train

The report is one JSON file to attach to an issue. It holds numbers, switches, times, versions, states and
codes. It never holds text of yours: names, paths, URLs, keys, prompts, records and lines of logs are left out
or replaced by tags (#1a2b3c4d). A run lies in the workdir's S3 server: if none runs, it is started.
"""

ABOUT = {
    "holds": [
        "versions, platform, GPUs, settings of the environment that are numbers or switches",
        "what `zhongjing doctor` finds: names and codes of checks",
        "the document, status, progress and results: numbers, switches, times, choices, codes",
        "metrics, thinned out; counts and sizes of stored objects",
        "of logs: counts of codes, exit codes and known symptoms; of tracebacks the frames of zhongjing",
        "of a cluster: the release, pods, events, nodes: states, reasons, times, versions, amounts",
    ],
    "neverHolds": [
        "names of pipelines, sources, buckets, hosts and people; paths, URLs, labels",
        "keys, tokens, passwords, values of other variables",
        "prompts, templates, records, answers; messages of errors; lines of logs",
    ],
    "tags": "#1a2b3c4d stands for a text; equal tags are equal texts within this report",
}

Output = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="json|FILE",
        help="json: exactly one JSON object on stdout, the rest on stderr. FILE.json, FILE.tar.gz: where the "
        "report goes; ./zhongjing-report-<time>.json unless given. May be given once for each.",
    ),
]
Doctor = Annotated[
    bool,
    typer.Option("--doctor/--no-doctor", help="Whether to add what `zhongjing doctor` finds (some seconds)."),
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
    """Write the facts that an issue report needs to one file, without secrets or record text."""
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
    from zhongjing.cli.evidence import Evidence, collect_machine

    now = time.time()
    target = _target(targets, now, force=force)
    place = choose(local=local, workdir=workdir, namespace=namespace, context=context, release=release)
    if workdir is not None and not workdir.is_dir():
        raise BackendError("nothing was run here yet", code=NOTHING_RUNS, where=str(workdir))
    console = Console(json_mode=output == Format.JSON)
    evidence = Evidence()
    console.say("collecting versions and settings")
    collect_machine(evidence, dict(os.environ))  # before a session is opened: that changes the environment
    if isinstance(place, ClusterTarget):
        subject = _of_cluster(evidence, place, name, console)
    else:
        subject = _of_workdir(evidence, place.workdir, name, console, doctor=doctor)
    size = _write(target, evidence, now, force=force)
    console.say(f"the report is in {target} ({max(size // 1024, 1)} kB): attach it to the issue")
    console.say("it holds numbers, states, codes and versions; no names, no keys, no text of records or logs")
    if evidence.gaps:
        console.say("left out:")
    gaps = [
        (part, error.message if isinstance(error, ZhongjingError) else str(error))
        for part, error in evidence.gaps
    ]
    for part, why in gaps:
        console.say(f"  {part}: {why}")
    if console.json_mode:
        console.result(
            {
                "archive": str(target.resolve()),
                "bytes": size,
                "pipeline": subject,
                "leftOut": [{"what": part, "why": why} for part, why in gaps],
            }
        )


def _target(targets: list[str], now: float, *, force: bool) -> Path:
    """Where the report goes.

    Raises:
        ConfigError: it is no report's name, exists already, or its folder does not.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    names = targets or [f"zhongjing-report-{stamp}.json"]
    target = Path(names[0])
    if len(names) > 1 or not target.name.endswith(SUFFIXES):
        raise ConfigError(
            f"cannot be used: {', '.join(names)}",
            code=INVALID_OPTION,
            where="--output",
            remedy="give json, or one file whose name ends with .json or .tar.gz",
        )
    _refuse_existing(target, force=force)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            "nothing can be written here" if target.parent.is_dir() else "there is no such folder",
            code=TARGET_IN_USE,
            where=str(target.parent),
            remedy="give a place with --output FOLDER/report.json",
        )
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


def _of_cluster(evidence: Evidence, place: ClusterTarget, name: str | None, console: Console) -> str | None:
    """Collects what a cluster tells of a run; returns the pipeline's name, if there is one.

    Raises:
        BackendError: the cluster cannot be reached, or has no release there.
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.cli.evidence import collect_cluster

    with place.open() as session:
        console.say("collecting what the cluster says")
        collect_cluster(evidence, session)
        return _of_run(evidence, session, name, console)


def _of_workdir(
    evidence: Evidence, place: Path, name: str | None, console: Console, *, doctor: bool
) -> str | None:
    """Collects what this machine tells of a run; returns the pipeline's name, if there is one.

    Raises:
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.cli.evidence import collect_doctor, collect_stray_logs, collect_workdir

    collect_stray_logs(evidence)
    nothing = BackendError("nothing was run here yet", code=NOTHING_RUNS, where=str(place))
    if place.is_dir():
        console.say("collecting the workdir's records")
        collect_workdir(evidence, place)
    elif name is not None:
        raise ConfigError(f"there is no pipeline {name!r}", code=UNKNOWN_PIPELINE, where=str(place))
    if doctor:
        console.say("collecting what doctor finds")
        collect_doctor(evidence, place)
    if not place.is_dir():
        evidence.gap("run", nothing)
        return None
    try:
        with _open_session(place, console) as session:
            return _of_run(evidence, session, name, console)
    except ZhongjingError as error:
        if error.code is UNKNOWN_PIPELINE:
            raise
        # A store or supervisor that does not start is what reports are made of: the rest is kept.
        evidence.gap("run", error)
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


def _of_run(evidence: Evidence, session: Session, name: str | None, console: Console) -> str | None:
    """Collects a run; returns its name, None if there are no pipelines yet.

    Raises:
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.cli.evidence import collect_run

    if name is None and not session.pipelines():
        evidence.gap("run", BackendError("there are no pipelines here yet", code=NOTHING_RUNS))
        return None
    name = find(session, name).pipeline
    console.say(f"collecting the run {name}")
    collect_run(evidence, session, name)
    return name


def _write(target: Path, evidence: Evidence, now: float, *, force: bool) -> int:
    """Writes the report, whole or not at all; returns its size.

    Raises:
        ConfigError: the file appeared in the meantime.
        StorageError: it cannot be written; the disk may be full.
    """
    from zhongjing.storage.files import disk_error

    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    text = json.dumps({"about": ABOUT, "time": stamp, **evidence.parts}, indent=1)
    data = f"{text}\n".encode()
    if target.name.endswith(ARCHIVES):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("report.json")
            member.size, member.mtime = len(data), int(now)
            archive.addfile(member, io.BytesIO(data))
        data = packed.getvalue()
    _refuse_existing(target, force=force)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, target) from error
    return len(data)
