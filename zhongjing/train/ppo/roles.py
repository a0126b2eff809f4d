"""Policy, reference, reward and critic as one module over one copy of the base.

::

    policy    = base + sft + ppo          learns: ppo
    reference = base + sft
    reward    = base + rm, head
    critic    = base + critic, head       learns: both; they start as copies of the reward model's

Where SFT was a full tuning, the base is the SFT model and the sft adapter is absent.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from zhongjing.codes import model as model_codes
from zhongjing.codes import unexpected as unexpected_codes
from zhongjing.config.stages import PpoSettings
from zhongjing.data.samples import PackedRow
from zhongjing.errors import DataError, TrainingError
from zhongjing.model.adapters import AdapterFile
from zhongjing.model.causal import (
    TokenLogprobs,
    hidden_states,
    output_layer,
    segment_ends_hidden,
    token_logprobs,
)
from zhongjing.model.reward import head_rewards
from zhongjing.model.router import AdapterRouter, Part
from zhongjing.train.losses import policy_loss, value_loss
from zhongjing.train.ppo.episodes import PpoMicroBatch
from zhongjing.train.stages.program import MicroLoss

POLICY, REFERENCE, REWARD, CRITIC = "policy", "reference", "reward", "critic"
SFT, PPO, RM = "sft", "ppo", "rm"

# Largest |log ratio| allowed where nothing has been learnt yet. Rows and order of operations are the same
#  as when the rollout was measured, so the true bound is the kernels' own noise.
_RATIO_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class PpoModule(nn.Module):
    """All roles of PPO. ``forward`` gives the loss of policy and critic; the rest is measured without grad.

    Args:
        model: the frozen base, a causal model of transformers without adapters, on CPU.
        sft: adapter that policy and reference start from; none: the base itself.
        reward: the reward model's adapter, with its head.
        settings: of the stage.
        seed: of the fresh policy adapter.
        reward_mean: shift of the reward, in the reward model's units; see ``episode_scores``.
        reward_std: scale of the reward.

    Raises:
        DataError: an adapter is of another base, or the reward model has no head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sft: AdapterFile | None,
        reward: AdapterFile,
        settings: PpoSettings,
        seed: int,
        *,
        reward_mean: float = 0.0,
        reward_std: float = 1.0,
    ) -> None:
        super().__init__()
        head = reward.reward_head()
        _same_base(sft, reward)
        _no_dropout(model)
        self.model = model
        self.settings = settings
        self.reward_mean, self.reward_std = reward_mean, reward_std
        self.router = AdapterRouter(model)
        if sft is not None:
            self.router.add_file(SFT, sft)
        self.router.add_file(RM, reward)
        self.router.add_fresh(PPO, settings.lora, seed)
        self.router.add_copy(CRITIC, RM)
        below = [] if sft is None else [SFT]
        self.router.define(POLICY, [*below, PPO])
        self.router.define(REFERENCE, below)
        self.router.define(REWARD, [RM])
        self.router.define(CRITIC, [CRITIC])
        self.critic_head = nn.Parameter(head.detach().float().clone())
        # Frozen and no parameter, so that a cast of the module leaves it fp32.
        self._reward_head = head.detach().float().clone()
        self.router.fix_trainable([PPO, CRITIC])
        if settings.gradient_checkpointing:
            self.router.enable_gradient_checkpointing()
        self._kl_seen: torch.Tensor | None = None
        self._deviation: torch.Tensor | None = None

    def forward(self, batch: PpoMicroBatch) -> MicroLoss:
        """Losses of policy and critic, as sums over the response tokens of the micro-batch."""
        settings = self.settings
        wants_entropy = settings.entropy_coef > 0
        taken, values = self._policy_and_critic(batch, entropy=wants_entropy)
        policy = policy_loss(
            taken.logprobs,
            _or_zeros(batch.old_logprobs, values),
            _or_zeros(batch.advantages, values),
            batch.targets,
            settings.clip_range,
        )
        critic = value_loss(
            values,
            _or_zeros(batch.old_values, values),
            _or_zeros(batch.returns, values),
            batch.targets,
            settings.value_clip_range,
        )
        if batch.fresh:
            self._check_ratio(policy.largest, last=batch.last)
        self._kl_seen = policy.kl if self._kl_seen is None else self._kl_seen + policy.kl
        total = policy.loss * batch.policy_weight + settings.value_coef * critic.loss
        sums = {
            "policy_loss": policy.loss.detach(),
            "value_loss": critic.loss.detach(),
            "clip_fraction": policy.clipped,
            "value_clip_fraction": critic.clipped,
            "update_kl": policy.kl,
            "ratio": policy.ratio,
        }
        if taken.entropy is not None:
            spread = torch.where(batch.targets, taken.entropy, 0).sum()
            total = total - settings.entropy_coef * batch.policy_weight * spread
            sums["entropy"] = spread.detach()
        return MicroLoss(total, sums)

    @torch.no_grad()
    def score_policy(self, batch: PpoMicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, values and entropies of the response tokens; each fp32 [1, T].

        The forward pass is that of the update, token for token, so the first ratio is 1 to rounding.
        """
        taken, values = self._policy_and_critic(batch, entropy=True)
        assert taken.entropy is not None
        return taken.logprobs, values, taken.entropy

    @torch.no_grad()
    def score_reference(self, batch: PpoMicroBatch) -> torch.Tensor:
        """Log-probabilities of the response tokens under the reference; fp32 [1, T]."""
        with self.router.open(Part(REFERENCE)):
            hidden = hidden_states(self.model, batch.row)
        return self._logprobs(hidden, batch, entropy=False).logprobs

    @torch.no_grad()
    def score_reward(self, row: PackedRow) -> torch.Tensor:
        """Score of each segment, read at its last token; fp32 [S]."""
        with self.router.open(Part(REWARD)):
            last = segment_ends_hidden(self.model, row)
        if self._reward_head.device != last.device:
            self._reward_head = self._reward_head.to(last.device)
        return head_rewards(last, self._reward_head)

    def take_update_kl(self) -> torch.Tensor:
        """Sum over tokens of KL(rollout's policy || policy) since the last call; fp32 scalar."""
        seen, self._kl_seen = self._kl_seen, None
        return torch.zeros(()) if seen is None else seen

    def _policy_and_critic(
        self, batch: PpoMicroBatch, *, entropy: bool
    ) -> tuple[TokenLogprobs, torch.Tensor]:
        tokens = batch.row.tokens
        with self.router.open(Part(POLICY, tokens), Part(CRITIC, tokens)):
            hidden = hidden_states(self.model, batch.row.twice())
        of_policy, of_critic = hidden.split(tokens, 1)
        taken = self._logprobs(of_policy, batch, entropy=entropy)
        # The value before token t is read where token t is predicted: one column to the left. The critic's
        # output is in the reward model's units, its values in those of the normalised reward.
        raw = head_rewards(of_critic[:, :-1], self.critic_head)
        values = (raw - self.reward_mean) / self.reward_std
        return taken, nn.functional.pad(values, (1, 0))

    def _logprobs(self, hidden: torch.Tensor, batch: PpoMicroBatch, *, entropy: bool) -> TokenLogprobs:
        return token_logprobs(
            hidden,
            output_layer(self.model),
            batch.row.input_ids,
            batch.targets,
            batch.target_tokens,
            self.settings.temperature,
            entropy=entropy,
        )

    def _check_ratio(self, largest: torch.Tensor, *, last: bool) -> None:
        self._deviation = largest if self._deviation is None else torch.maximum(self._deviation, largest)
        if not last:
            return
        off, self._deviation = float(self._deviation), None  # one wait for the device in a rollout
        tolerance = _RATIO_TOLERANCE.get(self.model.dtype, 1e-4)
        if not off <= tolerance:
            raise TrainingError(
                f"the first log ratio of a rollout is {off:.3g}, not 0 (tolerance {tolerance:g}): what is "
                "updated is not what was measured",
                code=unexpected_codes.UNEXPECTED,
                remedy="this is a fault of the program, or of a kernel that is not deterministic: "
                "try deterministic: true and report it",
            )


def _or_zeros(given: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return given if given.numel() else torch.zeros_like(like)


def _same_base(sft: AdapterFile | None, reward: AdapterFile) -> None:
    if sft is None:
        return
    ours, theirs = (adapter.config.get("base_model_name_or_path") for adapter in (sft, reward))
    if ours and theirs and ours != theirs:
        raise DataError(
            f"this is an adapter of another base: the reward model stands on {theirs}, the policy on {ours}",
            code=model_codes.ADAPTER_MISMATCH,
            where=str(reward.folder),
            remedy="train policy and reward model from the same base",
        )


def _no_dropout(model: nn.Module) -> None:
    """PPO compares probabilities: dropout would be noise in the ratio."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - mypy takes modules for tensors
