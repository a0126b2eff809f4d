"""The stages and their settings. The defaults of those that train are the paper's Table 4 (and section 4).

Batch sizes count sequences per optimizer step over all workers (``globalBatchSize``); accumulation follows
from it, ``microBatchSize`` and the number of workers, so a result does not depend on how many workers ran.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from zhongjing.codes.document import INVALID_BATCH, INVALID_PRECISION, INVALID_VALUE
from zhongjing.config import quantity
from zhongjing.config.fields import MOST, DocumentModel, RuleError, operational, training
from zhongjing.config.sources import Mixture, SourceRef

SHORTEST_PROMPT = 8
"""Tokens that PPO's limits must leave to a prompt."""


class Stage(StrEnum):
    """A step of the pipeline."""

    CONSTRUCT = "construct"
    PRETRAIN = "pretrain"
    SFT = "sft"
    RM = "rm"
    PPO = "ppo"


TRAINING: Final = (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO)
"""The stages that train."""


class Lora(DocumentModel):
    """Low-rank adaptation (Hu et al. 2022)."""

    rank: int = training(16, "Rank.", source="paper Table 4", ge=1, le=1024)
    alpha: float = training(32.0, "Scale; the update is multiplied by alpha / rank.", gt=0, le=4096)
    dropout: float = training(0.1, "Dropout before the adapter.", source="paper section 4", ge=0, lt=1)
    target_modules: list[Annotated[str, Field(min_length=1, max_length=256)]] = training(
        lambda: ["all-linear"],
        "Modules that get an adapter: names, or all-linear (all but the output layer).",
        min_length=1,
        max_length=64,
    )


class PpoLora(Lora):
    """Low-rank adaptation in PPO, which compares probabilities: dropout would be noise in their ratio."""

    dropout: float = training(0.0, "Dropout before the adapter: none in PPO.", ge=0, le=0)


Quantization = Literal["none", "nf4"]


def _quantization() -> Any:
    return training(
        "none",
        "How the frozen base is stored while an adapter is trained: nf4 keeps its linear layers in 4 bits "
        "(a quarter of fp16); the adapter, the head and what is computed stay in precision.",
        source="Dettmers et al. 2023, QLoRA",
        later=True,
    )


class SpikeGuard(DocumentModel):
    """What happens when the gradient explodes (paper section 4, "halve loss ... and decay learning rate")."""

    enabled: bool = training(True, "Whether the guard acts.")
    threshold: float = training(
        8.0, "A gradient norm above this many running medians is a spike.", unit="medians", gt=1, le=1e6
    )
    window: int = training(64, "Optimizer steps in the running median.", unit="steps", ge=8, le=4096)
    warmup_steps: int = training(16, "Steps before the median is trusted.", unit="steps", ge=2, le=4096)
    loss_factor: float = training(0.5, "Factor on the loss at a spike.", source="paper section 4", gt=0, le=1)
    learning_rate_factor: float = training(
        0.5, "Factor on the learning rate at a spike.", source="paper section 4", gt=0, le=1
    )
    min_factor: float = training(
        0.1,
        "Neither factor falls below this, however many spikes follow each other; reaching it is warned of.",
        gt=0,
        le=1,
        later=True,
    )
    recovery_steps: int = training(
        100, "Steps in which both factors return to 1.", unit="steps", ge=1, le=100000
    )
    max_consecutive: int = training(
        20, "So many spikes in a row stop the stage: the guard cannot save it.", ge=1, le=10000
    )


class Checkpointing(DocumentModel):
    """When progress is saved to the object store."""

    every_steps: int | None = operational(
        None, "Optimizer steps between checkpoints; none: by time.", unit="steps", ge=1, le=MOST
    )
    every_seconds: float = operational(
        600.0, "Time between checkpoints when everySteps is not set.", unit="s", gt=0, le=MOST
    )
    keep: int = operational(2, "How many of the latest are kept, besides the best.", ge=1, le=100)


