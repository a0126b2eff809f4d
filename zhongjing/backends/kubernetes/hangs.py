"""Worker pods are replaced after an attempt that hung and had to be ended by force.

A process that hangs in a GPU or network driver may outlive its Ray worker: Ray sends SIGKILL and forgets it.
Nobody can tell from outside, and the next attempt would find the GPU taken, or hang as well. So all worker
pods are replaced before the next attempt. One that stopped when it was asked to did not hang so badly.

What is noted stands on the workloads, so that a restart of the controller in between loses nothing::

    training.zhongjing.dev/hung    <submission id>, and " killed" after it once the job was ended by force
"""

from __future__ import annotations

from collections.abc import Sequence

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.rollout import end_pod
from zhongjing.backends.kubernetes.workloads import GROUP, Workload, label, read_workloads, write
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig

HUNG = f"{API_GROUP}/hung"
END_SECONDS = 5

_KILLED = " killed"


class Hangs:
    """Remembers attempts that hung, and replaces their pods.

    Args:
        api: the cluster.
        release: the release.
    """

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release

    def note(self, submission_id: str) -> None:
        """Says that an attempt hangs.

        Raises:
            BackendError: the API does not answer, or refuses.
        """
        for workload in self._workloads():
            if not _noted(workload).startswith(submission_id):
                write(self._api, workload, annotations={HUNG: submission_id})

    def killed(self, submission_id: str) -> None:
        """Says that an attempt was ended by force; means nothing for one that did not hang.

        Raises:
            BackendError: the API does not answer, or refuses.
        """
        for workload in self._workloads():
            if _noted(workload) == submission_id:
                write(self._api, workload, annotations={HUNG: submission_id + _KILLED})

    def clear(self, workers: Sequence[Object]) -> list[str]:
        """Replaces the pods that an attempt hung in; returns their names.

        Args:
            workers: the worker pods.

        Raises:
            BackendError: the API does not answer, or refuses.
        """
        ended: list[str] = []
        for workload in self._workloads():
            noted = _noted(workload)
            if noted.endswith(_KILLED):
                pods = [pod for pod in workers if label(pod, GROUP) in workload.groups]
                ended += [pod["metadata"]["name"] for pod in pods if end_pod(self._api, pod, END_SECONDS)]
            if noted:
                # Only now: broken off before, it would be done again.
                write(self._api, workload, annotations={HUNG: None})
        return ended

    def _workloads(self) -> list[Workload]:
        return read_workloads(self._api, self._release)


def _noted(workload: Workload) -> str:
    return workload.annotations.get(HUNG, "")
