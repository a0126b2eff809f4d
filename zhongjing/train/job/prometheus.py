"""Training metrics as Ray gauges: Ray Train has none for loss, tokens/s, gradient norm, reward or KL.

Rank 0 sets them; the metrics port of its node serves them as ``ray_<name>`` with the labels ``pipeline`` and
``stage``. The namespace is what the scrape says of the pod. docs/metrics.md lists them.
"""

from __future__ import annotations

import time
from typing import Any

from zhongjing.storage.progress import MetricPoint, Progress

PREFIX = "zhongjing_"

POINTS = {
    "train_loss": "mean loss of a step, over all target tokens or pairs, nats",
    "train_accuracy": "rm: share of pairs in the right order",
    "train_grad_norm": "norm of the gradient before clipping",
    "train_learning_rate": "as applied: schedule times guard",
    "train_tokens_per_second": "training tokens of all workers in a second of the latest step",
    "train_step_seconds": "duration of the latest step",
    "train_data_seconds": "how long of it the workers waited for data (ppo: and for rollouts)",
    "train_guard_loss_factor": "of the spike guard: what the loss is multiplied by; 1: no spike lately",
    "train_guard_learning_rate_factor": "of the spike guard: what the learning rate is multiplied by",
    "train_loss_scale": "fp16: scale of the loss",
    "train_policy_loss": "ppo: loss of the policy",
    "train_value_loss": "ppo: loss of the critic",
    "train_update_kl": "ppo: KL of the policy now to that of the rollout, nats a token",
    "train_clip_fraction": "ppo: share of tokens whose ratio was clipped",
    "train_value_clip_fraction": "ppo: share of values that were clipped",
    "train_ratio": "ppo: mean ratio of the policy now to that of the rollout",
    "train_entropy": "ppo with entropyCoef: mean entropy of the policy, nats a token",
    "rollout_objective": "ppo: mean of reward - klCoef x KL over the episodes of a rollout",
    "rollout_reward": "ppo: mean reward of the episodes of a rollout",
    "rollout_reward_std": "ppo: their standard deviation",
    "rollout_score": "ppo: mean score of the reward model, before normalisation",
    "rollout_kl": "ppo: mean KL of a response to the reference policy, nats",
    "rollout_kl_coef": "ppo: coefficient of the KL in the reward",
    "rollout_entropy": "ppo: mean entropy of the policy, nats a token",
    "rollout_eos_share": "ppo: share of responses that end by themselves",
    "rollout_response_length": "ppo: mean length of a response, tokens",
    "rollout_explained_variance": "ppo: how much of the returns' variance the critic explains",
    "rollout_value": "ppo: mean value of the critic",
    "rollout_return": "ppo: mean return",
    "validation_loss": "loss on the held-out samples",
    "validation_perplexity": "its exponential (pretrain, sft)",
    "validation_accuracy": "rm: share of held-out pairs in the right order",
    "validation_accuracy_low": "rm: lower end of its 95 % interval",
    "validation_accuracy_high": "rm: upper end of its 95 % interval",
    "validation_longer_accuracy": "rm: share of held-out pairs in which the better answer is the longer one",
    "validation_pairs": "rm: number of held-out pairs",
    "validation_objective": "ppo: mean of reward - klCoef x KL on the held-out prompts; the best is kept",
    "validation_objective_low": "ppo: lower end of its 95 % interval",
    "validation_objective_high": "ppo: upper end of its 95 % interval",
    "validation_prompts": "ppo: number of held-out prompts",
    "validation_reward": "ppo: mean reward on the held-out prompts",
    "validation_score": "ppo: mean score of the reward model on them",
    "validation_kl": "ppo: mean KL of a response to the reference policy on them, nats",
    "validation_entropy": "ppo: mean entropy of the policy on them, nats a token",
    "validation_eos_share": "ppo: share of their responses that end by themselves",
    "validation_response_length": "ppo: mean length of their responses, tokens",
    "validation_reward_mean": "rm: mean reward of held-out answers",
    "validation_reward_std": "rm and ppo: standard deviation of these rewards",
    "spike_grad_norm": "norm of the gradient at the latest spike",
    "spike_loss": "loss at the latest spike",
    "spike_median_grad_norm": "running median that the spike was measured against",
}
"""What a point of the curves gives: ``<kind>_<value>``. A stage may log more than stands here."""

PROGRESS = {
    "step": "optimizer steps taken",
    "total_steps": "optimizer steps of the stage",
    "epoch": "passes over the training data",
    "eta_seconds": "time to the last step, evaluations included",
    "spikes": "spikes that the guard has seen in this stage",
    "attempt": "number of the attempt",
    "updated_timestamp_seconds": "Unix time of the latest report; long work between two steps makes none",
    "checkpoint_step": "step of the latest complete checkpoint; 0 before the first",
    "checkpoint_lag_steps": "steps that would be lost now",
    "checkpoint_timestamp_seconds": "Unix time of the latest complete checkpoint, or of the attempt's start: "
    "time() - this is the checkpoint lag in seconds",
}


class PrometheusGauges:
    """The gauges of one attempt.

    Args:
        stage: value of the label.
        pipeline: likewise.
    """

    def __init__(self, stage: str, pipeline: str) -> None:
        self._made: dict[str, Any] = {}
        self._tags = {"stage": stage, "pipeline": pipeline}
        self._saved: tuple[int | None, float] = (None, time.time())

    def __call__(self, point: MetricPoint) -> None:
        """Sets a gauge for every value of the point."""
        for name, value in point.values.items():
            known = f"{point.kind}_{name}"
            self._set(known, value, POINTS.get(known, f"{name} of {point.kind}"))

    def progress(self, progress: Progress) -> None:
        """Sets the gauges of how far the stage is and what a death would cost."""
        if progress.checkpoint_step != self._saved[0]:
            self._saved = (progress.checkpoint_step, time.time())
        saved = progress.checkpoint_step or 0
        values = {
            "step": progress.step,
            "total_steps": progress.total_steps,
            "epoch": progress.epoch,
            "eta_seconds": progress.eta_seconds,
            "spikes": progress.spikes,
            "attempt": progress.attempt,
            "updated_timestamp_seconds": time.time(),
            "checkpoint_step": saved,
            "checkpoint_lag_steps": max(progress.step - saved, 0),
            "checkpoint_timestamp_seconds": self._saved[1],
        }
        for name, value in values.items():
            if value is not None:
                self._set(name, float(value), PROGRESS[name])

    def _set(self, name: str, value: float, description: str) -> None:
        from ray.util.metrics import Gauge

        if name not in self._made:
            self._made[name] = Gauge(f"{PREFIX}{name}", description=description, tag_keys=tuple(self._tags))
        self._made[name].set(value, tags=self._tags)
