"""What ``zhongjing doctor`` may find wrong with a machine, beside the codes of other areas."""

from zhongjing.codes.code import FAILED, Group

GROUP = Group("Findings of zhongjing doctor", FAILED)
_code = GROUP.code

UNSUPPORTED_PYTHON = _code(
    "UnsupportedPython",
    "This Python is not one that zhongjing runs on.",
    cause="An interpreter that is older or newer than the release's tests.",
    remedy="make an environment with Python 3.11 to 3.13 and install zhongjing there",
)
UNTESTED_PACKAGES = _code(
    "UntestedPackages",
    "Installed packages are not the ones that zhongjing asks for or was tested with.",
    cause="Another project shares the environment, or it was made without constraints.txt.",
    remedy="pip install --constraint constraints.txt 'zhongjing[train]', in an environment of its own",
)
TORCH_UNUSABLE = _code(
    "TorchUnusable",
    "torch cannot be imported, or computes wrongly.",
    cause="A broken installation, a library that is missing, or a processor that it was not built for.",
    remedy="install torch again: pip install --force-reinstall torch",
)
GPU_UNUSABLE = _code(
    "GpuUnusable",
    "There is a GPU, and torch cannot use it.",
    cause="A torch without CUDA, a GPU that torch has no kernels for, or a container without the driver.",
    remedy="install a torch for this GPU and driver (pytorch.org/get-started), or set resources.gpus: 0",
)
DRIVER_TOO_OLD = _code(
    "DriverTooOld",
    "The GPU driver is too old for the CUDA that torch was built with.",
    cause="The driver was not upgraded when torch was.",
    remedy="upgrade the driver, or install a torch that was built for the driver's CUDA",
)
FEW_CORES = _code(
    "FewCores",
    "The machine has few processor cores, or they are busy.",
    cause="A small machine, a container's CPU limit, or other programs.",
    remedy="training works, only slower: give the container more, or end other programs",
)
LITTLE_MEMORY = _code(
    "LittleMemory",
    "There is little memory.",
    cause="A small machine, a container's memory limit, or other programs.",
    remedy="end other programs, raise the container's limit, or lower workers and microBatchSize",
)
LITTLE_SHARED_MEMORY = _code(
    "LittleSharedMemory",
    "The shared memory (/dev/shm) is small.",
    cause="Containers get 64 MiB unless they ask for more.",
    remedy="docker run --shm-size=1g; in a pod, an emptyDir of medium Memory at /dev/shm",
)
LITTLE_DISK = _code(
    "LittleDisk",
    "There is little space on a disk.",
    cause="Checkpoints, models and caches need room.",
    remedy="free some space, or give another folder (--workdir, ZHONGJING_SCRATCH)",
)
LOW_LIMIT = _code(
    "LowLimit",
    "A limit of this shell or container is low for Ray and the S3 server.",
    cause="The system's defaults, or limits of a container.",
    remedy="raise it: ulimit -n 65536 for files, ulimit -u for processes, --pids-limit for containers",
)
LOOPBACK_BLOCKED = _code(
    "LoopbackBlocked",
    "Programs of this machine cannot reach each other through 127.0.0.1.",
    cause="A firewall or sandbox, or programs that hold the ports.",
    remedy="let programs listen on 127.0.0.1, ports 11000 to 32000",
)
UNUSABLE_FILE_SYSTEM = _code(
    "UnusableFileSystem",
    "A file system cannot do what zhongjing needs of it.",
    cause="Network and shared file systems often lack locks, atomic renames or sockets.",
    remedy="use a folder on a local disk (--workdir, TMPDIR, ZHONGJING_SCRATCH)",
)
WRONG_CLOCK = _code(
    "WrongClock",
    "The clock is off.",
    cause="No time service runs, or a virtual machine was suspended.",
    remedy="set the clock and let it follow a time service (chrony, systemd-timesyncd)",
)
SLOW_STORE = _code(
    "SlowStore",
    "The object store is slow.",
    cause="A far region, a thin line, or a busy server or disk.",
    remedy="use a store that is near; checkpoints and models pass through it",
)
STALE_SUPERVISOR = _code(
    "StaleSupervisor",
    "A workdir holds what a supervisor left behind that is gone.",
    cause="It was killed, or the machine was switched off.",
    remedy="nothing to do by hand: the next `zhongjing submit --local` cleans up and goes on",
)
OPEN_SECRETS = _code(
    "OpenSecrets",
    "Other users of this machine can read keys of a workdir.",
    cause="The files were copied or restored with other permissions.",
    remedy="chmod 600 the files that the finding names",
)
CHECK_HUNG = _code(
    "CheckHung",
    "A check of zhongjing doctor did not end in time and was cut off.",
    cause="A file system, driver or server that does not answer, or a starved machine.",
    remedy="see whether what the check looks at hangs; on a busy machine: try again",
)
CHECK_BROKE = _code(
    "CheckBroke",
    "A check of zhongjing doctor could not be made.",
    cause="A platform that it does not know, or a defect of zhongjing.",
    remedy="the other checks stand; report this one",
)
