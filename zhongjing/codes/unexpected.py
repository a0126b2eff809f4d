"""Whatever was not foreseen."""

from zhongjing.codes.code import FAILED, Group

GROUP = Group("Unexpected", FAILED)

INTERRUPTED = GROUP.code(
    "Interrupted",
    "The command was interrupted (exit code 130).",
    cause="Ctrl-C, or a signal.",
    remedy="the same command goes on from the last checkpoint",
)
UNEXPECTED = GROUP.code(
    "UnexpectedError",
    "Something happened that nobody foresaw.",
    cause="A defect of zhongjing or of a library below it.",
    remedy="zhongjing report packs what an issue report needs, without secrets or record text",
)
