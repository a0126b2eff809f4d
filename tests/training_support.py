"""Small samples, a tiny base and processes of several ranks, for the tests of training."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zhongjing.config.sources import TinyBase
from zhongjing.data.samples import Sample, SampleSet, Segment
from zhongjing.model.base import make_tiny_base
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.train.stages.inputs import StageInputs

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ListSamples:
    """A :class:`zhongjing.data.samples.SampleSet` in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        self.tokens: npt.NDArray[np.int64] = np.array([s.tokens for s in samples], dtype=np.int64)
        self.targets: npt.NDArray[np.int64] = np.array([s.targets for s in samples], dtype=np.int64)
        self.groups: npt.NDArray[np.int32] = np.zeros(len(samples), dtype=np.int32)
        self.group_names = ["all"]

    def __len__(self) -> int:
        return len(self.samples)

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        return [self.samples[index] for index in indices]


def dialogues(count: int, *, seed: int = 0, first: int = 50, tokens: int = 20) -> ListSamples:
    """Sequences of a counting rule that a model can learn; a random head without targets, lengths unequal."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        prompt, answer = int(random.integers(2, 9)), int(random.integers(2, 14))
        start, stride = int(random.integers(tokens)), int(random.integers(1, 3))
        rule = first + (start + stride * np.arange(prompt + answer)) % tokens
        target = np.arange(prompt + answer) >= prompt
        samples.append(Sample(index, (Segment(rule.astype(np.int32), target),)))
    return ListSamples(samples)


def rankings(count: int, *, answers: int = 4, seed: int = 0, first: int = 50) -> ListSamples:
    """Prompts whose better answers hold more of one token; every fifth has a tie."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        prompt = random.integers(first, first + 20, 4)
        ranks = list(range(answers))
        if answers > 2 and index % 5 == 0:
            ranks[-1] = ranks[-2]
        segments = []
        for rank in ranks:
            length = int(random.integers(4, 9))
            body = random.integers(first, first + 20, length)
            body[: max(answers - rank, 0)] = first + 30
            ids = np.concatenate([prompt, random.permutation(body), [first + 31]]).astype(np.int32)
            segments.append(Segment(ids, np.zeros(len(ids), dtype=np.bool_)))
        samples.append(Sample(index, tuple(segments), tuple(ranks)))
    return ListSamples(samples)


def tiny(**changes: Any) -> TinyBase:
    """A model of a few ten thousand parameters."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    return TinyBase(**{**sizes, "vocabulary_size": 400, "max_positions": 128, **changes})


def tiny_base(folder: Path, **changes: Any) -> Path:
    """Writes such a model, random, with its tokenizer."""
    texts = ["感冒有哪些症状？", "高血压患者应该注意什么？", "a b c d e f g"] * 20
    make_tiny_base(folder, tiny(**changes), texts, 0, TEMPLATE)
    assert len(load_tokenizer(folder)) > 100
    return folder


def stage_inputs(
    base: Path, train: SampleSet, validation: SampleSet, *, seed: int = 0, **changes: Any
) -> StageInputs:
    """A stage's inputs for this rank, on the CPU unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {
        "base_reference": "s3://bucket/base",
        "tokenizer": base,
        "rank": int(os.environ.get("RANK", "0")),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.device("cpu"),
    }
    return StageInputs(base=base, train=train, validation=validation, seed=seed, **{**fields, **changes})


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forked_main(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def start_forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts ``target(*arguments)`` in a process with this one's environment.

    Torch, transformers and DeepSpeed are imported once, by the server that they all are forked from.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training_preload"])
    process = context.Process(target=_forked_main, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def _rank_main(job: str, folder: str, options: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    output = os.open(f"{folder}/output-{environment['RANK']}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from tests.training_jobs import JOBS

    outcome = JOBS[job](Path(folder), **options)
    (Path(folder) / f"result-{environment['RANK']}.json").write_text(json.dumps(outcome))


def run_ranks(job: str, folder: Path, world_size: int, **options: Any) -> list[dict[str, Any]]:
    """Runs ``tests.training_jobs.<job>(folder, **options)`` in processes; their results by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        start_forked(
            _rank_main, job, str(folder), options, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(world_size)
    ]
    try:
        deadline = time.monotonic() + 240
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                break  # the others would wait for it in a collective
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    outputs = [(folder / f"output-{rank}.txt").read_text() for rank in range(world_size)]
    assert codes == [0] * world_size, "\n".join(outputs)
    assert not any("[INFO]" in output or "[WARNING]" in output for output in outputs), outputs
    results: list[dict[str, Any]] = [
        json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(world_size)
    ]
    return results
