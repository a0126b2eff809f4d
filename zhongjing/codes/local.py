"""What can be wrong with this machine and its workdirs."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("This machine", BAD_INPUT)
_code = GROUP.code

WORKDIR_IN_USE = _code(
    "WorkdirInUse",
    "Another document runs in this workdir.",
    cause="One machine runs one pipeline at a time, and a running pipeline's document does not change.",
    remedy="wait for it, stop it (`zhongjing stop NAME --local`), or use another --workdir",
)
UNUSABLE_WORKDIR = _code(
    "UnusableWorkdir",
    "The workdir cannot be made or written.",
    cause="No permission, a file of that name, a read-only or full disk.",
    remedy="give another folder with --workdir",
)
TOO_MANY_WORKERS = _code(
    "TooManyWorkers",
    "The machine cannot hold the workers that a stage asks for.",
    cause="workers x resources is more than the machine's cores, GPUs or memory.",
    remedy="lower workers or resources, or run on a cluster",
)
NO_GPU = _code(
    "NoGpu",
    "A stage asks for a GPU, and torch finds none.",
    cause="No driver, a driver that is too old for torch's CUDA, or a container without the device.",
    remedy="check nvidia-smi against torch's CUDA (`zhongjing doctor --local`), or set resources.gpus: 0",
)
