"""What a causal language model is asked for in training: losses, log-probabilities, hidden states.

Three rules hold here. Logits are computed only where a token is to be predicted, in chunks, so there is never
a ``[batch, length, vocabulary]`` tensor. The log-softmax is fp32 whatever the weights are. Nothing here makes
the host wait for the device: sizes come from the batch, which knows them.

Shapes: R rows, L columns, S segments, T targets, H hidden channels, V entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zhongjing.codes import model as codes
from zhongjing.data.samples import MicroBatch, PackedRow
from zhongjing.errors import DataError
from zhongjing.model.attention import packed_arguments

DEFAULT_CHUNK_TOKENS = 1024

# Families that change the logits after the output layer; our loss would be silently wrong for them.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrapper, adapters still in place; others are given back as is."""
    inner = getattr(model, "get_base_model", None)
    return cast(nn.Module, inner()) if callable(inner) else model


def backbone(model: nn.Module) -> nn.Module:
    """The decoder without its head (``LlamaModel`` of ``LlamaForCausalLM``).

    Raises:
        DataError: the model has no such part.
    """
    inner = unwrap(model)
    prefix = getattr(inner, "base_model_prefix", "")
    found = getattr(inner, prefix, None) if prefix else None
    if isinstance(found, nn.Module):
        return found
    raise DataError(
        f"{type(inner).__name__} has no decoder that can be used alone",
        code=codes.UNSUPPORTED_MODEL,
    )


