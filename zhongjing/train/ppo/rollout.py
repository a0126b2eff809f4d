"""Making a rollout: responses, scores, log-probabilities, values, advantages.

Every rank makes and scores a share of the episodes, and then holds all of them: a rollout is small (32
episodes of 512 tokens are 64 KB a quantity). So whitening and every other statistic needs no further word
between ranks, minibatches can be divided evenly, and results do not depend on who made what.

Shapes: E episodes of all ranks, T = maxNewTokens columns, counted from the first response token. Everything
ends up on CPU, in fp32, equal on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from zhongjing.codes import training as codes
from zhongjing.config.stages import PpoSettings
from zhongjing.errors import TrainingError
from zhongjing.model.rollout import CompactingEngine, Tokens
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
from zhongjing.train.ppo.roles import PpoModule


@dataclass(frozen=True, slots=True)
class Rollout:
    """Episodes of all ranks, what the four roles say of them, and what is learnt from.

    Attributes:
        iteration: its number; -1 for an evaluation.
        episodes: prompts and responses.
        mask: bool [E, T], true on response tokens; what is [E, T] besides is fp32, and 0 elsewhere.
        logprobs: of the policy [E, T].
        ref_logprobs: of the reference [E, T].
        values: of the critic [E, T].
        entropies: of the policy [E, T].
        scores: of the reward model, in its own units, fp32 [E].
        ended: bool [E], whether the response has an end.
        rewards: what an episode earns besides the KL penalty, fp32 [E].
        kl: KL to the reference by the configured estimator [E, T].
        advantages: [E, T], whitened if the settings say so.
        returns: [E, T].
    """

    iteration: int
    episodes: Sequence[Episode]
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropies: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor
    rewards: torch.Tensor
    kl: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of ``tensor`` over all ranks, on CPU; the same on every rank.

        Each rank fills the rows it has, the others leave zeros. x + 0 is x, so sharing is exact.
        """
        if self.world_size == 1:
            return tensor.cpu()
        whole = tensor.to(self.device, copy=True)
        distributed.all_reduce(whole)
        return whole.cpu()

    def shard(self, count: int) -> list[int]:
        """Which of ``count`` things this rank takes: every ``world_size``-th."""
        return list(range(self.rank, count, self.world_size))


class Collector:
    """Generates and scores episodes, each rank its share.

    Args:
        module: the four roles.
        engine: what makes responses.
        group: the ranks.
        settings: of the stage.
        stop_ids: tokens that end a response.
        turn_end_ids: tokens that end an answer where the reward model reads it.
    """

    def __init__(
        self,
        module: PpoModule,
        engine: CompactingEngine,
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

    def generate(self, prompts: Sequence[Tokens], seeds: Sequence[int]) -> list[Episode]:
        """The policy's responses to ``prompts``; all ranks call it with the same arguments."""
        count, width = len(prompts), self._settings.max_new_tokens
        tokens = torch.zeros(count, width, dtype=torch.int64)
        facts = torch.zeros(count, 2, dtype=torch.int64)  # length, ended
        shard = self._group.shard(count)
        if shard:
            made = self._engine.generate([prompts[i] for i in shard], [seeds[i] for i in shard])
            tokens[shard], facts[shard, 0], facts[shard, 1] = made.tokens, made.lengths, made.ended.long()
        tokens, facts = self._group.all_reduce_sum(tokens), self._group.all_reduce_sum(facts)
        return [
            Episode(
                np.asarray(prompt, dtype=np.int64), tokens[i, : int(facts[i, 0])].numpy(), bool(facts[i, 1])
            )
            for i, prompt in enumerate(prompts)
        ]

    def score(
        self,
        iteration: int,
        episodes: Sequence[Episode],
        micro_batches: Sequence[Sequence[int]],
        kl_coef: float,
    ) -> Rollout:
        """What the roles say of all episodes, and the advantages that follow.

        Args:
            iteration: number of the rollout.
            episodes: all ranks'.
            micro_batches: positions in ``episodes`` that this rank scores, grouped as they will be learnt
                from: the same packed row gives the same numbers then. Over all ranks every
                episode occurs once.
            kl_coef: weight of the KL penalty.

        Raises:
            TrainingError: a role gave a number that is not finite.
        """
        settings = self._settings
        count, width = len(episodes), settings.max_new_tokens
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
        logprobs, ref_logprobs, values, entropies = tokens
        ended = torch.tensor([episode.ended for episode in episodes])
        rewards = episode_scores(
            scores,
            ended,
            mean=self._module.reward_mean,
            std=self._module.reward_std,
            clip=settings.reward_clip,
            missing_eos_penalty=settings.missing_eos_penalty,
        )
        kl = torch.where(mask, kl_per_token(logprobs, ref_logprobs, settings.kl_estimator), 0)
        per_token = token_rewards(rewards, kl, mask, kl_coef)
        advantages, returns = gae(per_token, values, mask, settings.gamma, settings.gae_lambda)
        if settings.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Rollout(
            iteration,
            episodes,
            mask,
            logprobs,
            ref_logprobs,
            values,
            entropies,
            scores,
            ended,
            rewards,
            kl,
            advantages,
            returns,
        )


def objectives(rollout: Rollout, kl_coef: float) -> torch.Tensor:
    """What PPO maximises, of each episode: the reward less its weighted KL; fp32 [episodes]."""
    return rollout.rewards - kl_coef * rollout.kl.sum(1)


def describe(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """Means over the episodes: objective, reward, score, KL per response, entropy, length, ends.

    The objective is what PPO maximises: the reward less the KL of the response to the reference, weighted by
    ``kl_coef``, the document's. A coefficient that adapts (``klTarget``) would give each evaluation its own
    measure, and the best of them would be whichever had the smallest weight.
    """
    kl = rollout.kl.sum(1)
    return {
        "objective": float(objectives(rollout, kl_coef).mean()),
        "reward": float(rollout.rewards.mean()),
        "reward_std": float(rollout.rewards.std(correction=0)),
        "score": float(rollout.scores.mean()),
        "kl": float(kl.mean()),
        "entropy": float(masked_mean(rollout.entropies, rollout.mask)),
        "eos_share": float(rollout.ended.float().mean()),
        "response_length": float(rollout.mask.sum(1).float().mean()),
    }


def describe_values(rollout: Rollout) -> dict[str, float]:
    """How well the critic knew the returns, and what they were."""
    return {
        "explained_variance": float(explained_variance(rollout.values, rollout.returns, rollout.mask)),
        "value": float(masked_mean(rollout.values, rollout.mask)),
        "return": float(masked_mean(rollout.returns, rollout.mask)),
    }
