"""Making a rollout: responses, scores, log-probabilities, values, advantages.

Shapes: E episodes of all ranks, T = maxNewTokens columns, counted from the first response token. Everything
ends up on CPU, in fp32, equal on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zhongjing.codes import training as codes
from zhongjing.config.stages import PpoSettings
from zhongjing.errors import TrainingError
from zhongjing.model.rollout import RolloutEngine, Tokens
from zhongjing.train.ppo.advantages import (
    episode_scores,
    explained_variance,
    gae,
    kl_per_token,
    masked_mean,
    token_rewards,
    whiten,
)
from zhongjing.train.ppo.episodes import Episode, pack_episodes, response_mask, reward_row, to_steps
from zhongjing.train.ppo.group import Group
from zhongjing.train.ppo.roles import PpoModule


@dataclass(frozen=True, slots=True)
class Scored:
    """What the four roles say of some episodes.

    Attributes:
        mask: bool [E, T], true on response tokens; the next four are 0 elsewhere.
        logprobs: of the policy, fp32 [E, T].
        ref_logprobs: of the reference.
        values: of the critic.
        entropies: of the policy.
        scores: of the reward model, in its own units, fp32 [E].
        ended: bool [E].
    """

    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropies: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """A rollout that can be learnt from."""

    iteration: int
    episodes: Sequence[Episode]
    scored: Scored
    advantages: torch.Tensor  # fp32 [E, T], whitened if the settings say so
    returns: torch.Tensor  # fp32 [E, T]


class Collector:
    """Generates and scores episodes, each rank its share.

    Args:
        module: the four roles.
        engine: what makes responses.
        group: the ranks.
        settings: of the stage.
        stop_ids: tokens that end a response.
        turn_end_ids: tokens that end an answer where the reward model reads it: the turn's end.
    """

    def __init__(
        self,
        module: PpoModule,
        engine: RolloutEngine,
        group: Group,
        settings: PpoSettings,
        *,
        stop_ids: Sequence[int],
        turn_end_ids: Sequence[int],
    ) -> None:
        self._module = module
        self._engine = engine
        self._group = group
        self._settings = settings
        self._stop_ids = tuple(stop_ids)
        self._turn_end_ids = tuple(turn_end_ids)

    def generate(self, prompts: Sequence[Tokens], seeds: Sequence[int], version: int) -> list[Episode]:
        """The policy's responses to ``prompts``; all ranks call it with the same arguments."""
        count, width = len(prompts), self._settings.max_new_tokens
        tokens = torch.zeros(count, width, dtype=torch.int64)
        facts = torch.zeros(count, 2, dtype=torch.int64)  # length, ended
        shard = self._group.shard(count)
        if shard:
            self._engine.wake()
            self._engine.load_adapter(version)
            made = self._engine.generate([prompts[i] for i in shard], [seeds[i] for i in shard])
            self._engine.sleep()
            tokens[shard], facts[shard, 0], facts[shard, 1] = made.tokens, made.lengths, made.ended.long()
        tokens, facts = self._group.all_reduce_sum(tokens), self._group.all_reduce_sum(facts)
        return [
            Episode(
                np.asarray(prompt, dtype=np.int64), tokens[i, : int(facts[i, 0])].numpy(), bool(facts[i, 1])
            )
            for i, prompt in enumerate(prompts)
        ]

    def score(self, episodes: Sequence[Episode], micro_batches: Sequence[Sequence[int]]) -> Scored:
        """What the roles say of all episodes.

        Args:
            episodes: all ranks'.
            micro_batches: positions in ``episodes`` that this rank scores, grouped as they will be learnt
                from: the same packed row gives the same numbers then. Over all ranks every
                episode occurs once.

        Raises:
            TrainingError: a role gave a number that is not finite.
        """
        count, width = len(episodes), self._settings.max_new_tokens
        tokens = torch.zeros(4, count, width)
        scores = torch.zeros(count)
        mask = response_mask(episodes, width)
        device = self._group.device
        for positions in micro_batches:
            if not positions:
                continue
            chosen = [episodes[position] for position in positions]
            batch = pack_episodes(chosen).to(device)
            logprobs, values, entropies = self._module.score_policy(batch)
            reference = self._module.score_reference(batch)
            for index, found in enumerate((logprobs, reference, values, entropies)):
                tokens[index, list(positions)] = to_steps(batch, found, mask[list(positions)])
            row = reward_row(chosen, self._turn_end_ids, self._stop_ids)
            scores[list(positions)] = self._module.score_reward(row.to(device)).cpu()
        tokens, scores = self._group.all_reduce_sum(tokens), self._group.all_reduce_sum(scores)
        if not (torch.isfinite(tokens).all() and torch.isfinite(scores).all()):
            raise TrainingError(
                "the policy, reference, critic or reward model gave a number that is not finite",
                code=codes.UNUSABLE_OUTPUT,
                remedy="use precision: bf16 or fp32, or a lower learningRate",
            )
        ended = torch.tensor([episode.ended for episode in episodes])
        return Scored(mask, tokens[0], tokens[1], tokens[2], tokens[3], scores, ended)

    def rewards(self, scored: Scored) -> torch.Tensor:
        """What each episode earns besides the KL penalty, fp32 [E]."""
        return episode_scores(
            scored.scores,
            scored.ended,
            mean=self._module.reward_mean,
            std=self._module.reward_std,
            clip=self._settings.reward_clip,
            missing_eos_penalty=self._settings.missing_eos_penalty,
        )

    def kl(self, scored: Scored) -> torch.Tensor:
        """KL to the reference of every response token, by the configured estimator; fp32 [E, T]."""
        kl = kl_per_token(scored.logprobs, scored.ref_logprobs, self._settings.kl_estimator)
        return torch.where(scored.mask, kl, 0)

    def with_advantages(
        self, iteration: int, episodes: Sequence[Episode], scored: Scored, kl_coef: float
    ) -> RolloutBatch:
        """Advantages and returns of a rollout."""
        settings = self._settings
        per_token = token_rewards(self.rewards(scored), self.kl(scored), scored.mask, kl_coef)
        advantages, returns = gae(per_token, scored.values, scored.mask, settings.gamma, settings.gae_lambda)
        if settings.whiten_advantages:
            advantages = whiten(advantages, scored.mask)
        return RolloutBatch(iteration, episodes, scored, advantages, returns)

    def describe(self, scored: Scored) -> dict[str, float]:
        """Means over the episodes: objective, reward, score, KL per response, entropy, length, ends.

        The objective is what PPO maximises: the reward less the KL of the response to the reference, weighted
        by ``klCoef`` as the document has it. A coefficient that adapts (``klTarget``) would give each
        evaluation its own measure, and the best of them would be whichever had the smallest weight.
        """
        rewards, kl = self.rewards(scored), self.kl(scored).sum(1)
        lengths = scored.mask.sum(1).float()
        return {
            "objective": float((rewards - self._settings.kl_coef * kl).mean()),
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(correction=0)),
            "score": float(scored.scores.mean()),
            "kl": float(kl.mean()),
            "entropy": float(masked_mean(scored.entropies, scored.mask)),
            "eos_share": float(scored.ended.float().mean()),
            "response_length": float(lengths.mean()),
        }


def describe_values(rollout: RolloutBatch) -> dict[str, float]:
    """How well the critic knew the returns, and what they were."""
    scored = rollout.scored
    return {
        "explained_variance": float(explained_variance(scored.values, rollout.returns, scored.mask)),
        "value": float(masked_mean(scored.values, scored.mask)),
        "return": float(masked_mean(rollout.returns, scored.mask)),
    }
