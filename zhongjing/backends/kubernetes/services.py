"""The store and the Ray of a release, opened from outside the cluster when they are first asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from zhongjing.backends.attempts import live_log
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.forward import Forward
from zhongjing.backends.kubernetes.secrets import CREDENTIALS_KEY, default_profile, ray_token, secret_value
from zhongjing.backends.ray_jobs import RayJobsBackend, TokenRefusedError
from zhongjing.codes import cluster as codes
from zhongjing.codes.storage import BUCKET_NOT_FOUND
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.sources import Storage
from zhongjing.errors import BackendError, ConfigError, StorageError
from zhongjing.storage.connection import Connection
from zhongjing.storage.credentials import Access, Keys, KeySource
from zhongjing.storage.objects import ObjectStore, open_store


class Services:
    """What a release has beside the Kubernetes API."""

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
        """The object store."""
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
            return live_log(self.jobs(), identity, follow=follow)
        except TokenRefusedError as error:
            place = f"{self._release.namespace}/secrets/{self._release.ray.token_secret}"
            raise BackendError(error.message, code=codes.RAY_TOKEN_REFUSED, where=place) from error

    def close(self) -> None:
        """Ends the forwards."""
        self._open.close()
        self._store = self._ray = None


@contextlib.contextmanager
def release_store(api: KubeApi, release: ReleaseConfig) -> Iterator[ObjectStore]:
    """The release's object store, while the block runs.

    The bundled store is reached through a forward, with the credentials of its Secret. To any other one the
    user's own AWS credentials are given where there are some, else those of the Secret. A store that only
    the cluster can reach (``http://<service>.<namespace>.svc``) is forwarded as well.

    Raises:
        BackendError: the store cannot be forwarded, or the Secret cannot be read.
        ConfigError: there are no credentials.
    """
    with contextlib.ExitStack() as stack:
        storage = release.storage.storage().model_copy(update={"ca_bundle": None})
        service = _service_of(release)
        if service is not None:
            name, namespace, port = service
            forward = stack.enter_context(Forward(api, name, port, namespace=namespace))
            storage = storage.model_copy(update={"endpoint": forward.url, "addressing_style": "path"})
        access = Access.from_environment(os.environ)
        if release.storage.bundled or not _has_keys(storage, access):
            access = access.using(_secret_keys(api, release))
        store = open_store(storage, access)
        if release.storage.bundled:
            _see_to_bucket(store, storage, access)
        yield store


def _see_to_bucket(store: ObjectStore, storage: Storage, access: Access) -> None:
    """Makes the bucket of the bundled store again, which without a volume comes up empty after a restart.

    The controller does so too, when it next has something to do.
    """
    try:
        next(store.list(f"{storage.uri}/.bucket"), None)
    except StorageError as error:
        if error.code is not BUCKET_NOT_FOUND:
            raise
        from zhongjing.storage.admin import BucketAdmin  # most commands need no boto3

        BucketAdmin(storage, access).ensure_bucket(storage.uri)


def _service_of(release: ReleaseConfig) -> tuple[str, str, int] | None:
    """Service, namespace and port of a store inside the cluster; None: it can be reached from anywhere."""
    storage = release.storage
    if storage.bundled and storage.service is not None and storage.port is not None:
        return storage.service, release.namespace, storage.port
    parts = urlsplit(storage.endpoint or "")
    host = (parts.hostname or "").removesuffix(".cluster.local").split(".")
    if parts.scheme == "http" and len(host) == 3 and host[2] == "svc":
        return host[0], host[1], parts.port or 80
    return None


def _has_keys(storage: Storage, access: Access) -> bool:
    try:
        KeySource(access, Connection.of(storage, access).name).keys()
    except ConfigError:
        return False
    return True


def _secret_keys(api: KubeApi, release: ReleaseConfig) -> Keys | None:
    name = release.storage.secret
    if name is None:
        return None  # the pods' own role: nothing that could be lent; the store says what is missing
    profile = default_profile(secret_value(api, name, CREDENTIALS_KEY))
    access_key, secret_key = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
    if not access_key or not secret_key:
        raise BackendError(
            "the Secret has no AWS credentials file with a default profile",
            code=codes.INVALID_RELEASE,
            where=f"{release.namespace}/secrets/{name}",
            remedy="its key 'credentials' must hold [default], aws_access_key_id and aws_secret_access_key",
        )
    return Keys(access_key, secret_key, profile.get("aws_session_token") or None)
