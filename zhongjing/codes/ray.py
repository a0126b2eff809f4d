"""What can be wrong with Ray, the supervisor, and later the cluster."""

from zhongjing.codes.code import UNREACHABLE, Group

GROUP = Group("Ray and the supervisor", UNREACHABLE)
_code = GROUP.code

NO_CLUSTER = _code(
    "NoCluster",
    "There is no cluster to submit to.",
    cause="No kubeconfig was found, and --local was not given.",
    remedy="add --local to run on this machine",
)
NOTHING_RUNS = _code(
    "NothingRuns",
    "Nothing was ever run, or nothing runs now, in this workdir.",
    cause="Another --workdir, or the supervisor has ended because nothing was left to do.",
    remedy="start a run with: `zhongjing submit --local`",
)
SUPERVISOR_FAILED = _code(
    "SupervisorFailed",
    "The supervisor of the workdir did not start.",
    cause="The S3 server or Ray could not start: a full disk, too little memory, a machine under load.",
    remedy="see the log that the message names, then: `zhongjing doctor --local`",
)
SUPERVISOR_SILENT = _code(
    "SupervisorSilent",
    "The supervisor of the workdir lives but does not answer.",
    cause="It was stopped (SIGSTOP, a debugger), or the machine is starved.",
    remedy="end the process that the message names, then give the same command again",
)
RAY_FAILED = _code(
    "RayFailed",
    "Ray did not start, or died again and again.",
    cause="Too little memory is the usual reason; a full disk or blocked loopback ports are others.",
    remedy="see the log that the message names, then: `zhongjing doctor --local`",
)
RAY_UNREACHABLE = _code(
    "RayUnreachable",
    "Ray does not answer.",
    cause="Its head is being started again, or the machine is starved.",
    remedy="it is tried again by itself; see `zhongjing status NAME`",
)
RAY_REFUSED = _code(
    "RayRefused",
    "Ray refused a request.",
    cause="A wrong token, or a job that this Ray does not know.",
    remedy="see the message; `zhongjing doctor --local` checks Ray",
)
FOREIGN_JOB = _code(
    "ForeignJob",
    "A job's id belongs to another job.",
    cause="Two controllers, or a job that was submitted by hand.",
    remedy="nothing: the next attempt takes another id",
)
