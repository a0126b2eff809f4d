"""Kills a pipeline at seeded moments and compares what comes out with the undisturbed run.

``python -m tests.faults.run --seed N --kills 20 --workdir F``; ``make test-faults SEED=N`` calls it. The
moments and the victims follow from the seed alone. Prints a table as Markdown; exits 1 if a check fails, and
then keeps the folder.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import document
from tests.faults.checks import Comparison, compare, rollout_problems
from tests.faults.harness import Blow, Harness, LostError, undisturbed_results
from tests.faults.observe import STAGES
from tests.faults.place import Place, wait_for
from tests.faults.plan import draw
from tests.faults.table import blow_table, comparison_table
from zhongjing.config.stages import Stage

# The supervisor ends a minute after the last watcher has gone, and takes Ray and S3 with it.
IDLE_SECONDS = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description="Kills a pipeline at seeded moments.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workdir", type=Path, help="kept; else a temporary folder, kept if a check fails")
    parser.add_argument("--plan", action="store_true", help="only print what would be hit, and when")
    options = parser.parse_args(arguments)
    # What the harness itself asks of a store that it has just killed is no news.
    logging.getLogger("zhongjing").setLevel(logging.CRITICAL)
    strikes = draw(options.seed, options.kills, uploaders=(Stage.PRETRAIN,))
    if options.plan:
        for each in strikes:
            _say(f"{each.number:3} {each.moment:28} {each.victim}")
        return 0
    folder = options.workdir or Path(tempfile.mkdtemp(prefix="zjf-", dir="/tmp"))
    started = time.monotonic()
    problems = run(options.seed, options.kills, folder)
    _say(f"{(time.monotonic() - started) / 60:.1f} min in all")
    if problems:
        _say(f"{len(problems)} checks failed; repeat with: make test-faults SEED={options.seed}")
        for problem in problems:
            _say(f"- {problem}")
        _say(f"what they left is in {folder}")
        return 1
    if options.workdir is None:
        shutil.rmtree(folder)
    return 0


def run(seed: int, kills: int, folder: Path) -> list[str]:
    """Both runs and all checks; returns what failed."""
    began = time.monotonic()
    _say("the undisturbed run")
    calm = Place(folder / "u", document.large())
    try:
        undisturbed = undisturbed_results(calm, document.LARGE)
    finally:
        calm.end()
    _say(f"done after {time.monotonic() - began:.0f} s; {kills} kills of seed {seed} follow")
    strikes = draw(seed, kills, uploaders=(Stage.PRETRAIN,))
    place = Place(folder / "d", document.large())
    harness = Harness(place, document.LARGE)
    blows: list[Blow] = []
    began = time.monotonic()

    def done(blow: Blow) -> None:
        blows.append(blow)
        took = time.monotonic() - began
        eta = took / len(blows) * (len(strikes) - len(blows)) / 60
        went = f"attempt {blow.attempt_before} -> {blow.attempt_after} after {blow.seconds or 0:.0f} s"
        _say(
            f"[{len(blows)}/{len(strikes)}] {blow.strike.moment}: {blow.victim}: {went}; ETA {eta:.0f} min"
            + "".join(f"\n    FAILED: {problem}" for problem in blow.problems)
        )

    problems: list[str] = []
    compared: list[Comparison] = []
    try:
        harness.run(strikes, done)
        results = {stage: harness.watch.result(stage) for stage in STAGES}
        compared = compare(undisturbed, results)
        ppo = results[Stage.PPO]
        problems += rollout_problems(ppo.points, ppo.manifest.steps, document.ITERATION_STEPS)
        record = place.workdir.live_record()
        idle = record is None or wait_for(lambda: not record.process.is_alive, IDLE_SECONDS, interval=0.5)
        if not idle:
            problems.append(f"the supervisor had not ended {IDLE_SECONDS:.0f} s after the last command")
    except LostError as error:
        problems.append(str(error))
    else:
        problems += [f"still runs: {each}" for each in harness.litter.left_processes(10)]
        problems += [f"left behind: {each}" for each in harness.litter.left_files()]
    finally:
        place.destroy()
    problems += [f"kill {blow.strike.number}: {text}" for blow in blows for text in blow.problems]
    problems += [text for each in compared for text in each.problems]
    _say(f"\nSeed {seed}, {len(blows)} kills, {(time.monotonic() - began) / 60:.1f} min.\n")
    _say(blow_table(blows))
    if compared:
        _say("\n" + comparison_table(compared))
    return problems


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
