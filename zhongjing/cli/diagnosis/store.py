"""The object store: of the workdir, of the document or the options, or a server of our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.children import Answer
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, of_dict
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine

if TYPE_CHECKING:
    from zhongjing.config.sources import Storage

SECONDS = 60.0  # a server of our own takes 4 s, an unreachable store its deadline
DEADLINE = 5.0  # seconds that an outage is borne, of each request
_PROBE = "zhongjing.cli.diagnosis.store_probe"


def check(situation: Situation) -> Iterable[Finding]:
    """Tries the store in a child process."""
    if situation.storage is not None:
        return _try(situation, situation.storage, situation.environment)
    if not situation.local:
        return [
            fine("s3", "not checked: no store was named (--storage s3://bucket/prefix, or -f document.yaml)")
        ]
    return _local(situation)


def _local(situation: Situation) -> list[Finding]:
    from zhongjing.backends.local.workdir import LOCAL_ROOT, Workdir
    from zhongjing.config.sources import Storage

    storage = Storage(uri=LOCAL_ROOT)
    workdir = Workdir(situation.workdir)
    record = workdir.live_record()
    own = workdir.environment()
    if record is not None and record.ready and own:
        kept = {name: value for name, value in situation.environment.items() if not name.startswith("AWS_")}
        return _try(situation, storage, {**kept, **own})
    return _try(situation, storage, situation.environment, serve=True)


def _try(
    situation: Situation, storage: Storage, environment: Mapping[str, str], *, serve: bool = False
) -> list[Finding]:
    hasty = storage.model_copy(update={"deadline_seconds": min(DEADLINE, storage.deadline_seconds)})
    arguments = ["--storage", hasty.model_dump_json()]
    if serve:
        arguments += ["--serve", str(situation.children.folder() / "s3")]
    return judge(
        situation.children.run(_PROBE, arguments, seconds=SECONDS, environment=environment),
    )


def judge(answer: Answer) -> list[Finding]:
    """What the child found, and whether it came to its end."""
    findings = [of_dict(line) for line in answer.lines]
    if answer.code is None:
        findings.append(fails("s3", f"no answer within {SECONDS:.0f} s: cut off", machine.CHECK_HUNG))
    elif answer.code != 0:
        last = answer.last_words
        findings.append(fails("s3", f"the check {answer.death}: {last}", machine.CHECK_BROKE))
    return findings
