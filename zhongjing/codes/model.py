"""What can be wrong with base models, tokenizers and adapters."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("Models", BAD_INPUT)
_code = GROUP.code

MODEL_NOT_FOUND = _code(
    "ModelNotFound",
    "There is no model where the document says.",
    cause="A typing error in base.uri, from or reward, or a hub that cannot be reached.",
    remedy="give a folder with config.json, an s3:// folder, or a hub id",
)
UNUSABLE_MODEL = _code(
    "UnusableModel",
    "A model folder cannot be loaded.",
    cause="Files are missing or damaged, or it is an architecture that the installed transformers lack.",
    remedy="fetch the folder again; it must load with transformers' from_pretrained",
)
UNUSABLE_TOKENIZER = _code(
    "UnusableTokenizer",
    "A tokenizer is missing, or lacks what training needs.",
    cause="The folder has weights only, or its vocabulary has no end-of-text token.",
    remedy="put the base's tokenizer files into the folder",
)
TOKENIZER_MISMATCH = _code(
    "TokenizerMismatch",
    "The tokenizer and the model are not of one kind.",
    cause="The tokenizer makes ids that the model's embedding lacks, or differs from the stage before.",
    remedy="use the tokenizer that the model was trained with",
)
ADAPTER_MISMATCH = _code(
    "AdapterMismatch",
    "The adapter does not fit the base.",
    cause="It was trained on another base.",
    remedy="use the base that adapter_config.json names, or train the adapter on this one",
)
UNUSABLE_ADAPTER = _code(
    "UnusableAdapter",
    "An adapter folder cannot be used.",
    cause="Files are missing or damaged, or it is not a plain LoRA adapter (DoRA, biases, rank patterns).",
    remedy="fetch the folder again, or train a plain LoRA adapter",
)
NOT_A_FULL_MODEL = _code(
    "NotAFullModel",
    "An adapter stands where a full model is needed.",
    cause="spec.base, or `from` of a stage other than ppo, names an adapter.",
    remedy="merge the adapter into its base first: `zhongjing pull NAME/STAGE merged --merged`",
)
DELTA_MISMATCH = _code(
    "DeltaMismatch",
    "base.delta does not fit base.root.",
    cause="The published difference was taken from another model or another release of it.",
    remedy="base.root must be the very model that base.delta was published for",
)
UNSUPPORTED_MODEL = _code(
    "UnsupportedModel",
    "A model of this architecture cannot be trained here.",
    cause="It mixes experts, changes its logits, has no decoder of linear layers, or brings code of its own.",
    remedy="use a dense causal family such as Llama, Qwen2 or Qwen3, or a conversion to its layout",
)
UNKNOWN_MODULE = _code(
    "UnknownModule",
    "lora.targetModules names a layer that the model does not have.",
    cause="Names of another family (c_attn, query_key_value), or a typing error.",
    remedy="name linear layers of this model, or all-linear",
)
UNUSABLE_REWARD = _code(
    "UnusableReward",
    "The reward model's statistics cannot normalise a reward.",
    cause="The mean or deviation of its held-out rewards is not finite, or the deviation is 0.",
    remedy="train the reward model again, or set ppo.normalizeReward: false",
)
WEAK_REWARD_MODEL = _code(
    "WeakRewardModel",
    "The reward model ranks fewer held-out pairs rightly than spec.stages.ppo.minRewardAccuracy asks for.",
    cause="It was trained on too few or contradictory rankings, too shortly, or its answers were cut.",
    remedy="give the rm stage more ranked prompts or epochs, or lower minRewardAccuracy",
)
NO_REWARD_HEAD = _code(
    "NoRewardHead",
    "The model that should give rewards has no score head.",
    cause="ppo.reward names a model that the rm stage did not make.",
    remedy="name the result of an rm stage, or a sequence classification model with one label",
)
TOO_LONG_FOR_MODEL = _code(
    "TooLongForModel",
    "Sequences would be longer than the model's positions.",
    cause="maxLength (with PPO: prompt and answer together) is above the model's max_position_embeddings.",
    remedy="lower maxLength to what the message names, or use a base with more positions",
)
