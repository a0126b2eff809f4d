"""The chunked loss against transformers' own, isolation of segments, log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from zhongjing.data.samples import MicroBatch
from zhongjing.errors import DataError
from zhongjing.model.causal import (
    backbone,
    hidden_states,
    linear_cross_entropy,
    output_layer,
    segment_ends_hidden,
    target_losses,
    token_logprobs,
)

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def build(family: str, *, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=tied))


def with_lora(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, config)


def segments(seed: int = 0, lengths: tuple[int, ...] = (7, 12, 5)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = np.random.default_rng(seed)
    made = []
    for length in lengths:
        target = torch.from_numpy(random.random(length) < 0.6)
        target[0] = False
        target[-1] = True
        made.append((torch.from_numpy(random.integers(1, VOCABULARY, length)), target))
    return made


def padded(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> MicroBatch:
    rows, width = len(parts), max(len(ids) for ids, _ in parts) + 2
    ids, positions, mask = (torch.zeros(rows, width, dtype=torch.int64) for _ in range(3))
    targets = torch.zeros(rows, width, dtype=torch.bool)
    for row, (tokens, target) in enumerate(parts):
        length = len(tokens)
        ids[row, :length], targets[row, :length], mask[row, :length] = tokens, target, 1
        positions[row, :length] = torch.arange(length)
    return MicroBatch(
        ids,
        positions,
        mask,
        targets,
        torch.arange(rows),
        torch.tensor([len(tokens) - 1 for tokens, _ in parts]),
        torch.arange(rows),
        torch.zeros(rows, dtype=torch.int64),
        list(range(rows)),
        int(mask.sum()),
        int(targets.sum()),
    )


def packed(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> MicroBatch:
    lengths = torch.tensor([len(tokens) for tokens, _ in parts])
    targets = torch.cat([target for _, target in parts])[None]
    return MicroBatch(
        torch.cat([tokens for tokens, _ in parts])[None],
        torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        None,
        targets,
        torch.zeros(len(parts), dtype=torch.int64),
        lengths.cumsum(0) - 1,
        torch.arange(len(parts)),
        torch.zeros(len(parts), dtype=torch.int64),
        list(range(len(parts))),
        int(lengths.sum()),
        int(targets.sum()),
    )


def reference(model: torch.nn.Module, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Sum over the segments, one at a time, through the model's own head."""
    total = torch.zeros(())
    for tokens, target in parts:
        logits = model(input_ids=tokens[None]).logits[0]
        labels = torch.where(target, tokens, -100)[1:]
        total = total + functional.cross_entropy(logits[:-1].float(), labels, reduction="sum")
    return total


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "tied", "lora"),
    [
        ("llama", False, False),
        ("llama", True, False),
        ("qwen2", True, False),
        ("qwen3", True, False),
        ("llama", False, True),
        ("qwen3", True, True),
    ],
)
@pytest.mark.parametrize("layout", [padded, packed])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_loss_and_gradients_equal_the_models_own(
    family: str, tied: bool, lora: bool, layout: Any, chunk: int
) -> None:
    model: torch.nn.Module = build(family, tied=tied)
    if lora:
        model = with_lora(model)  # type: ignore[arg-type]
    parts = segments()
    want = reference(model, parts)
    want_gradients = gradients(model, want * 0.37)
    total, count = target_losses(model, layout(parts), chunk)
    got_gradients = gradients(model, total * 0.37)
    assert count == sum(int(target.sum()) for _, target in parts)
    torch.testing.assert_close(total, want, rtol=1e-6, atol=1e-5)
    assert want_gradients.keys() == got_gradients.keys()
    for name, wanted in want_gradients.items():
        torch.testing.assert_close(got_gradients[name], wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_an_adapter_on_the_output_layer_is_seen() -> None:
    model = with_lora(build("llama"), ["q_proj", "lm_head"])
    parts = segments()
    wanted = gradients(model, reference(model, parts))
    got = gradients(model, target_losses(model, padded(parts), 4)[0])
    assert any("lm_head" in name for name in got)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_follow_the_loss_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 16).to(dtype).requires_grad_()
    head = torch.nn.Linear(16, 50, bias=False).to(dtype)
    labels = torch.randint(50, (20,))
    for scale in (1.0, 1024.0):
        got = torch.autograd.grad(
            linear_cross_entropy(hidden, head, labels, 7) * scale / 20, (hidden, head.weight)
        )
        whole = functional.cross_entropy(head(hidden).float(), labels, reduction="sum") * scale / 20
        for ours, theirs in zip(got, torch.autograd.grad(whole, (hidden, head.weight)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4 * scale)
            assert ours.dtype == dtype


def test_no_logits_for_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = functional.log_softmax

    def spy(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(values.numel())
        return original(values, *args, **kwargs)

    monkeypatch.setattr(functional, "log_softmax", spy)
    batch = padded(segments(lengths=(30, 30, 30)))
    target_losses(build("llama"), batch, 8)
    assert len(seen) > 1
    assert max(seen) == 8 * VOCABULARY


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_segments_do_not_leak(attention: str) -> None:
    model = build("qwen2")
    model.set_attn_implementation(attention)
    parts = segments()
    embedded: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        embedded.append(output)
        return output

    handle = backbone(model).embed_tokens.register_forward_hook(keep)  # type: ignore[union-attr]
    states = hidden_states(model, packed(parts))
    states[0, 7:19].square().sum().backward()
    handle.remove()
    gradient = embedded[0].grad
    assert gradient is not None
    assert gradient[0, :7].abs().max() == 0
    assert gradient[0, 19:].abs().max() == 0
    assert gradient[0, 7:19].abs().max() > 0

    changed = [segments(seed=9)[0], parts[1], segments(seed=9)[2]]
    with torch.no_grad():
        before = hidden_states(model, packed(parts))[0, 7:19]
        after = hidden_states(model, packed(changed))[0, 7:19]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


def test_a_batch_without_targets_keeps_the_graph() -> None:
    model = build("llama")
    batch = padded([(ids, torch.zeros_like(target)) for ids, target in segments()])
    total, count = target_losses(model, batch)
    assert count == 0
    assert total.item() == 0
    got = gradients(model, total)
    assert got
    assert all(gradient.abs().max() == 0 for gradient in got.values())


def test_ends_of_segments_are_equal_in_both_layouts() -> None:
    model = build("qwen3")
    parts = segments()
    with torch.no_grad():
        torch.testing.assert_close(
            segment_ends_hidden(model, padded(parts)),
            segment_ends_hidden(model, packed(parts)),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("chunk", [3, 1000])
def test_token_logprobs_and_entropy(chunk: int) -> None:
    model = build("llama")
    batch = padded(segments())
    assert batch.attention_mask is not None
    ours = token_logprobs(
        model,
        batch.input_ids,
        batch.position_ids,
        batch.attention_mask,
        batch.targets,
        0.7,
        entropy=True,
        target_tokens=batch.target_tokens,
        chunk_tokens=chunk,
    )
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1] / 0.7
    whole = functional.log_softmax(logits.float(), -1)
    taken = whole.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    wanted = functional.pad(taken * batch.targets[:, 1:], (1, 0))
    torch.testing.assert_close(ours.logprobs, wanted, rtol=1e-5, atol=1e-5)
    spread = functional.pad(-(whole.exp() * whole).sum(-1) * batch.targets[:, 1:], (1, 0))
    assert ours.entropy is not None
    torch.testing.assert_close(ours.entropy, spread, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(wanted)
    theirs = gradients(model, (wanted * weights).sum())
    mine = gradients(model, (ours.logprobs * weights).sum())
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_token_logprobs_do_not_depend_on_the_side_of_the_padding() -> None:
    model = build("qwen2")
    ids, target = segments()[0]
    right = torch.zeros(1, 10, dtype=torch.int64)
    left, right_mask, left_mask = right.clone(), right.clone(), right.clone()
    right[0, :7], right_mask[0, :7] = ids, 1
    left[0, 3:], left_mask[0, 3:] = ids, 1
    right_targets, left_targets = torch.zeros(1, 10).bool(), torch.zeros(1, 10).bool()
    right_targets[0, :7], left_targets[0, 3:] = target, target
    positions = (left_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        one = token_logprobs(model, right, None, right_mask, right_targets).logprobs
        two = token_logprobs(model, left, positions, left_mask, left_targets).logprobs
    torch.testing.assert_close(one[right_targets], two[left_targets], rtol=1e-5, atol=1e-5)


def test_a_family_that_changes_its_logits_is_refused() -> None:
    model = build("llama")
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(DataError, match="final_logit_softcapping"):
        output_layer(model)