class Optimizer(DocumentModel):
    """Where AdamW's state is; what it computes is the same, to rounding."""

    offload: Literal["none", "cpu"] = operational(
        "none",
        "cpu: masters, moments and accumulated gradients (18 to 20 bytes a parameter, over all workers) are "
        "kept and updated in the host's memory; slower steps, and less GPU memory.",
    )


class Resources(DocumentModel):
    """What one worker (one training process) gets."""

    cpus: float = operational(1.0, "CPU cores.", unit="cores", gt=0, le=1024)
    gpus: int = operational(0, "GPUs; with more than 0 a worker never falls back to CPU.", ge=0, le=1)
    memory: str | None = operational(
        None, "Memory, as Kubernetes writes it (80Gi).", max_length=32, pattern=quantity.PATTERN
    )


class Logging(DocumentModel):
    """What is written while training."""

    every_steps: int = operational(1, "Optimizer steps between metric points.", unit="steps", ge=1, le=MOST)
    tensorboard: bool = operational(False, "Also write TensorBoard files into the stage's folder.")


class Rollout(DocumentModel):
    """How responses are made; none of it changes them but by rounding."""

    cache_gib: float | None = operational(
        None,
        "Memory of one worker for responses that are made at a time (key-value cache, reading of prompts, "
        "logits); none: half of what is free on its device when it begins.",
        unit="GiB",
        gt=0,
        le=1e6,
        alias="cacheGiB",
    )


def _retries() -> Any:
    return operational(2, "Attempts after the first before the stage is failed.", ge=0, le=100)


def _active_deadline() -> Any:
    return operational(None, "The stage is failed when it has run longer.", unit="s", ge=1, le=MOST)


def _progress_deadline() -> Any:
    return operational(
        1800, "An attempt that does nothing for so long counts as hung.", unit="s", ge=30, le=MOST
    )


class ConstructSettings(DocumentModel):
    """Making of sources (``spec.sources[].made``) by Ray tasks; no workers are started for it.

    Tasks take the cluster's free cores. Where it has none, some run on the node of the driver.
    """

    tasks: int | None = operational(
        None, "Parts that are made at a time; none: as many as there are free cores.", ge=1, le=4096
    )
    retries: int = _retries()
    active_deadline_seconds: int | None = _active_deadline()
    progress_deadline_seconds: int = _progress_deadline()


