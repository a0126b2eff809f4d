"""Which checks there are, in the order in which they are told."""

from __future__ import annotations

from zhongjing.cli.diagnosis import (
    accelerator,
    clock,
    cluster,
    disk,
    document,
    filesystem,
    interpreter,
    limits,
    loopback,
    memory,
    packages,
    processors,
    ray,
    store,
    supervisor,
)
from zhongjing.cli.diagnosis.runner import Check
from zhongjing.cli.diagnosis.situation import Situation

_GRACE = 10.0  # seconds beyond a child's own deadline


def checks(situation: Situation) -> list[Check]:
    """The checks that ``situation`` asks for."""
    listed = [
        Check("python", interpreter.check),
        Check("packages", packages.check, 30.0),
        Check("torch", accelerator.check, accelerator.SECONDS + _GRACE),
        Check("cores", processors.check),
        Check("memory", memory.check),
        Check("disk", disk.check),
        Check("file system", filesystem.check),
        Check("limits", limits.check),
        Check("ports", loopback.check_ports),
        Check("names", loopback.check_names),
        Check("proxy", loopback.check_proxy),
        Check("clock", clock.check),
        Check("s3", store.check, store.SECONDS + _GRACE),
        Check("supervisor", supervisor.check, 30.0),
    ]
    if situation.deep:
        listed.append(Check("ray", ray.check, ray.SECONDS + _GRACE))
    if situation.document is not None:
        listed.append(Check("document", document.check, 60.0))
    return [*listed, Check("cluster", cluster.check)]
