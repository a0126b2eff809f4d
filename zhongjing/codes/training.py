"""Why a stage ends without a result."""

from zhongjing.codes.code import FAILED, Group

GROUP = Group("Training", FAILED)
_code = GROUP.code

DIVERGED = _code(
    "Diverged",
    "The training exploded, and the spike guard could not save it.",
    cause="A learning rate that is too high, a warm-up that is too short, or damaged data at those steps.",
    remedy="lower learningRate, lengthen warmupFraction, or look at the data of these steps",
)
JOB_FAILED = _code(
    "JobFailed",
    "A stage's job ended without a result and without a word.",
    cause="The process was killed: by the kernel for memory, by a node that went away, or by hand.",
    remedy="see `zhongjing logs NAME --stage STAGE`; the same command goes on from the last checkpoint",
)
HUNG = _code(
    "Hung",
    "A stage did nothing within its progress deadline.",
    cause="A worker that was stopped, a file system that hangs, or a library that waits for ever.",
    remedy="see the stacks in the stage's logs; the same command goes on from the last checkpoint",
)
DEADLINE_EXCEEDED = _code(
    "DeadlineExceeded",
    "A stage ran longer than it may.",
    cause="activeDeadlineSeconds is set, and the stage needs longer.",
    remedy="raise activeDeadlineSeconds; the stage goes on from its checkpoint",
)
SUBMISSION_REFUSED = _code(
    "SubmissionRefused",
    "Ray refused to run a stage's job.",
    cause="Ray did not start, or died again and again.",
    remedy="see the message, then: `zhongjing doctor --local`",
)
WORKER_DIED = _code(
    "WorkerDied",
    "The process of a training worker died.",
    cause="It was killed: by the kernel or by Ray for memory, by a node that went away, or by hand.",
    remedy="the next attempt starts from the last checkpoint; if it comes again, lower microBatchSize or "
    "maxLength",
)
COMMUNICATION_LOST = _code(
    "CommunicationLost",
    "A worker lost its connection to the others.",
    cause="Another worker died or hung, or the network between nodes broke.",
    remedy="nothing if it is rare: the next attempt starts from the last checkpoint",
)
OUT_OF_MEMORY = _code(
    "OutOfMemory",
    "A worker needed more memory than there is.",
    cause="The model, its gradients and one micro-batch do not fit into the GPU's or the machine's memory.",
    remedy="lower microBatchSize or maxLength, set gradientCheckpointing: true, or use more workers",
)
UNUSABLE_OUTPUT = _code(
    "UnusableOutput",
    "The model gave something that cannot be trained on.",
    cause="Values that are not finite, or rollouts without a single usable answer.",
    remedy="lower learningRate, or check the model that the stage starts from",
)
WAITING_FOR_INPUT = _code(
    "WaitingForInput",
    "A stage waits for a source with wait: true.",
    cause="The data are still to be made, by doctors for example.",
    remedy="write the data to the source's URI and give the same command again",
)
