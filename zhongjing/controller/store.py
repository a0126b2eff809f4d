"""The object store as the controller finds it: keys that are still on their way, a bucket that is to be made.

Nothing here waits: a request is sent once, and what may pass by itself is a matter of
:mod:`zhongjing.controller.outage`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.diagnosis import S3, Explainer, sentence
from zhongjing.backends.kubernetes.secrets import CREDENTIALS_KEY, read_secret
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import StorageUnavailableError, ZhongjingError
from zhongjing.pipeline.repeats import Repeats
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.credentials import Access
from zhongjing.storage.objects import ObjectStore, open_store

logger = logging.getLogger(__name__)

STORE_SECONDS = 10.0  # bounds what a request of a pass may take
_NOTHING = ".outage"  # a folder that is never there


class ReleaseStore:
    """The store of a release, whose keys are in a Secret."""

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release
        self.storage = release.storage.storage()
        """The section that documents get."""
        hasty = self.storage.model_copy(update={"deadline_seconds": STORE_SECONDS})
        access = Access.from_environment(os.environ)
        self._mounted = Path(access.credentials_files[0])
        self._lent = Path(tempfile.gettempdir()) / f"credentials-{uuid.uuid4().hex}"
        self._lends = access.keys is None and release.storage.secret is not None
        access = replace(access, credentials_files=(str(self._mounted), str(self._lent)))
        self.objects: ObjectStore = open_store(hasty, access, waits=False)
        self._admin = BucketAdmin(hasty, access, waits=False)
        self._repeats = Repeats(logger)
        self.is_ready = False
        """Whether the store could be used yet."""

    def ask(self) -> None:
        """Asks the store for next to nothing; makes the bucket of the bundled store where it is missing.

        Raises:
            ZhongjingError: the store cannot be used.
        """
        self.follow_keys()
        if self._release.storage.bundled:
            try:
                self._admin.ensure_bucket(self.storage.uri)
            except StorageUnavailableError as error:
                raise self._explained(error) from error
        else:
            # A listing: the answer to another question has no words that say why it is refused.
            next(self.objects.list(f"{self.storage.uri}/{self._release.namespace}/{_NOTHING}"), None)
        self.is_ready = True

    def _explained(self, error: StorageUnavailableError) -> StorageUnavailableError:
        """With what keeps the pod of the bundled store: its image, its volume, its node."""
        try:
            findings = Explainer(self._api, self._release, components=(S3,)).findings()
        except ZhongjingError:
            findings = []
        if not findings:
            return error
        return StorageUnavailableError(
            f"{error.message}; {sentence(findings)}",
            code=error.code,
            where=error.where,
            remedy=findings[0].remedy,
        )

    def follow_keys(self) -> None:
        """Takes keys from the Secret until the mounted file is there, then from the file.

        The controller makes the Secret that its own pod mounts. A kubelet brings it in a minute or two.
        """
        secret = self._release.storage.secret
        if not self._lends or secret is None:
            return
        if self._mounted.exists():
            self._lent.unlink(missing_ok=True)
            self._lends = False
            return
        if self.is_ready or self._lent.exists():
            return
        try:
            values = read_secret(self._api, secret) or {}
        except ZhongjingError as error:
            self._repeats.say(f"the Secret {secret}", f"cannot be read: {error.message}")
            return
        if values.get(CREDENTIALS_KEY):
            descriptor, name = tempfile.mkstemp(prefix="credentials-")  # mode 0600
            with os.fdopen(descriptor, "w") as file:
                file.write(values[CREDENTIALS_KEY])
            Path(name).rename(self._lent)
