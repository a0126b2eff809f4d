"""Episodes and the micro-batches made of them.

Layout: an episode is a segment of a packed row, prompt and response. A quantity of the response's token t
stands in the column of that token, so log-probabilities, values, advantages and returns share one mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from zhongjing.data.chat import Encoded, encode_prompt, encode_ranking
from zhongjing.data.records import Turn
from zhongjing.data.samples import PackedRow

_LONGEST_FRAME = 4096  # tokens, for a template's own words around one character


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
    """One forward pass of policy and critic: a packed row of T tokens, a segment an episode.

    A dummy batch has one segment without targets: it weighs nothing and keeps the ranks in step.

    Attributes:
        row: the tokens.
        targets: bool [1, T], true on response tokens.
        target_tokens: number of them.
        old_logprobs: fp32 [1, T]; so are the next three; 0 off the targets.
        old_values: of the rollout's critic.
        advantages: of the rollout.
        returns: of the rollout.
        policy_weight: factor on the policy's loss: 0 while only the critic learns.
        fresh: nothing has been learnt since the rollout was measured: the ratio must be 1.
        last: of this rank in its step.
    """

    row: PackedRow
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
            row=self.row.to(device),
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


def pack_episodes(episodes: Sequence[Episode]) -> PpoMicroBatch:
    """Tokens and targets of ``episodes``; none gives a dummy batch."""
    if not episodes:
        return PpoMicroBatch(
            PackedRow.of([np.zeros(2, dtype=np.int64)]), torch.zeros(1, 2, dtype=torch.bool), 0
        )
    spans = [span for episode in episodes for span in (episode.prompt, episode.response)]
    targets = np.repeat([False, True] * len(episodes), [len(span) for span in spans])
    row = PackedRow.of([np.concatenate([episode.prompt, episode.response]) for episode in episodes])
    return PpoMicroBatch(row, torch.from_numpy(targets)[None], int(targets.sum()))


def to_columns(batch: PpoMicroBatch, per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """From steps to the columns of the tokens.

    Args:
        batch: E episodes, on CPU.
        per_token: [E, steps], counted from the first response token.
        mask: bool [E, steps], true on response tokens.

    Returns:
        fp32 [1, T]; 0 off the targets.
    """
    # Both masks are true for the same tokens in the same order.
    placed = torch.zeros(batch.targets.shape, dtype=torch.float32)
    placed[batch.targets] = per_token[mask].float()
    return placed


def to_steps(batch: PpoMicroBatch, placed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The way back: [1, T] in the columns of the tokens, to fp32 [E, steps] on CPU; 0 off ``mask``."""
    steps = torch.zeros(mask.shape, dtype=torch.float32)
    steps[mask] = placed.cpu().float()[batch.targets.cpu()]
    return steps


def reward_row(
    episodes: Sequence[Episode], turn_end_ids: Sequence[int], stop_ids: Sequence[int]
) -> PackedRow:
    """Segments as the reward model saw answers in training: prompt, text of the answer, ``turn_end_ids``.

    Whatever stop token ended the response gives way to ``turn_end_ids``; a response that was cut gets
    them too, so the score is of text the reward model can judge, and the missing end is punished apart.
    """
    stops, end = set(stop_ids), np.asarray(turn_end_ids, dtype=np.int64)
    segments = []
    for episode in episodes:
        body = episode.response
        if episode.ended and int(body[-1]) in stops:
            body = body[:-1]
            lead = len(end) - 1  # what a template writes between the text and the turn's end
            if lead and len(body) >= lead and np.array_equal(body[-lead:], end[:-1]):
                body = body[:-lead]
        segments.append(np.concatenate([episode.prompt, body, end]))
    return PackedRow.of(segments)


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends an answer where the reward model reads it.

    It is read off an encoded answer, as the reward model's data are encoded: a base's ``eos_token`` may end
    documents while its template ends turns with another token.

    Raises:
        DataError: the template cannot be used.
    """
    question, answer = (Turn("user", "?"),), "."
    prompt = encode_prompt(tokenizer, question, _LONGEST_FRAME)
    ranked = encode_ranking(tokenizer, question, [answer], _LONGEST_FRAME)
    assert isinstance(prompt, Encoded), "a question of one character fits"
    assert isinstance(ranked, Encoded), "an answer of one character fits"
    after = ranked.segments[0].ids.tolist()[len(prompt.segments[0].ids) :]
    content = tokenizer.encode(answer, add_special_tokens=False)
    # Where the answer's last character melts into what follows it, only the last token is sure to close.
    return tuple(after[len(content) :] if after[: len(content)] == content else after[-1:])
