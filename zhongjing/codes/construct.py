"""What can be wrong while training data are made of raw records."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("Data construction", BAD_INPUT)
_code = GROUP.code

OUTPUT_IN_USE = _code(
    "OutputInUse",
    "The output's place holds something else.",
    cause="Another run wrote there, with other input, steps or parameters; or the files are of other origin.",
    remedy="give another output, or remove what is there",
)
UNKNOWN_STEP = _code(
    "UnknownStep",
    "There is no step of data construction of that name.",
    cause="A typing error, or a step named twice.",
    remedy="write the names that the message lists, each at most once",
)
STEP_FAILED = _code(
    "StepFailed",
    "A step of data construction failed at a record.",
    cause="A mistake in the step, or a record of a kind that it was not made for.",
    remedy="report it with the place in the code that the message names; the record's text is not needed",
)
NOT_ON_CLUSTERS = _code(
    "NotOnClusters",
    "Data are not constructed on a cluster.",
    cause="Neither --local nor --endpoint was given. Construction works with the processes of one machine.",
    remedy="add --local, or name the store that the data are in with --endpoint",
)
