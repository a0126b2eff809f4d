"""What ``ray start`` calls (``RAY_START_HOOK``) before it starts its processes. Runs in Ray's process."""

from __future__ import annotations

import os
from typing import Any

from zhongjing.backends.local import fork_client


def prepare(parameters: Any, head: bool) -> None:
    """Leaves out the Ray Client server, which costs a process: jobs come by the Jobs API. Workers are forked.

    Args:
        parameters: Ray's ``RayParams``.
        head: whether a head is started.
    """
    if head:
        parameters.ray_client_server_port = None
    if fork_client.SERVER_VARIABLE in os.environ:
        parameters.setup_worker_path = fork_client.__file__
