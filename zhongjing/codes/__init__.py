"""The catalogue of errors: a code, a cause and a remedy for each. docs/troubleshooting.md is made from it.

Codes are defined in one module for each area and named where an error is raised::

    from zhongjing.codes import document as codes
    raise ConfigError("unknown key", code=codes.UNKNOWN_FIELD, where="spec.stages.sft.learningRte")

A code that was released keeps its name: scripts and conditions branch on it.
"""

from __future__ import annotations

from zhongjing.codes import (
    cluster,
    command,
    construct,
    data,
    document,
    feedback,
    knowledge,
    language_model,
    local,
    machine,
    model,
    pods,
    ray,
    storage,
    training,
    unexpected,
)
from zhongjing.codes.code import Code, Group

__all__ = ["GROUPS", "Code", "Group", "find"]

GROUPS: tuple[Group, ...] = (
    document.GROUP,
    command.GROUP,
    data.GROUP,
    construct.GROUP,
    knowledge.GROUP,
    feedback.GROUP,
    model.GROUP,
    language_model.GROUP,
    language_model.SERVERS,
    local.GROUP,
    ray.GROUP,
    cluster.GROUP,
    cluster.DOCUMENTS,
    pods.GROUP,
    storage.GROUP,
    storage.SETTINGS,
    training.GROUP,
    machine.GROUP,
    unexpected.GROUP,
    unexpected.INTERRUPTIONS,
)

_BY_NAME = {code.name: code for group in GROUPS for code in group.codes}
assert len(_BY_NAME) == sum(len(group.codes) for group in GROUPS), "a code has two definitions"


def find(name: str) -> Code | None:
    """The code of that name, if the catalogue has it."""
    return _BY_NAME.get(name)
