"""Ray's pods take up a changed token: Ray reads it once, when it starts.

Each workload remembers the token that its pods were started with, as a hash in an annotation. When the Secret
has another one, all pods of Ray are ended and made again: head and workers at the same time, because neither
talks to the other in between. A running stage loses what it did since its last checkpoint. A workload without
the annotation is new, and only gets it.

The pod templates stay as they are. A StatefulSet whose template changes makes pods that end from the old one
first, and then replaces them one by one.

Needs get on the Secret, list and patch on ``statefulsets`` or get and patch on ``rayclusters``, list and
delete on ``pods``.
"""

from __future__ import annotations

import hashlib
import logging

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PODS
from zhongjing.backends.kubernetes.secrets import TOKEN_KEY, read_secret
from zhongjing.backends.kubernetes.workloads import HEAD, WORKER, end_pod, pod_labels, read_workloads, write
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig

logger = logging.getLogger(__name__)

TOKEN_HASH = f"{API_GROUP}/token-hash"
END_SECONDS = 20  # what runs in a pod that is rolled has lost its cluster; there is nothing to wait for


class Rollout:
    """Replaces Ray's pods when they have to be."""

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release

    def follow_token(self) -> bool:
        """Looks whether the token was changed, and replaces Ray's pods if so; whether it did.

        Two requests while nothing changes. Broken off, it goes on with the next call.

        Raises:
            ObjectNotFoundError: a workload went in between.
        """
        secret = self._release.ray.token_secret
        token = (read_secret(self._api, secret) or {}).get(TOKEN_KEY, "").strip()
        if not token:
            return False
        current = self._hash(token)
        workloads = read_workloads(self._api, self._release, head=True)
        known = {workload.name: workload.annotations.get(TOKEN_HASH) for workload in workloads}
        changed = any(before not in (None, current) for before in known.values())
        if changed:
            logger.info("the Secret %s has another token: Ray is started again", secret)
            for pod in self._api.find(PODS, labels=pod_labels(self._release, HEAD, WORKER)).items:
                if not pod["metadata"].get("deletionTimestamp"):
                    end_pod(self._api, pod, END_SECONDS)
        for workload in workloads:
            # Only now: broken off before, it would be done again.
            if known[workload.name] != current:
                write(self._api, workload, annotations={TOKEN_HASH: current})
        return changed

    def _hash(self, token: str) -> str:
        # Salted with the place: the same token elsewhere has another hash.
        salt = f"{self._release.namespace}/{self._release.ray.token_secret}/"
        return hashlib.sha256((salt + token).encode()).hexdigest()[:16]
