"""Episodes and the micro-batches made of them.

Layout: prompt and response stand in one row, padded to the right. A quantity of the response's token t stands
in the column of that token, so log-probabilities, values, advantages and returns share one mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt, the policy's response with its end token if it has one, and whether it has one."""

    prompt: npt.NDArray[np.int64]
    response: npt.NDArray[np.int64]
    ended: bool

    @property
    def tokens(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class PpoMicroBatch:
    """Rows of one forward pass of policy and critic: R episodes, L columns.

    A filler has one row without targets: it weighs nothing and keeps the ranks in step.

    Attributes:
        input_ids: int64 [R, L].
        targets: bool [R, L], true on response tokens.
        target_tokens: number of them.
        old_logprobs: fp32 [R, L]; so are the next three; 0 off the targets.
        old_values: of the rollout's critic.
        advantages: of the rollout.
        returns: of the rollout.
        policy_weight: factor on the policy's loss: 0 while only the critic learns.
        fresh: nothing has been learnt since the rollout was measured: the ratio must be 1.
        last: of this rank in its step.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    target_tokens: int
    old_logprobs: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    old_values: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    policy_weight: float = 1.0
    fresh: bool = False
    last: bool = False

    def to(self, device: torch.device) -> PpoMicroBatch:
        """The same micro-batch on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            old_logprobs=self.old_logprobs.to(device, non_blocking=True),
            old_values=self.old_values.to(device, non_blocking=True),
            advantages=self.advantages.to(device, non_blocking=True),
            returns=self.returns.to(device, non_blocking=True),
        )


def response_mask(episodes: Sequence[Episode], columns: int) -> torch.Tensor:
    """Mask [E, columns], true on response tokens, counted from the first."""
    lengths = torch.tensor([len(episode.response) for episode in episodes])
    return torch.arange(columns)[None, :] < lengths[:, None]


def rows_of(episodes: Sequence[Episode], pad_id: int) -> PpoMicroBatch:
    """Tokens and targets of ``episodes``; none gives a filler."""
    if not episodes:
        blank = torch.full((1, 2), pad_id, dtype=torch.int64)
        return PpoMicroBatch(blank, torch.zeros(1, 2, dtype=torch.bool), 0)
    width = max(episode.tokens for episode in episodes)
    ids = np.full((len(episodes), width), pad_id, dtype=np.int64)
    targets = np.zeros((len(episodes), width), dtype=np.bool_)
    for row, episode in enumerate(episodes):
        start = len(episode.prompt)
        ids[row, :start] = episode.prompt
        ids[row, start : episode.tokens] = episode.response
        targets[row, start : episode.tokens] = True
    return PpoMicroBatch(torch.from_numpy(ids), torch.from_numpy(targets), int(targets.sum()))


def to_columns(batch: PpoMicroBatch, per_token: torch.Tensor) -> torch.Tensor:
    """[R, T] counted from the first response token, to [R, L] in the columns of the tokens; fp32."""
    placed = torch.zeros(batch.targets.shape, dtype=torch.float32)
    steps = batch.targets.cumsum(1) - 1
    if per_token.numel():
        rows = steps.clamp(0, per_token.shape[1] - 1)
        placed = torch.where(batch.targets, per_token.float().gather(1, rows), placed)
    return placed


def to_steps(batch: PpoMicroBatch, placed: torch.Tensor, columns: int) -> torch.Tensor:
    """[R, L] in the columns of the tokens, to [R, columns] counted from the first response token."""
    targets = batch.targets.cpu()
    starts = targets.to(torch.int8).argmax(1, keepdim=True)
    steps = torch.arange(columns)[None, :]
    mask = steps < targets.sum(1, keepdim=True)
    taken = placed.cpu().float().gather(1, (starts + steps).clamp(max=targets.shape[1] - 1))
    return torch.where(mask, taken, 0)


def reward_rows(
    episodes: Sequence[Episode], closing: Sequence[int], stop_ids: Sequence[int], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as the reward model saw answers in training: prompt, text of the answer, ``closing``.

    Whatever stop token ended the response gives way to ``closing``; a response that was cut gets it too, so
    the score is of text the reward model can judge, and the missing end is punished apart from it.

    Returns:
        input_ids int64 [E, L], padded to the right, and ends int64 [E], the column of each last token.
    """
    stops, end = set(stop_ids), np.asarray(closing, dtype=np.int64)
    rows = []
    for episode in episodes:
        body = episode.response
        if episode.ended and int(body[-1]) in stops:
            body = body[:-1]
            lead = len(end) - 1  # what a template writes between the text and the turn's end
            if lead and len(body) >= lead and np.array_equal(body[-lead:], end[:-1]):
                body = body[:-lead]
        rows.append(np.concatenate([episode.prompt, body, end]))
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return torch.from_numpy(ids), torch.tensor([len(row) - 1 for row in rows])
