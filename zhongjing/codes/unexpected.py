"""Whatever was not foreseen."""

from zhongjing.codes import code

GROUP = code.Group("Unexpected", code.FAILED)
UNEXPECTED = GROUP.code(
    "UnexpectedError",
    "Something unexpected happened.",
    cause="A defect of zhongjing or of a library below it.",
    remedy="`zhongjing report NAME` writes the facts for an issue to a file, without secrets or record text",
)

INTERRUPTIONS = code.Group("Interruptions", code.INTERRUPTED)
INTERRUPTED = INTERRUPTIONS.code(
    "Interrupted",
    "The command was interrupted, or its run was stopped by another one.",
    cause="Ctrl-C, a signal, or `zhongjing stop NAME`.",
    remedy="the same command goes on from the last checkpoint",
)
