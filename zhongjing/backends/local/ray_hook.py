"""What ``ray start`` calls (``RAY_START_HOOK``) before it starts its processes. Runs in Ray's process."""

from __future__ import annotations

from typing import Any


def trim(parameters: Any, head: bool) -> None:
    """Leaves out the Ray Client server: jobs come by the Jobs API, and it costs a process.

    Args:
        parameters: Ray's ``RayParams``.
        head: whether a head is started.
    """
    if head:
        parameters.ray_client_server_port = None
