"""What keeps the pods of a release from running, and a stage from finding room in them."""

from zhongjing.codes.code import UNREACHABLE, Group

GROUP = Group("Pods of a release", UNREACHABLE)
_code = GROUP.code

NO_ROOM = _code(
    "NoRoom",
    "The release can never hold the workers of a stage.",
    cause="More workers, or larger ones, than the worker groups of the chart's values allow.",
    remedy="raise maxReplicas of a group in workers.groups, or lower workers of the stage",
)
