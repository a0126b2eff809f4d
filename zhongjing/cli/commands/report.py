"""``zhongjing report``: one file of facts for an issue, without secrets, names or text of records."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import DEFAULT_WORKDIR, Format, OptionalName
from zhongjing.cli.target import OPENER, ClusterTarget, LocalTarget, Target, find, on_target
from zhongjing.codes.command import INVALID_OPTION, TARGET_IN_USE, UNKNOWN_PIPELINE
from zhongjing.codes.ray import NOTHING_RUNS
from zhongjing.errors import BackendError, ConfigError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
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


def _check_output(options: Mapping[str, Any]) -> None:
    _file(options["output"], time.time(), force=options["force"])


@guarded
@on_target(check=_check_output)
def report(
    *,
    target: Target,
    name: OptionalName = None,
    output: Output = None,
    doctor: Doctor = True,
    force: Force = False,
) -> None:
    """Write the facts that an issue report needs to one file, without secrets or record text."""
    from zhongjing.cli import evidence as collected

    now = time.time()
    file = _file(output, now, force=force)
    console = Console(json_mode=Format.JSON in (output or ()))
    evidence = collected.Evidence()
    console.say("collecting versions and settings")
    collected.collect_machine(evidence, dict(os.environ))
    if isinstance(target, LocalTarget):
        _of_workdir(evidence, target.workdir, name, console)
    if doctor:
        console.say("collecting what doctor finds")
        collected.collect_doctor(evidence, target)
    subject = _of_run(evidence, target, name, console)
    size = _write(file, evidence, now, force=force)
    console.say(f"the report is in {file} ({max(size // 1024, 1)} kB): attach it to the issue")
    console.say("it holds numbers, states, codes and versions; no names, no keys, no text of records or logs")
    left_out = [{"what": part, "why": getattr(error, "message", str(error))} for part, error in evidence.gaps]
    console.say_lines(["left out:"] if left_out else [])
    console.say_lines(f"  {gap['what']}: {gap['why']}" for gap in left_out)
    if console.json_mode:
        told = {"archive": str(file.resolve()), "bytes": size, "pipeline": subject, "leftOut": left_out}
        console.result(told)


def _file(output: list[str] | None, now: float, *, force: bool) -> Path:
    """Where the report goes.

    Raises:
        ConfigError: it is no report's name, exists already, or its folder does not.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    names = [value for value in output or () if value not in tuple(Format)]
    first, *others = names or [f"zhongjing-report-{stamp}.json"]
    target = Path(first)
    if others or not target.name.endswith(SUFFIXES):
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
        remedy = "give another one with --output, or --force to replace it"
        raise ConfigError("the file is there already", code=TARGET_IN_USE, where=str(target), remedy=remedy)


def _of_workdir(evidence: Evidence, workdir: Path, name: str | None, console: Console) -> None:
    """Collects what a workdir has beside its runs.

    Raises:
        ConfigError: there is no such pipeline.
        BackendError: the workdir was named and is not there.
    """
    from zhongjing.cli.evidence import collect_stray_logs, collect_workdir

    collect_stray_logs(evidence)
    if workdir.is_dir():
        console.say("collecting the workdir's records")
        collect_workdir(evidence, workdir)
    elif workdir != DEFAULT_WORKDIR:
        raise BackendError("nothing was run here yet", code=NOTHING_RUNS, where=str(workdir))
    elif name is not None:
        raise ConfigError(f"there is no pipeline {name!r}", code=UNKNOWN_PIPELINE, where=str(workdir))


def _of_run(evidence: Evidence, target: Target, name: str | None, console: Console) -> str | None:
    """Collects a run and its release; returns the pipeline's name, None if there are no pipelines yet.

    Raises:
        BackendError: the cluster cannot be reached, or has no release there.
        ConfigError: there is no such pipeline, or there are several and none was named.
    """
    from zhongjing.cli.evidence import collect_cluster, collect_run

    try:
        with _open(target, console) as session:
            if isinstance(target, ClusterTarget):
                collect_cluster(evidence, cast("KubernetesSession", session))
            if name is None and not session.pipelines():
                raise BackendError("there are no pipelines here yet", code=NOTHING_RUNS)
            name = find(session, name).pipeline
            console.say(f"collecting the run {name}")
            collect_run(evidence, session, name)
    except ZhongjingError as error:
        if error.code is UNKNOWN_PIPELINE or (
            isinstance(target, ClusterTarget) and error.code is not NOTHING_RUNS
        ):
            raise
        # A store or supervisor that does not start is what reports are made of: the rest is kept.
        evidence.gap("run", error)
    return name


def _open(target: Target, console: Console) -> Session:
    """The session; a workdir's services are only started where none runs.

    Raises:
        BackendError: there is none, or they do not start.
    """
    if isinstance(target, ClusterTarget):
        console.say("collecting what the cluster says")
        return target.open()
    if not target.workdir.is_dir():
        raise BackendError("nothing was run here yet", code=NOTHING_RUNS, where=str(target.workdir))
    try:
        return OPENER.get()(target.workdir, False)
    except BackendError:
        console.say("starting the workdir's services: the run lies in its S3 server")
        return OPENER.get()(target.workdir, True)


def _write(target: Path, evidence: Evidence, now: float, *, force: bool) -> int:
    """Writes the report, whole or not at all; returns its size.

    Raises:
        ConfigError: the file appeared in the meantime.
        StorageError: it cannot be written; the disk may be full.
    """
    from zhongjing.storage.files import disk_error, write_private

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
    try:
        write_private(target, data)
    except OSError as error:
        raise disk_error(error, target) from error
    return len(data)
