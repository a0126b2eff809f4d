"""Generation of responses for PPO.

:class:`CompactingEngine` keeps one key-value cache for a batch of left-padded prompts. Rows that are done
leave the batch at once, and so do columns that are padding for all who stay, so that the work falls with the
number of open responses. It runs the policy through the router: nothing is switched, merged or copied but
the small matrices of the adapters.

A response depends on the weights, its prompt and its seed, and not on the rows beside it (to rounding): every
response draws from a random stream of its own, one number a token. So results do not depend on the number of
workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from zhongjing.codes import data as data_codes
from zhongjing.codes import model as model_codes
from zhongjing.errors import DataError
from zhongjing.model.adapters import linear_layers
from zhongjing.model.causal import backbone, output_layer
from zhongjing.model.kv_cache import batches_within, free_bytes, row_size
from zhongjing.model.quantization import compute_dtype
from zhongjing.model.router import AdapterRouter, Part
from zhongjing.planning.row_size import FREE_FRACTION, MOST_ROWS
from zhongjing.storage.heartbeat import beat

logger = logging.getLogger(__name__)

Tokens = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. No top-k and no top-p: the trainer's log-probabilities are of all tokens.

    Attributes:
        max_new_tokens: longest response, its end included.
        stop_ids: tokens that end a response (the turn's end, the document's end); they are part of it.
        temperature: logits are divided by it; 0 takes the likeliest token.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Responses:
    """Responses in the order of their prompts, on CPU. E responses.

    Attributes:
        tokens: int64 [E, max_new_tokens], 0 after the end.
        lengths: int64 [E], with the end token where there is one; at least 1.
        ended: bool [E], whether a stop token ended the response.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    ended: torch.Tensor


