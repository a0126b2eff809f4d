"""The store and the Ray of a release, opened from outside the cluster when they are first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.forward import Forward
from zhongjing.backends.kubernetes.outside import ray_token, release_store
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes import cluster as codes
from zhongjing.codes.ray import RAY_REFUSED
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobState
from zhongjing.storage.objects import ObjectStore


class Services:
    """What a release has beside the Kubernetes API.

    Args:
        api: the cluster.
        release: the release.
    """

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release
        self._open = contextlib.ExitStack()
        self._store: ObjectStore | None = None
        self._ray: tuple[str, str] | None = None  # address and token

    @property
    def has_store(self) -> bool:
        """Whether the store has been opened."""
        return self._store is not None

    @property
    def store(self) -> ObjectStore:
        """The object store.

        Raises:
            BackendError: it cannot be reached, or its credentials cannot be read.
        """
        if self._store is None:
            self._store = self._open.enter_context(release_store(self._api, self._release))
        return self._store

    def use(self, store: ObjectStore) -> None:
        """Shows another store instead."""
        self._store = store

    def jobs(self, timeout: float = 30.0) -> RayJobsBackend:
        """The Jobs API of Ray. The timeout, in seconds, is a request's.

        Raises:
            BackendError: Ray's pod cannot be reached, or the token cannot be read.
        """
        if self._ray is None:
            token = ray_token(self._api, self._release)
            forward = Forward(self._api, self._release.ray.service, self._release.ray.dashboard_port)
            self._open.enter_context(forward)
            self._ray = (forward.url, token)
        return RayJobsBackend(*self._ray, timeout=timeout)

    def live_log(self, identity: str, *, follow: bool) -> Iterator[str] | None:
        """Lines of a job's log; None if Ray does not know the job (any more).

        Raises:
            BackendError: Ray does not answer, or refuses the token.
        """
        try:
            jobs = self.jobs()
            if jobs.describe(identity).state is JobState.UNKNOWN:
                return None
            return jobs.tail_logs(identity) if follow else jobs.read_log(identity)
        except BackendError as error:
            if error.code is RAY_REFUSED and "token" in error.message:
                raise BackendError(
                    error.message,
                    code=codes.RAY_TOKEN_REFUSED,
                    where=f"{self._release.namespace}/secrets/{self._release.ray.token_secret}",
                ) from error
            raise

    def close(self) -> None:
        """Ends the forwards."""
        self._open.close()
        self._store = self._ray = None
