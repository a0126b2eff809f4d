"""Ray itself, with ``--deep``: a head of our own is started, runs a job, and is ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zhongjing.cli.diagnosis.children import Answer
from zhongjing.cli.diagnosis.finding import Finding, Status, fails, fine
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine
from zhongjing.codes import ray as codes

SECONDS = 240.0  # Ray may take two minutes on a starved machine, and the job one and a half
_PROBE = "zhongjing.cli.diagnosis.ray_probe"


def check(situation: Situation) -> Iterable[Finding]:
    """Starts a Ray of our own in the temporary folder."""
    from zhongjing.backends.local.ray_head import RayHead

    folder = situation.children.folder() / "ray"
    # Ray's processes are in sessions of their own: whatever becomes of the child, they are ended.
    situation.children.at_end(RayHead(folder).stop)
    answer = situation.children.run(
        _PROBE, ["--folder", str(folder)], seconds=SECONDS, environment=situation.environment
    )
    return judge(answer.merged(), answer)


def judge(facts: Mapping[str, Any], answer: Answer) -> list[Finding]:
    """Ray started, and a job's workers could add up a tensor."""
    if "error" in facts:
        message = str(facts["error"]).strip()
        return [Finding("ray start", Status.FAILS, message, facts.get("remedy"), facts.get("code"))]
    if "ready" not in facts:
        last = answer.last_words
        return [fails("ray start", f"the trial {answer.death}: {last}", codes.RAY_FAILED)]
    findings = [fine("ray start", f"a Ray of our own was ready after {facts['ready']:.1f} s")]
    if "job_error" in facts:
        findings.append(fails("ray job", str(facts["job_error"]), codes.RAY_REFUSED))
    elif "right" not in facts:
        findings.append(fails("ray job", f"the trial {answer.death}", machine.CHECK_HUNG))
    elif not facts["right"]:
        findings.append(fails("ray job", "the workers' sum is wrong", machine.TORCH_UNUSABLE))
    else:
        findings.append(
            fine(
                "ray job",
                f"{facts['ranks']} workers added up 4 MiB by gloo in {facts['milliseconds']:.0f} ms; the job "
                f"took {facts['job_seconds']:.1f} s",
            )
        )
    return findings
