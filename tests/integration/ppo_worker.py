"""One rank of a PPO run on a tiny model, started by test_ppo_training.py in a process of its own.

The reward is a toy whose best policy is known: the share of the response's tokens that are even.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tests.local_context import LocalContext
from tests.ppo_support import Folders, make_folders, make_settings, random_prompts
from zhongjing.data.samples import PackedRow
from zhongjing.train.loop import run_loop
from zhongjing.train.ppo.build import build_ppo


def even_share(row: PackedRow) -> torch.Tensor:
    """Even tokens less odd ones in each segment, the closing one left out, over the longest response."""
    signs = 1.0 - 2.0 * (row.input_ids[0] % 2)
    return torch.stack([part[:-1].sum() for part in signs.split(list(row.lengths))]) / 8.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={})
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = Folders(arguments.models / "base", arguments.models / "sft", arguments.models / "rm")
    if not models.base.exists():
        make_folders(arguments.models, "llama")
    context = LocalContext(
        arguments.out,
        rank=arguments.rank,
        world_size=arguments.world_size,
        device=arguments.device,
        stop_at=arguments.stop_at,
    )
    settings = make_settings(**arguments.settings)
    program = build_ppo(
        settings,
        models.base,
        adapter_folder=models.sft,
        reward_folder=models.reward,
        base_reference=str(models.base),
        tokenizer_folder=models.base,
        train=random_prompts(64),
        validation=random_prompts(16, seed=1),
        rank=arguments.rank,
        world_size=arguments.world_size,
        device=arguments.device,
        seed=5,
        reward_mean=0.0,
        reward_std=0.5,
    )
    if arguments.toy:
        program.module.measure_reward = even_share  # type: ignore[method-assign]
        # A random head is so small that no hidden state prefers any token: there would be nothing to learn.
        program.module.model.lm_head.weight.data *= 15.0
    before = {name: p.detach().clone() for name, p in program.module.named_parameters()}
    result = run_loop(program, settings, context, seed=5)
    moved = [
        name
        for name, parameter in program.module.named_parameters()
        if not torch.equal(parameter.detach(), before[name])
    ]
    if arguments.rank == 0:
        outcome: dict[str, Any] = {
            "steps": result.steps,
            "suspended": result.suspended,
            "before": result.metrics_before,
            "metrics": result.metrics,
            "moved": moved,
        }
        (arguments.out / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
        if not result.suspended:
            program.finish(arguments.out / "model")


if __name__ == "__main__":
    main()
