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
    cause="It was trained on another base, or is not a plain LoRA adapter.",
    remedy="use the base that adapter_config.json names, or train the adapter on this one",
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
