"""What can be wrong with a command line."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("The command line", BAD_INPUT)
_code = GROUP.code

INVALID_OPTION = _code(
    "InvalidOption",
    "An option or argument is unknown, is missing, or contradicts another one.",
    cause="A typing error, or an option of another command.",
    remedy="add --help to the command",
)
INVALID_OVERRIDE = _code(
    "InvalidOverride",
    "A --set cannot be applied.",
    cause="--set takes path=value; elements of lists are named by their name, source or number.",
    remedy="e.g. --set spec.stages.sft.learningRate=1e-4",
)
UNKNOWN_RECIPE = _code(
    "UnknownRecipe",
    "There is no recipe or example of that name.",
    cause="A typing error.",
    remedy="use one of the names that the message lists; tiny is the recipe to begin with",
)
UNKNOWN_PIPELINE = _code(
    "UnknownPipeline",
    "There is no such pipeline here, or there are several and none was named.",
    cause="Another --workdir, or a typing error.",
    remedy="`zhongjing status` lists the pipelines of a place",
)
NOT_RUN_YET = _code(
    "NotRunYet",
    "A stage has no result or log yet.",
    cause="The stage was never run for this pipeline, or did not finish.",
    remedy="run it with `zhongjing submit --pipeline NAME --stage STAGE`",
)
NO_LOG = _code(
    "NoLog",
    "No log of that attempt is there.",
    cause="No stage was started yet, or everything was killed at once before the log could be stored.",
    remedy="`zhongjing status NAME` shows the attempts; give another one with --attempt",
)
TARGET_IN_USE = _code(
    "TargetInUse",
    "What should be written to exists already, or cannot be written.",
    cause="The folder is not empty, is a file, or belongs to another user.",
    remedy="give another folder",
)
MISSING_PACKAGE = _code(
    "MissingPackage",
    "The command needs a package that is not installed.",
    cause="zhongjing was installed without the extra that this command needs.",
    remedy="pip install 'zhongjing[train]'",
)
