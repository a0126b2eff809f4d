"""What can be wrong while people rank answers."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("Feedback of people", BAD_INPUT)
_code = GROUP.code

LABEL_STUDIO_NOT_FOUND = _code(
    "LabelStudioNotFound",
    "Label Studio is not installed where it is looked for.",
    cause="It needs an environment of its own, beside this one.",
    remedy="install it as docs/annotation.md says, and name its folder with --label-studio",
)
LABEL_STUDIO_FAILED = _code(
    "LabelStudioFailed",
    "Label Studio does not start, or refuses what it is asked for.",
    cause="Its port is taken, its data are of a newer release, or a project was removed by hand.",
    remedy="look at its log, which the message names; then give the same command again",
)
LABEL_STUDIO_UNREACHABLE = _code(
    "LabelStudioUnreachable",
    "Label Studio does not answer.",
    cause="It is not started, or listens elsewhere.",
    remedy="start it with `zhongjing feedback serve`",
)
TOKEN_REFUSED = _code(
    "AnnotatorTokenRefused",
    "Label Studio does not know the token of an account.",
    cause="The accounts are of other data of Label Studio, or the account was removed.",
    remedy="name the data folder that the accounts were made in, or push again",
)
NOT_PUSHED = _code(
    "NotPushed",
    "The tasks were not given to annotators yet.",
    cause="`feedback push` was not run for this task set, or the folder is another one.",
    remedy="run `zhongjing feedback push TASKS --annotators A,B --expert C` first",
)
OTHER_PUSH = _code(
    "OtherAnnotators",
    "The tasks were given to other annotators, or otherwise.",
    cause="A second push names other people, another seed or another number of annotators a task.",
    remedy="leave the options out to go on, or sample a task set of its own for the others",
)
JUDGMENTS_EDITED = _code(
    "JudgmentsEdited",
    "A file of judgments is not what was stored.",
    cause="Judgments were edited by hand, or the object was damaged. They are only ever added to.",
    remedy="restore the file, or remove it: the next pull reads what is in Label Studio again",
)
OTHER_MODEL = _code(
    "OtherModel",
    "The task set was sampled from another model than stated.",
    cause="The folder is that of another stage or run.",
    remedy="correct --model, or sample anew",
)
UNDECIDED = _code(
    "Undecided",
    "Some tasks have no decided ranking yet.",
    cause="Annotators have tasks left, or orders disagree and the expert has not decided.",
    remedy="run `zhongjing feedback adjudicate TASKS`, pull again later; --partial writes what is decided",
)
