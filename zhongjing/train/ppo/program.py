"""PPO as a stage program: rollouts in ``step_batches``, one adapter over the pretrained base as the result.

An *iteration* is one rollout of ``globalBatchSize`` episodes and ``ppoEpochs x minibatches`` optimizer steps
over it. Everything random is a pure function of (seed, iteration, episode), and the rollout is made again
from the weights, so a checkpoint between iterations needs no more than the weights and the KL coefficient.

A checkpoint is taken at the end of every iteration: adapters and their moments are small beside what a
rollout costs. An iteration counts as finished when its checkpoint is complete in the store
(``checkpointStep`` of progress.json). The upload goes on behind the next iteration, which waits for it
before it takes its own: so a sudden death costs the iteration under way and at most the one whose
checkpoint was on its way. Both are run again from the same weights with the same random streams, and come
out the same. Their points are cut from the metrics at the resume, so each iteration stands there once.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zhongjing.codes import data as data_codes
from zhongjing.codes import document as document_codes
from zhongjing.codes import model as model_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.stages import PpoSettings
from zhongjing.data.batches import partition
from zhongjing.data.order import SampleOrder, mixture_of, permutation
from zhongjing.data.samples import SampleSet
from zhongjing.errors import ConfigError, DataError, TrainingError
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.export import finish_adapter_folder
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.model.tokenizer import end_ids, load_tokenizer
from zhongjing.train.distributed import seed_of
from zhongjing.train.ppo.artifact import write_critic, write_policy
from zhongjing.train.ppo.episodes import Episode, PpoMicroBatch, pack_episodes, to_columns, turn_end_ids
from zhongjing.train.ppo.kl_control import KlController
from zhongjing.train.ppo.roles import CRITIC, POLICY, PPO, PpoModule
from zhongjing.train.ppo.rollout import Collector, Group, Rollout, describe, describe_values, objectives
from zhongjing.train.precision import dtype_of
from zhongjing.train.quality_warnings import CRITIC_ROLLOUTS, critic_warnings, mean_interval
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import StepBatches

# Places of the random streams, beside the seed.
_ROLLOUT, _EVALUATION, _MINIBATCH = 1, 2, 3


class PpoProgram:
    """The PPO stage; see :class:`zhongjing.train.stages.program.StageProgram`.

    Args:
        settings: of the stage.
        inputs: what it is made from; ``reward`` is given, samples are prompts of one segment each.

    Raises:
        DataError: a model, adapter or prompt cannot be used.
        ConfigError: ``criticLearningRate`` is set where ``learningRate`` is 0.
    """

    # Not the reward alone: a policy that left the reference far behind to please the reward model would win.
    best_metric = "objective"
    best_is_lower = False
    checkpoint_whenever_possible = True

    def __init__(self, settings: PpoSettings, inputs: StageInputs) -> None:
        self._settings = settings
        self._inputs = inputs
        if not len(inputs.train):
            raise DataError(
                "no training prompts are left",
                code=data_codes.NO_GOOD_RECORD,
                where="data",
                remedy="add sources, or lower validationFraction",
            )
        tokenizer = load_tokenizer(inputs.tokenizer)
        stop_ids, closing = tuple(end_ids(tokenizer)), turn_end_ids(tokenizer)
        self.module = _load_roles(settings, inputs, closing)
        sampling = Sampling(settings.max_new_tokens, stop_ids, settings.temperature)
        gib = settings.rollout.cache_gib
        engine = CompactingEngine(
            self.module.router, POLICY, sampling, cache_bytes=None if gib is None else int(gib * 2**30)
        )
        self._group = Group(inputs.rank, inputs.world_size, inputs.device)
        self._collector = Collector(
            self.module, engine, self._group, settings, stop_ids=stop_ids, turn_end_ids=closing
        )
        weights, repeats = mixture_of(settings)
        order = SampleOrder(inputs.train.groups, inputs.train.group_names, inputs.seed, weights, repeats)
        self._order = order
        self._kl = KlController(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        self._critic_scale = _critic_scale(settings)
        self._steps_per_rollout = settings.ppo_epochs * settings.minibatches
        iterations = math.ceil(settings.epochs * order.epoch_size / settings.global_batch_size)
        if settings.max_steps is not None:
            # Whole rollouts, at least one: a checkpoint exists only between rollouts.
            iterations = min(iterations, max(settings.max_steps // self._steps_per_rollout, 1))
        self.total_steps = iterations * self._steps_per_rollout
        self._rollout: Rollout | None = None
        self._step_tokens = 0  # of the step before, over all ranks
        self._stopped = False
        self._explained: list[float] = []  # of the latest rollouts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's adapter, and the critic's with its head."""
        router = self.module.router
        decay = self._settings.weight_decay
        return [
            {
                "params": [parameter for _, parameter in router.parameters_of(PPO)],
                "lr_scale": 1.0,
                "weight_decay": decay,
            },
            {
                "params": [*(p for _, p in router.parameters_of(CRITIC)), self.module.critic_head],
                "lr_scale": self._critic_scale,
                "weight_decay": decay,
            },
        ]

    def can_checkpoint(self, step: int) -> bool:
        """True only between iterations: a rollout is never stored."""
        return step % self._steps_per_rollout == 0

    def step_batches(self, step: int) -> StepBatches:
        """Makes a rollout if an iteration begins, and gives one minibatch of it.

        A step whose rollout has been left (``maxKl``) has denominator 0: nothing is learnt in it.

        Raises:
            TrainingError: the step is in the middle of an iteration whose rollout is not there.
        """
        self.module.router.check_trainable()
        iteration, within = divmod(step, self._steps_per_rollout)
        metrics: dict[str, float] = {}
        if within == 0:
            metrics = self._begin(iteration)
        elif self._rollout is None or self._rollout.iteration != iteration:
            raise TrainingError(
                f"step {step} belongs to a rollout that does not exist any more",
                code=storage_codes.DAMAGED_CHECKPOINT,
                remedy="resume from a checkpoint that was taken between rollouts",
            )
        else:
            self._stop_if_far()
        return self._minibatch(iteration, within, metrics)

    def _begin(self, iteration: int) -> dict[str, float]:
        """A new rollout; returns what is to be logged of it."""
        settings = self._settings
        size = settings.global_batch_size
        first = iteration * size
        indices = [int(index) for index in self._order.indices(first, size)]
        seeds = [
            seed_of(self._inputs.seed, _ROLLOUT, iteration, first + position) for position in range(size)
        ]
        episodes = self._collector.generate(_fetch(self._inputs.train, indices), seeds)
        own_batches = [
            batch
            for part in range(settings.minibatches)
            for batch in self._own_batches(iteration, part, episodes)
        ]
        kl_coef = self._kl.coefficient
        self._rollout = rollout = self._collector.score(iteration, episodes, own_batches, kl_coef)
        self._stopped = False
        self.module.take_update_kl()
        metrics = {
            **describe(rollout, settings.kl_coef),
            **describe_values(rollout),
            "kl_coef": kl_coef,
        }
        self._explained = [*self._explained, metrics["explained_variance"]][-CRITIC_ROLLOUTS:]
        self._kl.update(metrics["kl"], size)
        return metrics

    def _minibatch(self, iteration: int, within: int, metrics: dict[str, float]) -> StepBatches:
        rollout = self._rollout
        assert rollout is not None
        settings = self._settings
        size = settings.global_batch_size
        # Counted from rollout to rollout, so that throughput is of prompts seen and tokens learnt from.
        epoch = (iteration + (within + 1) / self._steps_per_rollout) * size / self._order.epoch_size
        kind = "rollout" if metrics else "train"
        if self._stopped:
            return StepBatches([pack_episodes([])], 0.0, epoch=epoch, metrics=metrics, metrics_kind=kind)
        positions = self._positions(iteration, within)
        warming = iteration < settings.critic_warmup_steps
        own_batches = self._own_batches(iteration, within, rollout.episodes)
        batches = [
            replace(
                self._micro_batch(rollout, chosen),
                policy_weight=0.0 if warming else 1.0,
                fresh=within == 0,
                last=at == len(own_batches) - 1,
            )
            for at, chosen in enumerate(own_batches)
        ]
        self._step_tokens = sum(len(rollout.episodes[position].response) for position in positions)
        return StepBatches(
            batches,
            float(self._step_tokens),
            samples=len(positions) if within < settings.minibatches else 0,
            tokens=sum(rollout.episodes[position].tokens for position in positions),
            epoch=epoch,
            metrics=metrics,
            metrics_kind=kind,
        )

    def _positions(self, iteration: int, within: int) -> list[int]:
        """Episodes of a minibatch, as positions in the rollout: the same on every rank."""
        settings = self._settings
        passed, part = divmod(within, settings.minibatches)
        order = permutation(settings.global_batch_size, self._inputs.seed, _MINIBATCH, iteration, passed)
        share = settings.global_batch_size // settings.minibatches
        return [int(position) for position in order[part * share : (part + 1) * share]]

    def _own_batches(self, iteration: int, within: int, episodes: Sequence[Episode]) -> list[list[int]]:
        """This rank's micro-batches of a minibatch, as positions in the rollout; empty ones are dummies."""
        positions = self._positions(iteration, within)
        shard = self._own_part([episodes[position].tokens for position in positions])
        return [[positions[index] for index in batch] for batch in shard]

    def _own_part(self, sizes: Sequence[int]) -> list[list[int]]:
        return partition(sizes, self._group.world_size, self._settings.token_budget)[self._group.rank]

    def _micro_batch(self, rollout: Rollout, positions: Sequence[int]) -> PpoMicroBatch:
        batch = pack_episodes([rollout.episodes[position] for position in positions])
        if not positions:
            return batch
        chosen = list(positions)
        mask = rollout.mask[chosen]
        return replace(
            batch,
            old_logprobs=to_columns(batch, rollout.logprobs[chosen], mask),
            old_values=to_columns(batch, rollout.values[chosen], mask),
            advantages=to_columns(batch, rollout.advantages[chosen], mask),
            returns=to_columns(batch, rollout.returns[chosen], mask),
        )

    def _stop_if_far(self) -> None:
        """Leaves the rollout once the policy is farther than ``maxKl`` from it; all ranks agree."""
        limit = self._settings.max_kl
        if limit is None or self._stopped:
            return
        total = float(
            self._group.all_reduce_sum(self.module.take_update_kl().detach().to(self._group.device))
        )
        self._stopped = not total / max(self._step_tokens, 1) <= limit

    def evaluate(self, samples: SampleSet | None = None) -> dict[str, float]:
        """Means over held-out prompts, or over ``samples``; equal on all ranks.

        ``objective_low`` to ``objective_high`` is the objective's 95 % interval over ``prompts`` prompts.

        Responses are sampled at the configured temperature, as in training, because the KL estimate holds for
        samples only; every prompt has a seed that never changes, so evaluations differ by the policy alone.
        """
        samples = self._inputs.validation if samples is None else samples
        wanted = min(len(samples), self._settings.max_evaluation_samples)
        if not wanted:
            return {}
        # The same choice for all runs of a pipeline, whatever their seed.
        indices = [int(index) for index in np.sort(permutation(len(samples), 0)[:wanted])]
        seeds = [seed_of(self._inputs.seed, _EVALUATION, index) for index in indices]
        episodes = self._collector.generate(_fetch(samples, indices), seeds)
        own_batches = self._own_part([episode.tokens for episode in episodes])
        rollout = self._collector.score(-1, episodes, own_batches, self._kl.coefficient)
        measured = {**describe(rollout, self._settings.kl_coef), "prompts": float(wanted)}
        if wanted > 1:
            low, high = mean_interval(objectives(rollout, self._settings.kl_coef).tolist())
            measured |= {"objective_low": low, "objective_high": high}
        return measured

    def warnings(self, best: Mapping[str, float]) -> list[str]:
        """Whether the critic came to know the returns."""
        return critic_warnings(self._explained, self._settings, self.total_steps)

    def finish(self, folder: Path, best: Mapping[str, float]) -> dict[str, Any]:
        """Writes the policy as one adapter over the base, the critic beside it, and the tokenizer."""
        inputs, router = self._inputs, self.module.router
        assert inputs.reward is not None, "a PPO stage has a reward model"
        base, lora = inputs.base_reference, self._settings.lora
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            write_policy(router, folder, Path(scratch), sft=inputs.adapter, lora=lora, base=base)
        write_critic(router, self.module.critic_head, folder / "critic", reward=inputs.reward, base=base)
        finish_adapter_folder(folder, inputs.tokenizer)
        return {
            "klCoef": self._kl.coefficient,
            "rewardMean": self.module.reward_mean,
            "rewardStd": self.module.reward_std,
        }

    def state_dict(self) -> dict[str, Any]:
        """The KL coefficient, and how well the critic did."""
        return {"kl": self._kl.state_dict(), "explained": self._explained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; a rollout that was begun is forgotten."""
        self._kl.load_state_dict(state["kl"])
        self._explained = list(state.get("explained", ()))  # absent in checkpoints of earlier releases
        self._rollout = None


def _load_roles(settings: PpoSettings, inputs: StageInputs, closing: Sequence[int]) -> PpoModule:
    """The four roles over one copy of the base, on the rank's device.

    Raises:
        DataError: a model or adapter cannot be used, or a prompt leaves too few positions.
    """
    assert inputs.reward is not None, "a PPO stage has a reward model"
    mean = std = None
    if settings.normalize_reward:
        mean, std = inputs.reward_mean, inputs.reward_std
    mean, std = 0.0 if mean is None else mean, 1.0 if std is None else std
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise DataError(
            f"the reward model's mean {mean:g} and deviation {std:g} cannot normalise a reward",
            code=model_codes.UNUSABLE_REWARD,
            where=str(inputs.reward),
        )
    base = load_base(
        inputs.base,
        dtype=dtype_of(settings, inputs.device),
        quantization=settings.quantization,
        device=inputs.device,
    )
    positions = getattr(base.config, "max_position_embeddings", None)
    longest = max(int(split.tokens.max()) for split in (inputs.train, inputs.validation) if len(split))
    # Found here, and not in the first rollout.
    if isinstance(positions, int) and longest + settings.max_new_tokens + len(closing) > positions:
        raise DataError(
            f"a prompt has {longest} tokens; with maxNewTokens {settings.max_new_tokens} it is longer "
            f"than the model's {positions} positions",
            code=model_codes.TOO_LONG_FOR_MODEL,
            where="spec.stages.ppo",
            remedy="lower maxPromptLength or maxNewTokens",
        )
    module = PpoModule(
        base,
        None if inputs.adapter is None else read_adapter(inputs.adapter),
        read_adapter(inputs.reward),
        settings,
        seed_of(inputs.seed, 0),
        reward_mean=mean,
        reward_std=std,
    )
    return module.to(inputs.device)


def _fetch(samples: SampleSet, indices: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Tokens of prompts."""
    found = []
    for sample in samples.fetch(indices):
        if len(sample.segments) != 1:
            raise DataError(
                f"prompt {sample.index} has {len(sample.segments)} segments, not one",
                code=data_codes.DAMAGED_CACHE,
            )
        found.append(sample.segments[0].ids.astype(np.int64))
    return found


def _critic_scale(settings: PpoSettings) -> float:
    if settings.critic_learning_rate is None:
        return 1.0
    if settings.learning_rate == 0:
        raise ConfigError(
            "criticLearningRate is relative to the schedule of learningRate, which is 0",
            code=document_codes.INVALID_VALUE,
            where="spec.stages.ppo.criticLearningRate",
            remedy="leave criticLearningRate out where learningRate is 0",
        )
    return settings.critic_learning_rate / settings.learning_rate
