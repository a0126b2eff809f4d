"""Seconds from the end of one stage to the first step of the next, with forked jobs and workers and without.

::

    python -m benchmarks.startup [rounds]

The recipe ``tiny`` with few steps a stage, on one machine: pretrain, sft, rm, ppo. Runs take turns: one with
the fork server (:mod:`zhongjing.backends.local.fork_server`), one for which it was ended, so that every
process imports for itself. A stage ends with its manifest; the first step is that of the first metric point.
Also said: how long a whole run takes, from the first stage's driver to the last one's end.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil

from zhongjing.backends.local.session import LocalSession
from zhongjing.backends.local.workdir import Workdir
from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.progress_writer import read_metrics

STAGES = (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO)
EPOCHS = {"pretrain": 0.3, "sft": 0.2, "rm": 0.1, "ppo": 0.2}
LONGEST_SECONDS = 900.0


def main() -> int:
    """Prints a line for each run and stage, and the ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    gaps: dict[str, list[float]] = {"forked": [], "alone": []}
    wholes: dict[str, list[float]] = {"forked": [], "alone": []}
    for number in range(rounds):
        for kind in gaps:
            found, whole = measure(f"{kind}-{number}", kind == "alone")
            gaps[kind] += found.values()
            wholes[kind].append(whole)
            told = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in found.items())
            print(f"{kind:7} {number}: seconds to the first step: {told}; the whole {whole:.0f}", flush=True)
    for kind, found_gaps in gaps.items():
        print(f"{kind:7} median {statistics.median(found_gaps):.1f} s, whole {min(wholes[kind]):.0f} s")
    ratio = statistics.median(gaps["alone"]) / statistics.median(gaps["forked"])
    print(f"alone / forked: {ratio:.2f}")
    return 0


def measure(name: str, alone: bool) -> tuple[Mapping[str, float], float]:
    """One pipeline: seconds before each later stage's first step, and of the whole."""
    fewer = [f"spec.stages.{stage}.epochs={epochs}" for stage, epochs in EPOCHS.items()]
    changes = [word for change in (f"metadata.name={name}", *fewer) for word in ("--set", change)]
    with tempfile.TemporaryDirectory(prefix="zj-startup-") as folder:
        command = [sys.executable, "-m", "zhongjing", "submit", "--local", "--workdir", folder, *changes]
        with (Path(folder) / "submit.log").open("wb") as log:
            run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while alone and run.poll() is None and not end_fork_server(folder):
                time.sleep(0.1)
            if run.wait(LONGEST_SECONDS) != 0:
                raise RuntimeError((Path(folder) / "submit.log").read_text())
            session = LocalSession.open(Path(folder), start=False)
            return times(session, name)
        finally:
            run.kill()
            record = Workdir(Path(folder)).live_record()
            if record is not None:
                supervisor = psutil.Process(record.process.pid)
                supervisor.terminate()
                supervisor.wait(60)


def end_fork_server(folder: str) -> bool:
    """Ends it if it is there, long before the first job; says whether."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if "zhongjing.backends.local.fork_server" in words and any(folder in word for word in words):
            process.kill()
            return True
    return False


def times(session: LocalSession, name: str) -> tuple[dict[str, float], float]:
    """What the manifests and the metric points say."""
    manifests: dict[Stage, StageManifest] = {}
    firsts: dict[Stage, float] = {}
    for stage in STAGES:
        manifest = session.manifest(name, stage)
        if manifest is None:
            raise RuntimeError(f"{stage} did not succeed")
        manifests[stage] = manifest
        points = read_metrics(session.store, session.layout(name).stage(stage, manifest.key))
        firsts[stage] = seconds(next(point.time for point in points if point.kind in ("train", "rollout")))
    gaps = {
        later.value: firsts[later] - seconds(manifests[earlier].finished_at)
        for earlier, later in itertools.pairwise(STAGES)
    }
    whole = seconds(manifests[Stage.PPO].finished_at) - seconds(manifests[Stage.PRETRAIN].started_at)
    return gaps, whole


def seconds(stamp: str) -> float:
    """A time stamp of a record, in seconds."""
    return datetime.fromisoformat(stamp).timestamp()


if __name__ == "__main__":
    sys.exit(main())
