"""The planner's peaks against measured ones, on a CPU.

::

    python -m benchmarks.plan_memory            # the twelve that the plan was not fitted to
    python -m benchmarks.plan_memory --fitted   # those that it was fitted to

Each configuration runs a few optimizer steps by the stages' own programs and loop, every worker in a fresh
process (gloo between two), on a random base of some ten million parameters. Micro-batches are as full as
their budget allows, since that is what the plan is about. The peak is the most anonymous memory (``RssAnon``)
of rank 0, sampled every two milliseconds: pages of mapped weights and checkpoints can be written back or
read again, so they count for no limit.

Prints plan, peak and error of each; exits 1 where one is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, RmSettings, SftSettings
from zhongjing.data.samples import Sample, Segment
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.shape import of_config

BOUND = 0.10
PEAK_FILE = "peak"
"""Where a worker on a GPU writes the most bytes that torch held there (tests/gpu/test_plan_gpu.py)."""
MIB = 2**20
_SECONDS = 600  # of one configuration
_STEPS = 2
_TOKENS = 320  # entries of the tokenizer; the embedding has more rows
_KINDS: dict[str, Any] = {
    "pretrain": PretrainSettings,
    "sft": SftSettings,
    "rm": RmSettings,
    "ppo": PpoSettings,
}

# Layouts as published ones, narrower: Llama-2 (untied, as many key as query heads), Llama-3 (grouped heads),
# Qwen2.5-0.5B (tied, biases, few key heads), Qwen3-0.6B (tied, heads wider together than the model).
BASES: dict[str, dict[str, Any]] = {
    "llama2": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "tie_word_embeddings": False,
    },
    "llama3": {
        "model_type": "llama",
        "vocab_size": 48000,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "vocab_size": 64000,
        "hidden_size": 448,
        "intermediate_size": 2432,
        "num_hidden_layers": 10,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "vocab_size": 50000,
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Case:
    """A configuration: stage, base, fields of the stage; tokens of a segment (pretrain, sft, rm)."""

    stage: str
    base: str
    segment: int
    fields: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> AnySettings:
        """Of the stage."""
        found: AnySettings = _KINDS[self.stage].model_validate(
            {
                "data": [{"source": "any"}],
                "precision": "fp32",
                "maxSteps": _STEPS,
                "evaluations": 1,
                "maxEvaluationSamples": 4,
                **self.fields,
            }
        )
        return found


def _lora(rank: int, dropout: float = 0.0) -> dict[str, Any]:
    return {"rank": rank, "alpha": 2.0 * rank, "dropout": dropout}


def _case(stage: str, base: str, segment: int, per_pass: int, **fields: Any) -> Case:
    """Micro-batches of ``per_pass`` segments; two a worker and step, unless ``globalBatchSize`` says less."""
    both = {
        "maxLength": segment,
        "microBatchSize": per_pass,
        "globalBatchSize": 2 * per_pass * fields.get("workers", 1),
    }
    return Case(stage, base, segment, both | fields)


_EPISODE = {"maxPromptLength": 128, "maxNewTokens": 64, "maxLength": 256, "ppoEpochs": 2}
_RANKED = {"maxLength": 512}  # four answers of 128 tokens

FITTED: dict[str, Case] = {
    "pretrain full": _case("pretrain", "llama2", 256, 4, dropout=0.0),
    "pretrain full, dropout": _case("pretrain", "llama2", 512, 2, dropout=0.1),
    "sft full, checkpointing": _case("sft", "llama3", 256, 8, tuning="full", gradientCheckpointing=True),
    "sft full, bf16": _case("sft", "llama2", 256, 4, tuning="full", precision="bf16"),
    "sft full, 2 workers": _case("sft", "llama2", 256, 4, tuning="full", workers=2),
    "sft lora": _case("sft", "llama2", 256, 4, lora=_lora(16)),
    "sft lora, dropout": _case("sft", "qwen2", 256, 4, lora=_lora(16, 0.1)),
    "sft lora, checkpointing": _case("sft", "qwen3", 256, 16, lora=_lora(16), gradientCheckpointing=True),
    "sft lora, nf4": _case("sft", "llama2", 256, 4, lora=_lora(16), quantization="nf4"),
    "rm": _case("rm", "llama3", 128, 4, lora=_lora(16), **_RANKED),
    "ppo": _case("ppo", "llama3", 128, 4, lora=_lora(16), **_EPISODE),
}
CASES: dict[str, Case] = {
    "pretrain full, one pass": _case("pretrain", "qwen2", 256, 3, dropout=0.0, globalBatchSize=3),
    "pretrain full, dropout, checkpointing": _case(
        "pretrain", "llama3", 512, 3, dropout=0.2, gradientCheckpointing=True
    ),
    "pretrain lora 8": _case("pretrain", "qwen3", 384, 2, tuning="lora", lora=_lora(8), dropout=0.0),
    "sft full, bf16, checkpointing": _case(
        "sft", "qwen3", 256, 6, tuning="full", precision="bf16", gradientCheckpointing=True
    ),
    "sft full, 2 workers": _case("sft", "llama3", 256, 3, tuning="full", workers=2),
    "sft lora 64, dropout": _case("sft", "llama3", 192, 5, lora=_lora(64, 0.05)),
    "sft lora 16, bf16": _case("sft", "qwen3", 256, 4, lora=_lora(16), precision="bf16"),
    "sft lora 16, nf4, checkpointing": _case(
        "sft", "qwen2", 256, 8, lora=_lora(16), quantization="nf4", gradientCheckpointing=True
    ),
    "rm lora 16, dropout": _case("rm", "qwen2", 128, 3, lora=_lora(16, 0.1), **_RANKED),
    "rm lora 32, 2 workers, microBatchTokens": _case(
        "rm", "llama2", 128, 2, lora=_lora(32), workers=2, microBatchTokens=1536, **_RANKED
    ),
    "ppo lora 16": _case("ppo", "qwen3", 128, 4, lora=_lora(16), **_EPISODE),
    "ppo lora 8, checkpointing": _case(
        "ppo", "llama2", 128, 6, lora=_lora(8), gradientCheckpointing=True, **_EPISODE
    ),
}


class _Samples:
    """A sample set in memory, all samples of one size: ``segments`` of ``length`` tokens, all targets."""

    def __init__(self, count: int, length: int, segments: int = 1) -> None:
        self._count, self._length, self._segments = count, length, segments
        self.tokens: npt.NDArray[np.int64] = np.full(count, length * segments, dtype=np.int64)
        self.targets: npt.NDArray[np.int64] = np.full(count, (length - 1) * segments, dtype=np.int64)
        self.groups: npt.NDArray[np.int32] = np.zeros(count, dtype=np.int32)
        self.group_names = ["all"]

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        target = np.arange(self._length) > 0
        found = []
        for index in indices:
            random = np.random.default_rng(index)
            segments = tuple(
                Segment(random.integers(4, _TOKENS - 20, self._length, dtype=np.int32), target)
                for _ in range(self._segments)
            )
            ranks = tuple(range(self._segments)) if self._segments > 1 else None
            found.append(Sample(index, segments, ranks))
        return found


def make_base(folder: Path, config: dict[str, Any]) -> None:
    """Writes a random base of a layout with a tokenizer of a few entries, and the adapters that PPO takes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from zhongjing.config.stages import Lora
    from zhongjing.data.templates import CHATML_TEMPLATE
    from zhongjing.model.adapters import add_lora, save_adapter
    from zhongjing.model.base import load_base, write_generation_config
    from zhongjing.model.reward import build_reward_model, save_reward_model
    from zhongjing.model.tokenizer import train_bpe

    train_bpe(
        ["感冒有哪些症状？", "高血压患者应该注意什么？"] * 20,
        _TOKENS,
        CHATML_TEMPLATE,
        folder,
        max_length=4096,
    )
    made = AutoConfig.for_model(
        **config, max_position_embeddings=4096, bos_token_id=None, dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_config(made)
    # In another format than any of the cases trains in: weights as they are stored stay mapped files, whose
    # pages count for nothing.
    model.half().save_pretrained(str(folder))
    write_generation_config(folder)
    del model
    lora = Lora.model_validate(_lora(16))
    sft = add_lora(load_base(folder, dtype=torch.float32), lora, "default", 5)
    save_adapter(sft, folder / "sft", "base")
    save_reward_model(build_reward_model(folder, lora, 7, torch.float32), folder / "rm", "base")


def run_worker(case: Case, base: Path, out: Path) -> None:
    """A rank: the stage's program and the loop."""
    import torch

    from tests.local_context import LocalContext
    from zhongjing.train.distributed import ensure_process_group
    from zhongjing.train.loop import run_loop
    from zhongjing.train.stages.build import build_program
    from zhongjing.train.stages.inputs import StageInputs

    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    settings = case.settings()
    answers = 4 if case.stage == "rm" else 1
    train, held_out = _Samples(64, case.segment, answers), _Samples(0, case.segment, answers)
    device = torch.device("cuda", 0) if settings.resources.gpus else torch.device("cpu")
    ensure_process_group(device)
    inputs = StageInputs(
        base=base,
        base_reference=str(base),
        tokenizer=base,
        train=train,
        validation=held_out,
        rank=rank,
        world_size=workers,
        device=device,
        seed=3,
        adapter=base / "sft",
        reward=base / "rm",
    )
    context = LocalContext(out, rank=rank, world_size=workers, device=device)
    result = run_loop(build_program(settings, inputs), settings, context, seed=3)
    assert result.steps >= _STEPS
    if settings.resources.gpus:
        (out / PEAK_FILE).write_text(str(torch.cuda.max_memory_allocated(device)), encoding="ascii")


def measure(name: str, case: Case, base: Path, out: Path) -> int:
    """Most anonymous memory of rank 0, bytes."""
    workers = case.settings().workers
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(workers):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(workers),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [
            sys.executable,
            "-m",
            "benchmarks.plan_memory",
            "--worker",
            json.dumps(asdict(case)),
            str(base),
            str(out),
        ]
        processes.append(subprocess.Popen(command, env=environment, stdout=sys.stderr))
    peak, deadline = 0, time.monotonic() + _SECONDS
    status = Path(f"/proc/{processes[0].pid}/status")
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break  # the others would wait for it
            peak = max(peak, _anonymous(status))
            time.sleep(0.002)
    finally:
        for process in processes:
            process.kill()
    if any(process.wait() for process in processes):
        raise SystemExit(f"{name}: a worker failed")
    return peak


def _anonymous(status: Path) -> int:
    try:
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has ended
    return 0


def main() -> int:
    """Runs the configurations; exit status."""
    if sys.argv[1:2] == ["--worker"]:
        given = json.loads(sys.argv[2])
        run_worker(Case(**given), Path(sys.argv[3]), Path(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fitted", action="store_true", help="those that the plan was fitted to")
    parser.add_argument("--only", nargs="*", help="names of configurations")
    parser.add_argument("--bases", type=Path, help="folder that keeps the bases; none: made anew")
    arguments = parser.parse_args()
    cases = FITTED if arguments.fitted else CASES
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.bases or Path(scratch)
        print(f"{'configuration':<42}{'plan':>9}{'peak':>9}{'error':>8}   MiB")
        for at, (name, case) in enumerate(cases.items()):
            if arguments.only and name not in arguments.only:
                continue
            base = folder / case.base
            if not (base / "rm").exists():
                base.mkdir(parents=True, exist_ok=True)
                make_base(base, BASES[case.base])
            shape = of_config(json.loads((base / "config.json").read_text(encoding="utf-8")))
            assert shape is not None
            plan = plan_memory(shape, case.settings()).host
            started = time.monotonic()
            peak = measure(name, case, base, Path(scratch) / f"run-{at}")
            error = plan / peak - 1
            worst = max(worst, abs(error))
            seconds = time.monotonic() - started
            print(
                f"{name:<42}{plan / MIB:>9.0f}{peak / MIB:>9.0f}{error:>+8.1%}   {seconds:.0f} s", flush=True
            )
    print(f"worst {worst:.1%}, bound {BOUND:.0%}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
