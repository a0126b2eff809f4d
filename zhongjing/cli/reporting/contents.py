"""README.txt of a report: what is in it, what is not, and how to look through it before it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from zhongjing.cli.reporting.bundle import Gap

_TEXT = """\
Report of {subject}, made {time} by zhongjing {version}.

WHAT IS IN IT

{contents}

WHAT WAS LEFT OUT OF THIS REPORT

{gaps}

WHAT IS NEVER PACKED

  weights, checkpoints' tensors, optimizer states        (listed in objects.txt, with sizes and times)
  sources, token shards                                  (pipeline.json has names, sizes and digests)
  the text of quarantined records                        (their places and reasons are in quarantine.jsonl)
  answers of models to held-out questions                (their lengths stand in their place)

WHAT WAS TAKEN OUT OF EVERY FILE

  <redacted>, <redacted:NAME>   keys, tokens and passwords of the environment, of the workdir and of
                                well-known tools, raw and encoded; headers that authorize; signatures and
                                passwords in URLs; blocks of private keys
  ~, <user>, <host>             your home folder, your name in paths, the name of this machine
  <e-mail>, <ID number>,        what looks like one; a long number may be taken for a person's
  <phone number>
  <text N characters>           more than 12 Chinese, Japanese or Korean characters in a line of a log{short}

Values are known from the environments of this command and of the services that ran with it. What was secret
only to a process that is gone is told by its shape: a plain password in a log may be left.

Paths, names of files, buckets, pipelines and endpoints, system prompts and chat templates are still there:
without them a report is of little use.

LOOK THROUGH IT BEFORE YOU SEND IT

  tar -xzf {archive}
  grep -rniE 'what nobody may see' {root}
  less {root}/pipeline.json

Delete whatever should not be seen, and pack the rest again: tar -czf {archive} {root}
"""

_SECTIONS = (
    ("doctor.json", "what zhongjing doctor finds on this machine"),
    ("versions.json", "versions, platform, installed packages"),
    ("settings.json", "variables of the environment that change what happens"),
    ("pipeline.json", "what is wanted: the document, sources by name, size and digest"),
    ("status.json", "what is so: stages, attempts, failures"),
    ("objects.txt", "every stored object of the run: size, time, name"),
    (
        "run/",
        "by stage and key: manifest, progress, metrics, requests, checkpoint manifests, logs of all attempts",
    ),
    ("cluster/", "release, TrainingPipeline, events, pods and nodes, as the Kubernetes API has them"),
    ("workdir/", "records and logs of the supervisor, of the S3 server, of Ray, of commands; sizes"),
    ("commands/", "errors of commands that found no workdir"),
)


def readme(
    names: Sequence[str],
    gaps: Sequence[Gap],
    *,
    subject: str,
    time: str,
    version: str,
    archive: str,
    root: str,
    short: Sequence[str],
) -> str:
    """The text.

    Args:
        names: of the files.
        gaps: what is not there.
        subject: what is reported of.
        time: when, UTC.
        version: of zhongjing.
        archive: name of the archive.
        root: the folder in it.
        short: names of secret variables whose values are too short to be looked for.
    """
    contents = []
    for name, meaning in _SECTIONS:
        count = sum(1 for each in names if each == name or (name.endswith("/") and each.startswith(name)))
        if count:
            files = f" ({count} files)" if name.endswith("/") else ""
            contents.append(f"  {name:<16}{meaning}{files}")
    missing = [f"  {gap.what}: {gap.why}" for gap in gaps] or ["  nothing"]
    note = ""
    if short:
        note = f"\n\nThe values of {', '.join(short)} are too short to be looked for, and stay."
    return _TEXT.format(
        subject=subject,
        time=time,
        version=version,
        contents="\n".join(contents),
        gaps="\n".join(missing),
        short=note,
        archive=archive,
        root=root,
    )