class StageSettings(DocumentModel):
    """What all stages that train have in common."""

    data: list[SourceRef] = training(list, "Sources of this stage.", min_length=1, max_length=256)
    epochs: float = training(1.0, "Passes over the training data.", unit="epochs", gt=0, le=1000)
    max_steps: int | None = training(None, "Stop after so many optimizer steps.", unit="steps", ge=1, le=MOST)
    learning_rate: float = training(5e-5, "Peak learning rate (0 trains nothing: a control).", ge=0, le=10)
    schedule: Literal["cosine", "linear", "constant"] = training(
        "cosine", "Decay after the warm-up.", source="paper section 4"
    )
    warmup_fraction: float = training(
        0.03, "Part of the steps in which the learning rate rises.", unit="fraction", ge=0, lt=1
    )
    min_learning_rate_fraction: float = training(
        0.0, "Where the decay ends, relative to the peak.", unit="fraction", ge=0, le=1
    )
    weight_decay: float = training(0.0, "AdamW's weight decay (matrices only).", ge=0, le=1)
    adam_beta1: float = training(0.9, "AdamW's beta 1.", ge=0, lt=1)
    adam_beta2: float = training(0.95, "AdamW's beta 2.", ge=0, lt=1)
    adam_epsilon: float = training(1e-8, "AdamW's epsilon.", gt=0, le=1)
    max_gradient_norm: float = training(1.0, "Gradients are clipped to this norm.", gt=0, le=1e6)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = training(
        "auto",
        "Number format of weights and activations. auto: fp32 on CPUs, bf16 on GPUs that have it, else fp16; "
        "the first attempt decides, later ones keep it, and the manifest names it.",
    )
    global_batch_size: int = training(
        64, "Sequences per optimizer step, over all workers.", unit="sequences", ge=1, le=1000000
    )
    max_length: int = training(
        4096,
        "Longest sequence, history included.",
        unit="tokens",
        source="paper section 4",
        ge=16,
        le=1048576,
    )
    validation_fraction: float = training(
        0.1,
        "Part of the data held out, decided by a hash.",
        unit="fraction",
        source="paper section 4",
        ge=0,
        lt=1,
    )
    evaluations: int = training(
        4,
        "How often the held-out data is evaluated, evenly over the stage; the best checkpoint is the result.",
        ge=1,
        le=10000,
    )
    max_evaluation_samples: int = training(
        2000, "Held-out samples used for one evaluation.", unit="samples", ge=1, le=10000000
    )
    seed: int | None = training(None, "Seed of this stage; none: spec.seed.", ge=0, le=2**31 - 1)
    deterministic: bool = training(False, "Only deterministic GPU kernels.")
    guard: SpikeGuard = training(SpikeGuard, "What happens when the gradient explodes.")

    micro_batch_size: int = operational(
        4,
        "Longest sequences that one forward pass of one worker has room for; of shorter ones it takes more.",
        unit="sequences",
        ge=1,
        le=4096,
    )
    micro_batch_tokens: int | None = operational(
        None,
        "Token budget of one forward pass of one worker; none: microBatchSize x maxLength. "
        "A longer sample is alone in its pass.",
        unit="tokens",
        ge=16,
        le=MOST,
    )
    optimizer: Optimizer = operational(Optimizer, "Where the optimizer's state is.")
    gradient_checkpointing: bool = operational(False, "Recompute activations to save memory.")
    workers: int = operational(1, "Training processes, one a GPU.", ge=1, le=4096)
    resources: Resources = operational(Resources, "What one worker gets.")
    checkpoints: Checkpointing = operational(Checkpointing, "When progress is saved.")
    logging: Logging = operational(Logging, "What is written while training.")
    warn_above_fraction: float = operational(
        0.05,
        "Above this part of a source's records cut, dropped or (of an epoch) repeated, a warning names the "
        "field to change.",
        unit="fraction",
        ge=0,
        le=1,
    )
    retries: int = _retries()
    active_deadline_seconds: int | None = _active_deadline()
    progress_deadline_seconds: int = _progress_deadline()

    @property
    def token_budget(self) -> int:
        """Most tokens of a micro-batch: ``microBatchTokens``, else room for microBatchSize of the longest."""
        return self.micro_batch_tokens or self.micro_batch_size * self.max_length

    @model_validator(mode="after")
    def _weights_all_or_none(self) -> StageSettings:
        given = [ref.weight is not None for ref in self.data]
        if any(given) and not all(given):
            raise RuleError(
                "give a weight to every source of the stage or to none", code=INVALID_VALUE, path=("data",)
            )
        return self

    @model_validator(mode="after")
    def _half_precision_has_a_gpu(self) -> StageSettings:
        if self.precision == "fp16" and self.resources.gpus == 0:
            raise RuleError(
                "fp16 trains on GPUs only, and resources.gpus is 0: set it to 1, or precision to auto",
                code=INVALID_PRECISION,
                path=("precision",),
            )
        return self


