"""Does PPO learn? Several seeds of the ppo stage, each against a run with learning rate 0.

::

    python benchmarks/ppo_learning.py --workdir ./zhongjing-runs --seeds 0 1 2

Takes a workdir in which the tiny pipeline is done (``make demo``) and runs its ppo stage for every seed.
Prints for the held-out conditions (no stage trained on them): mean reward, KL to the SFT model, share of
responses with an end, and the generator's own exact-fact score of greedy answers. Learning rate 0 is the SFT
model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from zhongjing.data.example.facts import exact_fact_score
from zhongjing.data.example.generate import generate
from zhongjing.data.records import Turn
from zhongjing.model.adapters import load_adapter
from zhongjing.model.base import load_base
from zhongjing.model.generation import answer
from zhongjing.model.tokenizer import load_tokenizer


def run_ppo(workdir: Path, seed: int, control: bool) -> dict[str, Any]:
    """Runs the ppo stage with a seed of its own; returns the stage's part of submit's JSON."""
    settings = [f"spec.stages.ppo.seed={seed}", "spec.stages.ppo.evaluations=1"]
    if control:
        settings.append("spec.stages.ppo.learningRate=0")
    command = [sys.executable, "-m", "zhongjing.submit", "--stage", "ppo", "--local", "-o", "json"]
    command += ["--workdir", str(workdir)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    stage: dict[str, Any] = json.loads(done.stdout)["stages"]["ppo"]
    return stage


def fact_score(workdir: Path, prompts: list[dict[str, Any]]) -> float:
    """Mean exact-fact score of the current ppo model's greedy answers to held-out prompts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        command = [sys.executable, "-m", "zhongjing", "pull", "tiny/ppo", str(folder), "--local"]
        subprocess.run([*command, "--workdir", str(workdir)], check=True, capture_output=True)
        model = load_adapter(load_base(folder / "base", dtype=torch.float32), folder, "policy")
        tokenizer = load_tokenizer(folder)
        scores = [
            exact_fact_score(
                prompt, answer(model, tokenizer, (Turn("user", prompt["prompt"]),), max_new_tokens=64)
            )
            for prompt in prompts
        ]
    return sum(scores) / len(scores)


def main() -> None:
    """Runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workdir", type=Path, default=Path("zhongjing-runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--prompts", type=int, default=120, help="held-out prompts that are answered greedily"
    )
    arguments = parser.parse_args()
    prompts = generate(0, 1).records["prompts-heldout"][: arguments.prompts]
    header = f"{'seed':>4} {'run':<8} {'reward':>8} {'kl':>7} {'eos':>6} {'length':>7} {'facts':>6}"
    print(header)
    for seed in arguments.seeds:
        rewards = {}
        for name, control in (("lr 0", True), ("ppo", False)):
            stage = run_ppo(arguments.workdir, seed, control)
            test = stage["testMetrics"]
            rewards[name] = test["reward"]
            facts = fact_score(arguments.workdir, prompts)
            print(
                f"{seed:>4} {name:<8} {test['reward']:>8.3f} {test['kl']:>7.3f} "
                f"{test['eos_share']:>6.2f} {test['response_length']:>7.1f} "
                f"{facts:>6.3f}",
                flush=True,
            )
        print(f"     reward gained over learning rate 0: {rewards['ppo'] - rewards['lr 0']:+.3f}")


if __name__ == "__main__":
    main()
