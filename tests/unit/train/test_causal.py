"""The chunked loss against transformers' own, isolation of segments, log-probabilities."""

from __future__ import annotations

import weakref
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from zhongjing.data.batches import collate
from zhongjing.data.samples import MicroBatch, Sample, Segment
from zhongjing.errors import DataError
from zhongjing.model.attention import PACKED
from zhongjing.model.causal import (
    backbone,
    hidden_states,
    linear_cross_entropy,
    output_layer,
    segment_ends_hidden,
    target_losses,
    token_logprobs,
)
from zhongjing.train.parameters import enable_gradient_checkpointing

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
    """A random model as ours are loaded: with attention for packed rows."""
    torch.manual_seed(0)
    sizes = {**SIZES, "tie_word_embeddings": tied}
    if family == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**{**sizes, "num_key_value_heads": 4}))
    elif family == "llama-gqa":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    elif family == "mistral":  # a window that is shorter than the longest segment
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=6))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.set_attn_implementation(PACKED)
    return model


def with_lora(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, config)


def segments(seed: int = 0, lengths: tuple[int, ...] = (7, 12, 5)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = np.random.default_rng(seed)
    made = []
    for length in lengths:
        target = torch.from_numpy(random.random(length) < 0.6)
        target[-1] = True
        target[0] = False
        made.append((torch.from_numpy(random.integers(1, VOCABULARY, length)), target))
    return made


def packed(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> MicroBatch:
    return collate(
        [
            Sample(index, (Segment(tokens.numpy(), target.numpy()),))
            for index, (tokens, target) in enumerate(parts)
        ]
    )


def reference(model: torch.nn.Module, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The sum over padded rows, by transformers alone: its mask, its positions, its loss."""
    width = max(len(tokens) for tokens, _ in parts)
    ids, mask = torch.zeros(len(parts), width, dtype=torch.int64), torch.zeros(len(parts), width)
    labels = torch.full((len(parts), width), -100)
    for row, (tokens, target) in enumerate(parts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(target, tokens, -100)
    mean = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return cast(torch.Tensor, mean * sum(int(target.sum()) for _, target in parts))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "llama-gqa", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_padded_rows(
    family: str, lora: bool, checkpointing: bool
) -> None:
    parts = segments(lengths=(7, 12, 12, 5, 1, 30))
    found = []
    for attention in ("sdpa", PACKED):
        model: torch.nn.Module = build(family)
        cast(PreTrainedModel, model).set_attn_implementation(attention)
        if checkpointing and attention == PACKED:
            enable_gradient_checkpointing(cast(PreTrainedModel, model))
        if lora:
            model = with_lora(model)  # type: ignore[arg-type]
        model.train()
        if attention == PACKED:
            total, count = target_losses(model, packed(parts), 16)
            assert count == sum(int(target.sum()) for _, target in parts)
        else:
            total = reference(model, parts)
        found.append((total, gradients(model, total * 0.37)))
    (want, wanted), (total, got) = found
    torch.testing.assert_close(total, want, rtol=1e-5, atol=0)
    assert len(wanted) > 20
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_chunks_and_tied_embeddings_change_nothing(tied: bool, chunk: int) -> None:
    model = build("llama", tied=tied)
    parts = segments()
    want = reference(model, parts)
    wanted = gradients(model, want)
    total, _ = target_losses(model, packed(parts), chunk)
    got = gradients(model, total)
    torch.testing.assert_close(total, want, rtol=1e-5, atol=0)
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_an_adapter_on_the_output_layer_is_seen() -> None:
    model = with_lora(build("llama"), ["q_proj", "lm_head"])
    parts = segments()
    wanted = gradients(model, reference(model, parts))
    got = gradients(model, target_losses(model, packed(parts), 4)[0])
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
    batch = packed(segments(lengths=(30, 30, 30)))
    target_losses(build("llama"), batch, 8)
    assert len(seen) > 1
    assert max(seen) == 8 * VOCABULARY


def test_packed_segments_do_not_leak() -> None:
    model = build("qwen2")
    parts = segments()
    embedded: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        embedded.append(output)
        return output

    handle = backbone(model).embed_tokens.register_forward_hook(keep)  # type: ignore[union-attr]
    states = hidden_states(model, packed(parts).row)
    states[0, 7:19].square().sum().backward()
    handle.remove()
    gradient = embedded[0].grad
    assert gradient is not None
    assert gradient[0, :7].abs().max() == 0
    assert gradient[0, 19:].abs().max() == 0
    assert gradient[0, 7:19].abs().max() > 0

    changed = [segments(seed=9)[0], parts[1], segments(seed=9)[2]]
    with torch.no_grad():
        before = hidden_states(model, packed(parts).row)[0, 7:19]
        after = hidden_states(model, packed(changed).row)[0, 7:19]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


def test_a_batch_without_targets_keeps_the_graph() -> None:
    model = build("llama")
    batch = packed([(ids, torch.zeros_like(target)) for ids, target in segments()])
    total, count = target_losses(model, batch)
    assert count == 0
    assert total.item() == 0
    got = gradients(model, total)
    assert got
    assert all(gradient.abs().max() == 0 for gradient in got.values())


def test_ends_of_segments_are_those_of_single_rows() -> None:
    model = build("qwen3")
    parts = segments()
    with torch.no_grad():
        ends = segment_ends_hidden(model, packed(parts).row)
        alone = [backbone(model)(input_ids=ids[None]).last_hidden_state[0, -1] for ids, _ in parts]
    torch.testing.assert_close(ends, torch.stack(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_token_logprobs_and_entropy(chunk: int) -> None:
    model = build("llama")
    parts = segments()
    batch = packed(parts)
    ours = token_logprobs(
        hidden_states(model, batch.row),
        output_layer(model),
        batch.row.input_ids,
        batch.targets,
        batch.target_tokens,
        0.7,
        entropy=True,
        chunk_tokens=chunk,
    )
    wanted, spread = [], []
    for ids, target in parts:
        whole = functional.log_softmax(model(input_ids=ids[None]).logits[0, :-1].float() / 0.7, -1)
        taken = whole.gather(-1, ids[1:, None])[:, 0]
        wanted.append(functional.pad(taken * target[1:], (1, 0)))
        spread.append(functional.pad(-(whole.exp() * whole).sum(-1) * target[1:], (1, 0)))
    together = torch.cat(wanted)[None]
    torch.testing.assert_close(ours.logprobs, together, rtol=1e-5, atol=1e-5)
    assert ours.entropy is not None
    torch.testing.assert_close(ours.entropy, torch.cat(spread)[None], rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(together)
    theirs = gradients(model, (together * weights).sum())
    mine = gradients(model, (ours.logprobs * weights).sum())
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_family_that_changes_its_logits_is_refused() -> None:
    model = build("llama")
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(DataError, match="final_logit_softcapping"):
        output_layer(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_no_chunk_of_scores_is_there_beside_the_next(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, trained: bool
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            assert not any(scores() is not None for scores in made)
            found: torch.Tensor = function(*args, **kwargs)
            made.append(weakref.ref(found))
            return found

        return call

    monkeypatch.setattr(functional, "log_softmax", watched(functional.log_softmax))
    monkeypatch.setattr(functional, "softmax", watched(functional.softmax))
    head = torch.nn.Linear(8, VOCABULARY, bias=False, dtype=dtype).requires_grad_(trained)
    hidden = torch.randn(30, 8, dtype=dtype, requires_grad=True)
    linear_cross_entropy(hidden, head, torch.arange(30), chunk_tokens=7).backward()
    with torch.no_grad():
        linear_cross_entropy(hidden, head, torch.arange(30), chunk_tokens=7)
    assert len(made) >= 10
