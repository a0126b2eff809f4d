"""``zhongjing doctor``: whether this machine, a cluster or an object store can do what training asks of them.

The options are read here; the checks are in :mod:`zhongjing.cli.diagnosis`, imported when they are needed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import FAILED, OK, guarded
from zhongjing.cli.options import (
    DEFAULT_WORKDIR,
    Format,
    KubeContext,
    Local,
    Namespace,
    OutputFormat,
    Release,
    Workdir,
)
from zhongjing.cli.target import ClusterTarget, choose, find_kubeconfig
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.commands import Commands
from zhongjing.errors import ConfigError, DataError

if TYPE_CHECKING:
    from zhongjing.cli.diagnosis.checks import Check
    from zhongjing.cli.diagnosis.finding import Finding
    from zhongjing.config.pipeline import TrainingPipeline
    from zhongjing.config.sources import Storage

EPILOG = """
\b
Examples:
  zhongjing doctor --local                        can this machine run the pipeline?
  zhongjing doctor --local --deep                 also start a Ray and run a job on it (half a minute)
  zhongjing doctor --local -f my.yaml             does this document fit this machine?
  zhongjing doctor -n training                    is the release on the cluster in order?
  zhongjing doctor -n training -f my.yaml         do nodes and quotas hold this document's stages?
  zhongjing doctor --storage s3://bucket/prefix   is this store good enough?
  zhongjing doctor --local --only torch           one check alone

Each line says fine, warn or fails; what is not fine has a remedy. Nothing is left behind. A cluster is only
read.

Exit codes: 0 nothing fails, 1 something fails, 2 bad input.
"""
_MORE = "ray with --deep, document with -f, those of this machine with --local"
_NAME_WIDTH = 16


@guarded
def doctor(
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Also check this document's stages and sources."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URI", help="Object store to try: s3://bucket/prefix."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="URL", help="Endpoint of --storage; AWS_ENDPOINT_URL unless given."
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also start a Ray and run a job with two workers on it.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help="Make this check alone; repeatable. E.g. s3, torch."),
    ] = None,
    local: Local = False,
    workdir: Workdir = None,
    namespace: Namespace = None,
    context: KubeContext = None,
    release: Release = None,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Check this machine (--local), a cluster's release (-n), an object store, a document."""
    local = local or workdir is not None
    named = any(each is not None for each in (namespace, context, release))
    target = None
    if local or named or (storage is None and find_kubeconfig() is not None):
        target = choose(
            local=local, workdir=workdir, namespace=namespace, context=context, release=release, strict=named
        )
    if endpoint is not None and storage is None:
        raise ConfigError(
            "--endpoint belongs to --storage", code=INVALID_OPTION, remedy="add --storage s3://bucket/prefix"
        )
    if deep and not local:
        raise ConfigError("--deep starts a Ray on this machine", code=INVALID_OPTION, remedy="add --local")
    from zhongjing import __version__
    from zhongjing.cli.diagnosis.checks import Situation, checks, run_checks
    from zhongjing.cli.diagnosis.probes import Probes

    document = _document(file) if file is not None else None
    console = Console(json_mode=output == Format.JSON)
    commands = Commands(target.flags if target is not None else None)
    began = time.monotonic()
    findings: list[Finding] = []
    with Probes() as probes:
        situation = Situation(
            local=local,
            workdir=(workdir or DEFAULT_WORKDIR).absolute(),
            probes=probes,
            cluster=target if isinstance(target, ClusterTarget) else None,
            storage=_storage(storage, endpoint, document, own=target is not None),
            document=document,
            deep=deep,
        )
        for found in run_checks(_chosen(checks(situation), only or []), situation):
            finding = replace(found, remedy=found.remedy and commands.complete(found.remedy))
            findings.append(finding)
            console.say(f"{finding.status:<6} {finding.name:<{_NAME_WIDTH}} {finding.finding}")
            if finding.remedy is not None:
                console.say(f"  remedy: {finding.remedy}")
    seconds = time.monotonic() - began
    told = Counter(finding.status.value for finding in findings)
    counts = {status: told[status] for status in ("fine", "warn", "fails")}
    console.say(f"{', '.join(f'{count} {status}' for status, count in counts.items())} ({seconds:.1f} s)")
    if console.json_mode:
        listed = [finding.as_dict() for finding in findings]
        console.result({"version": __version__, "seconds": round(seconds, 3), **counts, "checks": listed})
    return FAILED if counts["fails"] else OK


def _chosen(checks: list[Check], only: list[str]) -> list[Check]:
    """The checks that were asked for, all unless some were named.

    Raises:
        ConfigError: there is no check of that name here.
    """
    names = [check.name for check in checks]
    for name in only:
        if name not in names:
            raise ConfigError(
                f"there is no check {name!r} here",
                code=INVALID_OPTION,
                where="--only",
                remedy=f"the checks are: {', '.join(names)} ({_MORE})",
            )
    return [check for check in checks if not only or check.name in only]


def _document(file: Path) -> TrainingPipeline:
    from zhongjing.config.resolve import load_document, resolve
    from zhongjing.pipeline import graph

    document = resolve(load_document(file))
    with suppress(DataError):  # one of its findings
        graph.check(document)
    return document


def _storage(
    uri: str | None, endpoint: str | None, document: TrainingPipeline | None, *, own: bool
) -> Storage | None:
    """The store to try: of the options, else of the document, else of the environment.

    ``own``: the workdir or the release has one of its own, which pods or local runs use.
    """
    from pydantic import ValidationError

    from zhongjing.config.sources import Storage

    if uri is not None:
        try:
            return Storage(uri=uri, endpoint=endpoint)
        except ValidationError as error:
            raise ConfigError(
                f"is not the URI of a store: {error.errors()[0]['msg']}",
                code=INVALID_OPTION,
                where="--storage",
                remedy="write s3://bucket/prefix",
            ) from None
    if own:
        return None
    if document is not None:
        return document.spec.storage
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return Storage()
    return None
