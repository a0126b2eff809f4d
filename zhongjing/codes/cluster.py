"""What can be wrong with a Kubernetes cluster, a release of the chart, and pipelines in it."""

from zhongjing.codes.code import UNREACHABLE, Group

GROUP = Group("Kubernetes", UNREACHABLE)
_code = GROUP.code

INVALID_RELEASE = _code(
    "InvalidRelease",
    "The configuration of a release cannot be read.",
    cause="Chart and image, or chart and command line, are of different versions.",
    remedy="install chart, image and command line of the same version",
)