class PretrainSettings(StageSettings):
    """Continued pretraining: full parameters, windows of text."""

    from_: str = training(
        "base", "What to start from: base, a folder, an s3:// URI or a hub id.", alias="from", max_length=1024
    )
    learning_rate: float = training(5e-5, "Peak learning rate.", source="paper Table 4", ge=0, le=10)
    epochs: float = training(4.0, "Passes.", unit="epochs", source="paper Table 4", gt=0, le=1000)
    global_batch_size: int = training(
        64, "Windows per optimizer step (16 x 4).", unit="windows", source="paper Table 4", ge=1, le=1000000
    )
    tuning: Literal["full", "lora"] = training("full", "What is trained.", source="paper Table 4")
    lora: Lora = training(Lora, "Adapter settings when tuning is lora.")
    dropout: float = training(
        0.1,
        "Dropout on attention probabilities, the same on a CPU and a GPU.",
        source="paper section 4",
        ge=0,
        lt=1,
    )
    section_characters: int = training(
        2000,
        "Books are cut into sections of about this length before the held-out part is chosen.",
        unit="characters",
        ge=100,
        le=1000000,
    )


class SftSettings(StageSettings):
    """Supervised fine-tuning: every assistant turn is a target."""

    from_: str | None = training(
        None,
        "What to start from; none: pretrain if the pipeline has it, else base.",
        alias="from",
        max_length=1024,
    )
    learning_rate: float = training(7e-5, "Peak learning rate.", source="paper Table 4", ge=0, le=10)
    epochs: float = training(3.0, "Passes.", unit="epochs", source="paper Table 4", gt=0, le=1000)
    global_batch_size: int = training(
        64,
        "Dialogues per optimizer step (16 x 4).",
        unit="dialogues",
        source="paper Table 4",
        ge=1,
        le=1000000,
    )
    tuning: Literal["full", "lora"] = training("lora", "What is trained.", source="paper Table 4")
    lora: Lora = training(Lora, "Adapter settings.")
    quantization: Quantization = _quantization()
    mixture: Mixture | None = training(
        None,
        "Shares of the four kinds of data; the paper mixes single and multi turn 7 : 1.",
        source="paper section 3",
    )
    system_prompt: str | None = training(None, "System turn for dialogues that have none.", max_length=4000)

    @model_validator(mode="after")
    def _only_a_frozen_base_is_quantized(self) -> SftSettings:
        if self.tuning == "full" and self.quantization != "none":
            raise RuleError(
                "a quantized base cannot be trained itself: set tuning: lora, or quantization: none",
                code=INVALID_VALUE,
                path=("quantization",),
            )
        return self


class RmSettings(StageSettings):
    """Reward model over K ranked answers of one prompt, on the pretrained base (paper section 3)."""

    from_: str | None = training(
        None,
        "What to start from; none: pretrain if the pipeline has it, else base. Never sft.",
        alias="from",
        max_length=1024,
    )
    learning_rate: float = training(1e-4, "Peak learning rate.", source="paper Table 4", ge=0, le=10)
    epochs: float = training(10.0, "Passes.", unit="epochs", source="paper Table 4", gt=0, le=1000)
    global_batch_size: int = training(
        32,
        "Prompts per optimizer step, each with its K answers (32 x 4 rows).",
        unit="prompts",
        source="paper Table 4",
        ge=1,
        le=1000000,
    )
    micro_batch_size: int = operational(
        1,
        "As of the other stages: room for so many times maxLength; a prompt's answers stay together.",
        unit="sequences",
        ge=1,
        le=4096,
    )
    system_prompt: str | None = training(
        None,
        "System turn for prompts that have none; none: that of sft; empty: no turn. As PPO shows it.",
        max_length=4000,
        later=True,
    )
    tuning: Literal["lora"] = training("lora", "What is trained, besides the head.", source="paper Table 4")
    lora: Lora = training(Lora, "Adapter settings.")
    quantization: Quantization = _quantization()


