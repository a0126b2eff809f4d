"""What can be wrong with a TrainingPipeline document."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("The document", BAD_INPUT)
_code = GROUP.code

DOCUMENT_NOT_FOUND = _code(
    "DocumentNotFound",
    "There is no such document, or it cannot be read.",
    cause="A typing error in the path after -f, another current folder, or a file without read permission.",
    remedy="give the path of a TrainingPipeline document",
)
INVALID_YAML = _code(
    "InvalidYaml",
    "The document is not YAML.",
    cause="Often a tab, a missing space after a colon, or a value with a colon that stands without quotes.",
    remedy="correct the document at the line and column that the message names",
)
NOT_A_PIPELINE = _code(
    "NotATrainingPipeline",
    "The file is YAML, but not a TrainingPipeline.",
    cause="Another Kubernetes object, another program's configuration, or only a part of a document.",
    remedy="begin from one that is complete: `zhongjing config show tiny --brief`",
)
UNKNOWN_FIELD = _code(
    "UnknownField",
    "The document has a key that does not exist.",
    cause="A typing error, a key on the wrong level, or a key of another release.",
    remedy="docs/configuration.md lists every field with its unit and default",
)
MISSING_FIELD = _code(
    "MissingField",
    "A field without a default is not there.",
    cause="The document says nothing of something that cannot be guessed, such as a source's URI.",
    remedy="docs/configuration.md lists every field with its unit and default",
)
INVALID_VALUE = _code(
    "InvalidValue",
    "A value has the wrong type, is out of range, or contradicts another one.",
    cause="A typing error, another unit, or text where a number is wanted.",
    remedy="docs/configuration.md lists every field with its unit, range and default",
)
UNKNOWN_STAGE = _code(
    "UnknownStage",
    "There is no such stage, or the document does not have it.",
    cause="A typing error below spec.stages, or a document with fewer stages than were asked for.",
    remedy="the stages are pretrain, sft, rm and ppo; add it to spec.stages, or ask for another",
)
INVALID_REFERENCE = _code(
    "InvalidReference",
    "A stage names another stage, model or source that it cannot use.",
    cause="`from`, `reward` or `data` names something that is not there, comes later, or is of another kind.",
    remedy="name a stage that comes before, a folder, an s3:// URI, a hub id, or a source of spec.sources",
)
WRONG_SOURCE_KIND = _code(
    "WrongSourceKind",
    "A stage is given a source of a kind that it cannot train on.",
    cause="Pretraining reads text (and dialogue as text), SFT and PPO dialogue, the reward model ranking.",
    remedy="give the stage a source of its kind, or correct the source's `kind`",
)
UNSET_VARIABLE = _code(
    "UnsetVariable",
    "The document names an environment variable that is not set.",
    cause="`${NAME}` in a place's URI is filled in from the environment of the command.",
    remedy="export the variable, or write the place itself",
)
INVALID_TEMPLATE = _code(
    "InvalidTemplate",
    "A chat template cannot be used.",
    cause="It does not parse, fails on a dialogue, or does not show where answers begin and end.",
    remedy="correct the template, or leave it out: the tokenizer's own or ChatML is used then",
)
INVALID_BATCH = _code(
    "InvalidBatch",
    "Batch size, micro-batch and workers do not fit together.",
    cause="globalBatchSize is smaller than the number of workers, or is not made of whole micro-batches.",
    remedy="change globalBatchSize, microBatchSize or workers as the message says",
)
INVALID_PRECISION = _code(
    "InvalidPrecision",
    "The number format cannot be used on this device.",
    cause="fp16 trains on GPUs only.",
    remedy="set resources.gpus: 1, or leave precision to auto: fp32 on CPUs, bf16 or fp16 on GPUs",
)
STAGE_RUNS = _code(
    "StageRuns",
    "What a running stage reads cannot be changed under it.",
    cause="The document was edited while a stage runs that uses the edited part.",
    remedy="stop the run, submit the changed document, and it goes on; what depends on the change runs again",
)
DOES_NOT_FIT = _code(
    "DoesNotFit",
    "By the plan a stage cannot fit into the memory of its workers.",
    cause="The base, the micro-batch or the optimizer's states are too large for the GPU or host memory.",
    remedy="change the fields that the message names (`zhongjing plan -f FILE` shows the parts); "
    "--force starts it",
)
