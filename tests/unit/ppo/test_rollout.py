"""Generation: the compacting loop against transformers, and independence of what stands beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from zhongjing.errors import DataError
from zhongjing.model import rollout
from zhongjing.model.base import load_base
from zhongjing.model.kv_cache import row_size
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.train.ppo.artifact import write_policy
from zhongjing.train.ppo.roles import PpoModule

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21]]


def engine_of(
    module: PpoModule, max_rows: int = 64, cache_bytes: int | None = None, **fields: Any
) -> CompactingEngine:
    sampling = Sampling(**{"max_new_tokens": 12, "stop_ids": (), "temperature": 1.0, **fields})
    return CompactingEngine(module.router, "policy", sampling, cache_bytes=cache_bytes, max_rows=max_rows)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_greedy_equals_transformers(
    module_of: Callable[..., PpoModule], folders_of: Callable[[str], Any], tmp_path: Path, family: str
) -> None:
    module, folders = module_of(family), folders_of(family)
    write_policy(
        module.router,
        tmp_path / "policy",
        tmp_path / "scratch",
        sft=folders.sft,
        lora=module.settings.lora,
        base=str(folders.base),
    )
    oracle = PeftModel.from_pretrained(
        load_base(folders.base, dtype=torch.float32), str(tmp_path / "policy")
    ).eval()

    def alone(prompt: list[int], stops: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        found = oracle.generate(  # type: ignore[no-untyped-call]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=0,
        )
        return [int(token) for token in found[0, len(prompt) :]]

    free = [alone(prompt, []) for prompt in PROMPTS]
    # Tokens that really occur, at different places: rows must leave the batch at different times.
    stops = sorted({free[0][2], free[2][5], free[4][9]})
    made = engine_of(module, temperature=0.0, stop_ids=tuple(stops)).generate(PROMPTS, [0] * 5)
    lengths = set()
    for row, prompt in enumerate(PROMPTS):
        expected = alone(prompt, stops)
        assert made.tokens[row, : int(made.lengths[row])].tolist() == expected
        assert bool(made.ended[row]) == (expected[-1] in stops)
        assert made.tokens[row, len(expected) :].sum() == 0
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_a_sample_does_not_depend_on_its_neighbours(module_of: Callable[..., PpoModule]) -> None:
    module = module_of("llama")
    stops = tuple(range(40))  # about one token in eight: rows end all the time
    engine = engine_of(module, stop_ids=stops)
    together = engine.generate(PROMPTS * 4, list(range(20)))
    assert 0 < int(together.ended.sum()) < 20
    few = engine_of(module, max_rows=3, stop_ids=stops).generate(PROMPTS * 4, list(range(20)))
    assert torch.equal(together.tokens, few.tokens)
    for row in (0, 7, 19):
        alone = engine.generate([PROMPTS[row % 5]], [row])
        assert torch.equal(alone.tokens[0], together.tokens[row])
    # Another seed gives another sample, the same seed the same one.
    assert not torch.equal(engine.generate([PROMPTS[0]], [99]).tokens[0], together.tokens[0])


def test_the_cache_stays_within_its_budget_and_the_answers_as_they_were(
    module_of: Callable[..., PpoModule], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[tuple[int, int]] = []  # rows and bytes of the whole cache, after every layer's update

    class Watched(DynamicCache):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            found = super().update(*args, **kwargs)
            layers = [layer for layer in self.layers if isinstance(layer, DynamicLayer)]
            tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
            held.append((len(found[0]), sum(int(tensor.nbytes) for tensor in tensors)))
            return found

    monkeypatch.setattr(rollout, "DynamicCache", Watched)
    module = module_of("llama")
    prompts, seeds = PROMPTS * 2, list(range(10))
    wanted = engine_of(module, stop_ids=tuple(range(40))).generate(prompts, seeds)
    size = row_size(module.router.model.config, torch.float32)
    # The count is exact: all ten rows with as many tokens as they grew to.
    full = engine_of(module, temperature=0.0)
    held.clear()
    full.generate([PROMPTS[0]] * 10, seeds)
    assert max(bytes_ for _, bytes_ in held) == 10 * (len(PROMPTS[0]) + 12 - 1) * size.token
    most = {}
    for rows in (1, 3):
        budget = size.needed(rows, max(map(len, PROMPTS)), 12)
        held.clear()
        made = engine_of(module, cache_bytes=budget, stop_ids=tuple(range(40))).generate(prompts, seeds)
        assert torch.equal(made.tokens, wanted.tokens)
        assert max(bytes_ for _, bytes_ in held) <= budget
        most[rows] = max(count for count, _ in held)
    assert all(count >= rows for rows, count in most.items())
    assert most[1] < most[3] < 10
    assert not caplog.records
    # A row that is above the budget alone is made alone, and said.
    held.clear()
    made = engine_of(module, cache_bytes=1, stop_ids=tuple(range(40))).generate(prompts, seeds)
    assert torch.equal(made.tokens, wanted.tokens)
    assert {count for count, _ in held} == {1}
    assert "10 of 10 responses need more memory" in caplog.text


def test_samples_follow_the_distribution(module_of: Callable[..., PpoModule]) -> None:
    module = module_of("llama")
    temperature = 0.7
    engine = engine_of(module, max_new_tokens=1, temperature=temperature, max_rows=4000)
    made = engine.generate([PROMPTS[0]] * 4000, list(range(4000)))
    with torch.no_grad():
        from zhongjing.model.router import Part

        with module.router.open(Part("policy")):
            logits = module.model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -1]
    shares = torch.softmax(logits / temperature, 0)
    counts = torch.bincount(made.tokens[:, 0], minlength=len(shares)).double()
    expected = shares.double() * 4000
    kept = expected > 5
    statistic = float(((counts - expected).square() / expected)[kept].sum())
    freedom = int(kept.sum())
    # Mean `freedom`, variance 2 x freedom: five deviations off would be a wrong distribution.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_generation_leaves_the_model_as_it_was(module_of: Callable[..., PpoModule]) -> None:
    module = module_of("llama", gradientCheckpointing=True)
    module.train()
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    engine = engine_of(module)
    made = engine.generate(PROMPTS[:2], [1, 2])
    assert made.lengths.tolist() == [12, 12]
    assert module.training
    assert module.model.training
    assert {name: p.requires_grad for name, p in module.named_parameters()} == before
    assert not any(layer.fused for layer in module.router.layers.values())


def test_what_cannot_be_answered_is_refused(module_of: Callable[..., PpoModule]) -> None:
    engine = engine_of(module_of("llama"))
    with pytest.raises(DataError, match="no tokens"):
        engine.generate([[]], [0])
    with pytest.raises(DataError, match="longer than the model's 128 positions"):
        engine.generate([[1] * 120], [0])
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        engine.generate([[1], [2]], [0])