class PpoSettings(StageSettings):
    """Proximal policy optimisation with four roles on one copy of the base (paper section 3)."""

    from_: str = training(
        "sft",
        "The policy to start from, also the KL reference: sft, or a URI of an adapter.",
        alias="from",
        max_length=1024,
    )
    reward: str = training("rm", "The reward model: rm, or a URI of an adapter.", max_length=1024)
    learning_rate: float = training(5e-5, "Peak learning rate.", source="paper Table 4", ge=0, le=10)
    epochs: float = training(
        2.0, "Passes over the prompts.", unit="epochs", source="paper Table 4", gt=0, le=1000
    )
    global_batch_size: int = training(
        32, "Episodes per rollout (8 x 4).", unit="episodes", source="paper Table 4", ge=1, le=1000000
    )
    tuning: Literal["lora"] = training("lora", "What is trained, besides the critic's head.")
    lora: PpoLora = training(PpoLora, "Adapter settings of policy and critic; no dropout in PPO.")
    quantization: Quantization = _quantization()
    critic_learning_rate: float | None = training(
        None, "Peak learning rate of the critic; none: learningRate.", ge=0, le=10
    )
    ppo_epochs: int = training(4, "Optimisation passes over one rollout.", ge=1, le=64)
    minibatches: int = training(1, "Optimizer steps per pass over one rollout.", ge=1, le=1024)
    system_prompt: str | None = training(
        None,
        "System turn for prompts that have none; none: that of sft; empty: no turn.",
        max_length=4000,
        later=True,
    )
    max_length: int = training(
        4096,
        "Longest prompt with its response: prompts are also cut to maxLength - maxNewTokens.",
        unit="tokens",
        source="paper section 4",
        ge=16,
        le=1048576,
    )
    max_prompt_length: int = training(
        1024, "Prompts are cut to this, earliest turns first.", unit="tokens", ge=SHORTEST_PROMPT, le=1048576
    )
    max_new_tokens: int = training(512, "Longest response.", unit="tokens", ge=1, le=1048576)
    temperature: float = training(1.0, "Sampling temperature of rollouts.", gt=0, le=10)
    kl_coef: float = training(0.05, "Weight of the KL penalty per token.", ge=0, le=100)
    kl_target: float | None = training(
        None,
        "Adapt klCoef towards this KL per response (Ziegler et al. 2019); none: fixed.",
        unit="nats",
        gt=0,
        le=1e6,
    )
    kl_horizon: int = training(1000, "Episodes over which klCoef adapts.", unit="episodes", ge=1, le=MOST)
    kl_estimator: Literal["k1", "k2", "k3"] = training(
        "k1", "Estimator of the KL per token (Schulman, Approximating KL Divergence)."
    )
    clip_range: float = training(
        0.2, "Clipping of the probability ratio.", source="Schulman et al. 2017", gt=0, le=10
    )
    value_clip_range: float = training(0.2, "Clipping of the value update.", gt=0, le=1e6)
    value_coef: float = training(0.5, "Weight of the value loss.", ge=0, le=100)
    entropy_coef: float = training(0.0, "Weight of the entropy bonus.", ge=0, le=10)
    gamma: float = training(1.0, "Discount.", gt=0, le=1)
    gae_lambda: float = training(0.95, "Lambda of the advantage estimate (Schulman et al. 2016).", ge=0, le=1)
    whiten_advantages: bool = training(True, "Advantages of a rollout get mean 0 and variance 1.")
    normalize_reward: bool = training(
        True, "Rewards are shifted and scaled by the reward model's held-out mean and deviation."
    )
    missing_eos_penalty: float = training(
        1.0, "Taken from the reward of a response without an end.", ge=0, le=1e6
    )
    reward_clip: float = training(10.0, "Rewards are clipped to +- this.", gt=0, le=1e6)
    critic_warmup_steps: int = training(
        0, "First rollouts in which only the critic learns.", unit="rollouts", ge=0, le=100000
    )
    max_kl: float | None = training(
        None,
        "Passes over a rollout end early above this mean KL to the rollout's policy.",
        unit="nats",
        gt=0,
        le=1e6,
    )

    min_reward_accuracy: float | None = operational(
        None,
        "The stage fails before it starts when the reward model ranks fewer of its held-out pairs rightly; "
        "none: a reward model that is not above chance, or not above 'the longer answer wins', is warned of.",
        unit="fraction",
        ge=0,
        le=1,
    )
    rollout: Rollout = operational(Rollout, "How responses are made, held-out ones too.")

    @model_validator(mode="after")
    def _minibatches_divide(self) -> PpoSettings:
        if self.global_batch_size % self.minibatches:
            raise RuleError(
                "globalBatchSize must be a multiple of minibatches",
                code=INVALID_BATCH,
                path=("globalBatchSize",),
            )
        return self

    @model_validator(mode="after")
    def _prompts_have_room(self) -> PpoSettings:
        if self.max_length - self.max_new_tokens < SHORTEST_PROMPT:
            raise RuleError(
                f"maxNewTokens {self.max_new_tokens} leaves a prompt fewer than {SHORTEST_PROMPT} tokens of "
                f"maxLength {self.max_length}",
                code=INVALID_VALUE,
                path=("maxNewTokens",),
            )
        return self

    @property
    def longest_prompt(self) -> int:
        """Tokens that prompts are cut to: ``maxPromptLength``, or what a whole response leaves."""
        return min(self.max_prompt_length, self.max_length - self.max_new_tokens)

    @property
    def token_budget(self) -> int:
        """Most tokens of a micro-batch: ``microBatchTokens``, else room for microBatchSize whole episodes."""
        return self.micro_batch_tokens or self.micro_batch_size * (self.longest_prompt + self.max_new_tokens)