def output_layer(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits, possibly wrapped by PEFT.

    Raises:
        DataError: there is none, or the family changes the logits after it.
    """
    inner = unwrap(model)
    getter = getattr(inner, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if not isinstance(head, nn.Module):
        raise DataError(f"{type(inner).__name__} has no output layer", code=codes.UNSUPPORTED_MODEL)
    config = getattr(inner, "config", None)
    for name in _LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise DataError(
                f"{type(inner).__name__} changes its logits by {name}, which the chunked loss does not do",
                code=codes.UNSUPPORTED_MODEL,
            )
    return head


def hidden_states(model: nn.Module, row: PackedRow) -> torch.Tensor:
    """Last hidden states, [1, T, H]. ``model`` was loaded with attention for packed rows."""
    output = backbone(model)(input_ids=row.input_ids, use_cache=False, **packed_arguments(row))
    return cast(torch.Tensor, output.last_hidden_state)


def segment_ends_hidden(model: nn.Module, row: PackedRow) -> torch.Tensor:
    """Hidden states at the last token of each segment, [S, H]: what a scalar head reads."""
    return hidden_states(model, row)[0, row.ends]


def _places(targets: torch.Tensor, count: int) -> torch.Tensor:
    """Flat positions of the True entries, int64 [T]; ``count`` of them, so that the host does not wait."""
    return torch.nonzero_static(targets.flatten(), size=count).flatten()


def _before(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Hidden states of the tokens before ``places``: what predicts them, [T, H]."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, places - 1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the negative log-likelihood of ``labels`` under ``softmax(hidden @ weight.T)``.

    With fp32 weights the gradients are made beside the loss, so no logit is computed twice. With 16-bit
    weights they are made in the backward pass from logits computed again: only there is the loss scale known,
    and without it small gradients would underflow.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk_tokens: int
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        ctx.chunk_tokens = chunk_tokens
        ctx.ready = hidden.dtype == torch.float32
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden and ctx.ready else None
        grad_weight = torch.zeros_like(weight) if needs_weight and ctx.ready else None
        for start in range(0, len(labels), chunk_tokens):
            part = hidden[start : start + chunk_tokens]
            wanted = labels[start : start + chunk_tokens, None]
            logprobs = functional.log_softmax(part @ weight.T, dim=-1, dtype=torch.float32)
            total -= logprobs.gather(1, wanted).sum()
            if grad_hidden is None and grad_weight is None:
                del logprobs
                continue
            slope = logprobs.exp_()
            slope.scatter_(1, wanted, slope.gather(1, wanted) - 1)
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[start : start + chunk_tokens])
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, part)
            del logprobs, slope  # else they would be there beside the next chunk's
        if ctx.ready:
            ctx.save_for_backward(grad_hidden, grad_weight)
        else:
            ctx.save_for_backward(hidden, weight, labels)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        if ctx.ready:
            grad_hidden, grad_weight = ctx.saved_tensors
            return (
                None if grad_hidden is None else grad_hidden * grad,
                None if grad_weight is None else grad_weight * grad,
                None,
                None,
            )
        hidden, weight, labels = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # fp32 over the chunks: a 16-bit running sum would round after each.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, len(labels), ctx.chunk_tokens):
            part = hidden[start : start + ctx.chunk_tokens]
            wanted = labels[start : start + ctx.chunk_tokens, None]
            slope = functional.softmax(part @ weight.T, dim=-1, dtype=torch.float32)
            slope.scatter_(1, wanted, slope.gather(1, wanted) - 1)
            scaled = slope.mul_(grad).to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(scaled, weight, out=grad_hidden[start : start + ctx.chunk_tokens])
            if grad_weight is not None:
                grad_weight += scaled.T @ part
            del slope, scaled  # as above
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _is_plain(head: nn.Module) -> bool:
    return type(head) is nn.Linear and head.bias is None


def linear_cross_entropy(
    hidden: torch.Tensor, head: nn.Module, labels: torch.Tensor, chunk_tokens: int = DEFAULT_CHUNK_TOKENS
) -> torch.Tensor:
    """Sum of the negative log-likelihood over T targets; fp32 scalar with grad.

    Args:
        hidden: [T, H], what predicts the targets.
        head: the output layer; a plain one without bias takes the fast path.
        labels: int64 [T], the tokens to predict.
        chunk_tokens: logits of so many targets exist at a time.
    """
    if _is_plain(head):
        return cast(
            torch.Tensor,
            _LinearCrossEntropy.apply(hidden, cast(nn.Linear, head).weight, labels, chunk_tokens),  # type: ignore[no-untyped-call]
        )

    def loss_of(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(labels), chunk_tokens):
        part, wanted = hidden[start : start + chunk_tokens], labels[start : start + chunk_tokens]
        # With an adapter on the output layer autograd has to see it; each chunk is computed again backwards.
        total = total + cast(torch.Tensor, checkpoint(loss_of, part, wanted, use_reentrant=False))
    return total


def target_losses(
    model: nn.Module, batch: MicroBatch, chunk_tokens: int = DEFAULT_CHUNK_TOKENS
) -> tuple[torch.Tensor, int]:
    """Sum of the negative log-likelihood over the batch's targets, and their number.

    Args:
        model: causal model of transformers, plain or wrapped by PEFT.
        batch: a packed row and its targets.
        chunk_tokens: logits of so many targets exist at a time.

    Returns:
        The sum, an fp32 scalar with grad (0, still connected to the parameters, in a dummy batch), and T.
    """
    hidden = hidden_states(model, batch.row)
    if batch.target_tokens == 0:
        # Connected to the output layer too: with its optimizer offloaded DeepSpeed loses what a parameter has
        # summed when a later micro-batch of the step gives it no gradient.
        nothing = hidden.float().sum() * 0.0
        for parameter in output_layer(model).parameters():
            if parameter.requires_grad:
                nothing = nothing + parameter.flatten()[0].float() * 0.0
        return nothing, 0
    places = _places(batch.targets, batch.target_tokens)
    labels = batch.row.input_ids.flatten().index_select(0, places)
    total = linear_cross_entropy(_before(hidden, places), output_layer(model), labels, chunk_tokens)
    return total, batch.target_tokens


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities of taken tokens; 0 where there is no target."""

    logprobs: torch.Tensor  # fp32 [R, L]
    entropy: torch.Tensor | None  # fp32 [R, L], of the distribution the token was taken from


def token_logprobs(  # noqa: PLR0917
    hidden: torch.Tensor,
    head: nn.Module,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    target_tokens: int,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> TokenLogprobs:
    """Log-probabilities of the tokens at ``targets`` under the model at ``temperature``; differentiable.

    Args:
        hidden: [R, L, H], of the decoder.
        head: the output layer.
        input_ids: int64 [R, L].
        targets: bool [R, L]; ``targets[r, t]``: token t is wanted, given those before it. Never the first
            token of a segment.
        target_tokens: number of targets, so that the host need not wait for the device.
        temperature: logits are divided by it before the softmax.
        entropy: also return the entropy (nats).
        chunk_tokens: logits of so many targets exist at a time.
    """

    def of_chunk(part: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = functional.log_softmax(head(part).float() / temperature, dim=-1)
        taken = scores.gather(1, wanted[:, None]).squeeze(1)
        spread = -(scores.exp() * scores).sum(-1) if entropy else taken.detach()
        return taken, spread

    places = _places(targets, target_tokens)
    labels = input_ids.flatten().index_select(0, places)
    before = _before(hidden, places)
    chunks: list[tuple[torch.Tensor, torch.Tensor]] = []
    # A single chunk is kept for the backward pass; of several, each is computed again.
    keep = len(labels) <= chunk_tokens or not torch.is_grad_enabled()
    for start in range(0, len(labels), chunk_tokens):
        part, wanted = before[start : start + chunk_tokens], labels[start : start + chunk_tokens]
        chunks.append(
            of_chunk(part, wanted)
            if keep
            else cast(
                tuple[torch.Tensor, torch.Tensor], checkpoint(of_chunk, part, wanted, use_reentrant=False)
            )
        )
    empty = hidden.new_zeros(targets.numel(), dtype=torch.float32)
    if not chunks:
        blank = empty + hidden.float().sum() * 0.0
        return TokenLogprobs(blank.view(targets.shape), blank.view(targets.shape) if entropy else None)
    logprobs = empty.index_put((places,), torch.cat([taken for taken, _ in chunks])).view(targets.shape)
    if not entropy:
        return TokenLogprobs(logprobs, None)
    spread = empty.index_put((places,), torch.cat([spread for _, spread in chunks])).view(targets.shape)
    return TokenLogprobs(logprobs, spread)