class CompactingEngine:
    """Generates with the trainer's own model.

    Args:
        router: the model with its adapters.
        role: the role that answers.
        sampling: how tokens are chosen.
        cache_bytes: memory for the responses made at a time; none: a part (``FREE_FRACTION``) of what is free
            on the device when ``generate`` begins.
        max_rows: responses made at a time at most, however much memory there is.
    """

    def __init__(
        self,
        router: AdapterRouter,
        role: str,
        sampling: Sampling,
        *,
        cache_bytes: int | None = None,
        max_rows: int = MOST_ROWS,
    ) -> None:
        self._router = router
        self._role = role
        self._sampling = sampling
        self._cache_bytes = cache_bytes
        self._max_rows = max_rows
        self._decoder = backbone(router.model)
        self._head = output_layer(router.model)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tokens], seeds: Sequence[int]) -> Responses:
        """One response to each prompt; ``seeds[i]`` alone decides the randomness of response i.

        Nothing is kept when it returns: on a GPU the blocks that the cache was in go back to the device.

        Raises:
            DataError: a prompt is empty, or leaves the model no position for a response.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
        self._check(prompts)
        new = self._sampling.max_new_tokens
        tokens = torch.zeros(len(prompts), new, dtype=torch.int64)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        # Rows of similar length together: less padding.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        # The role's adapters as they are now, fused into one pair of matrices a layer.
        self._router.fuse(self._role)
        try:
            with _evaluating(self._router.model):
                for batch in self._batches([len(prompts[i]) for i in order]):
                    rows = order[batch.start : batch.stop]
                    found = self._batch([prompts[i] for i in rows], [seeds[i] for i in rows])
                    index = torch.tensor(rows)
                    tokens[index], lengths[index], ended[index] = found
        finally:
            self._router.drop_fused()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return Responses(tokens, lengths, ended)

    def _batches(self, lengths: Sequence[int]) -> list[range]:
        """Batches of rows, as the memory allows; ``lengths`` of prompts, ascending."""
        model, new = self._router.model, self._sampling.max_new_tokens
        linear = next(iter(linear_layers(model).values()))
        size = row_size(model.config, compute_dtype(linear))
        budget = self._cache_bytes
        if budget is None:
            budget = int(FREE_FRACTION * free_bytes(next(model.parameters()).device))
        above = sum(size.needed(1, length, new) > budget for length in lengths)
        if above:
            logger.warning(
                "%d of %d responses need more memory than there is for them (%.2f of %.2f GiB): each is made "
                "by itself",
                above,
                len(lengths),
                size.needed(1, lengths[-1], new) / 2**30,
                budget / 2**30,
            )
        return list(batches_within(lengths, new, size, budget, self._max_rows))

    def _check(self, prompts: Sequence[Tokens]) -> None:
        positions = getattr(self._router.model.config, "max_position_embeddings", None)
        for prompt in prompts:
            if not len(prompt):
                raise DataError("a prompt has no tokens", code=data_codes.UNUSABLE_RECORD)
            if isinstance(positions, int) and len(prompt) + self._sampling.max_new_tokens > positions:
                raise DataError(
                    f"a prompt of {len(prompt)} tokens with a response of {self._sampling.max_new_tokens} is "
                    f"longer than the model's {positions} positions",
                    code=model_codes.TOO_LONG_FOR_MODEL,
                    where="spec.stages.ppo.maxNewTokens",
                    remedy="lower maxPromptLength or maxNewTokens",
                )

    def _batch(
        self, prompts: Sequence[Tokens], seeds: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = next(self._router.model.parameters()).device
        new = self._sampling.max_new_tokens
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt, dtype=np.int64))
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        draws = _draws(seeds, new).to(device) if self._sampling.temperature > 0 else None
        stops = torch.tensor(self._sampling.stop_ids, dtype=torch.int64, device=device)
        tokens = torch.zeros(len(prompts), new, dtype=torch.int64, device=device)
        lengths = torch.full((len(prompts),), new, dtype=torch.int64, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        rows = torch.arange(len(prompts), device=device)  # rows that are still open
        cache = DynamicCache(config=self._router.model.config)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        for step in range(new):
            with self._router.open(Part(self._role), fused=True):
                hidden = self._decoder(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
            beat()
            logits = self._head(hidden).float()
            chosen = _choose(logits, self._sampling.temperature, None if draws is None else draws[rows, step])
            tokens[rows, step] = chosen
            over = torch.isin(chosen, stops)
            open_rows = (~over).nonzero().squeeze(1)
            if len(open_rows) < len(rows):
                done = rows[over]
                lengths[done], ended[done] = step + 1, True
                if not len(open_rows):
                    break
                rows, chosen = rows[open_rows], chosen[open_rows]
                cache.batch_select_indices(open_rows)
                mask = _trim(cache, mask[open_rows])
                positions = positions[open_rows]
            ids = chosen[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return tokens.cpu(), lengths.cpu(), ended.cpu()


def _draws(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Uniform numbers, fp64 [len(seeds), count]; a row depends on its own seed only."""
    generator = torch.Generator()
    return torch.stack(
        [torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(seed)) for seed in seeds]
    )


def _choose(logits: torch.Tensor, temperature: float, draws: torch.Tensor | None) -> torch.Tensor:
    """One token a row, int64 [R], from logits fp32 [R, V]: where the running sum of shares passes draws."""
    if draws is None:
        return logits.argmax(-1)
    # fp64: with a large vocabulary the rounding of an fp32 running sum would be near the rare tokens' shares.
    sums = torch.softmax(logits / temperature, dim=-1, dtype=torch.float64).cumsum(-1)
    chosen = torch.searchsorted(sums, (draws * sums[:, -1])[:, None], right=True).squeeze(1)
    return chosen.clamp_max(logits.shape[-1] - 1)


def _trim(cache: DynamicCache, mask: torch.Tensor) -> torch.Tensor:
    """Drops the leading columns that are padding in every row, from the cache too."""
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    if len(layers) < len(cache.layers):
        return mask  # a sliding window counts columns itself
    lead = int(mask.argmax(1).min())
    if lead:
        for layer in layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[..., lead:, :], layer.values[..., lead:, :]
    return mask[:, lead:]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode: with gradient checkpointing, transformers keeps no cache while training."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