AnySettings = PretrainSettings | SftSettings | RmSettings | PpoSettings


class Stages(DocumentModel):
    """The stages of a pipeline; each is optional. Those that train are read by ``get`` and ``[]``."""

    construct_: ConstructSettings | None = training(
        None,
        "Making of sources; a document with such a source has it by itself.",
        later=True,
        alias="construct",
    )
    pretrain: PretrainSettings | None = training(None, "Continued pretraining.")
    sft: SftSettings | None = training(None, "Supervised fine-tuning.")
    rm: RmSettings | None = training(None, "Reward model.")
    ppo: PpoSettings | None = training(None, "Reinforcement learning from human feedback.")

    def job(self, stage: Stage) -> AnySettings | ConstructSettings | None:
        """The settings of the job of ``stage``, or None if the pipeline does not have it."""
        value: AnySettings | ConstructSettings | None = getattr(
            self, "construct_" if stage is Stage.CONSTRUCT else stage.value, None
        )
        return value

    def get(self, stage: Stage) -> AnySettings | None:
        """The settings of a stage that trains, or None if the pipeline does not have it, or it does not."""
        value = self.job(stage)
        return None if isinstance(value, ConstructSettings) else value

    def __getitem__(self, stage: Stage) -> AnySettings:
        """The settings of a stage that the pipeline has and that trains. Raises KeyError: it has none."""
        settings = self.get(stage)
        if settings is None:
            raise KeyError(stage)
        return settings

    def system_prompt(self, stage: Stage) -> str | None:
        """The system turn that ``stage`` gives to dialogues and prompts without one.

        That of sft where rm and ppo say none: PPO asks the policy as it was trained, and the reward model
        scores what was shown, system turn included, so it must have learnt from rows that begin alike.
        """
        settings = self.get(stage)
        if settings is None or isinstance(settings, PretrainSettings):
            return None
        if settings.system_prompt is None and self.sft is not None:
            return self.sft.system_prompt or None
        return settings.system_prompt or None

    def present(self) -> list[Stage]:
        """The stages that the pipeline has, in order."""
        return [stage for stage in Stage if self.job(stage) is not None]

    def trained(self) -> list[Stage]:
        """Of these, the stages that train."""
        return [stage for stage in TRAINING if self.get(stage) is not None]
