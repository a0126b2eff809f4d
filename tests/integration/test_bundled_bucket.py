"""The bucket of the bundled store, which is lost with its pod where it has no volume, and made again."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes import services
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.config.release import ReleaseConfig, StorageRelease
from zhongjing.errors import StorageError

pytestmark = pytest.mark.integration


def release_of(uri: str, *, bundled: bool) -> ReleaseConfig:
    service: dict[str, Any] = {"service": "zj-s3", "port": 8333} if bundled else {}
    return release_config(
        storage=StorageRelease(
            bundled=bundled, uri=uri, endpoint=os.environ["AWS_ENDPOINT_URL"], secret="zj-s3", **service
        )
    )


@pytest.fixture
def api(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> KubeApi:
    """Has the Secret; what is forwarded is the test's server."""

    @contextlib.contextmanager
    def forward(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(url=s3_environment["AWS_ENDPOINT_URL"])

    monkeypatch.setattr(services, "Forward", forward)
    keys = (
        "[default]\n"
        f"aws_access_key_id = {os.environ['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {os.environ['AWS_SECRET_ACCESS_KEY']}\n"
    )
    secret = {"data": {"credentials": base64.b64encode(keys.encode()).decode()}}
    return cast(KubeApi, SimpleNamespace(namespace="ns", get=lambda *_: secret))


def test_a_missing_bucket_of_the_bundled_store_is_made_again_for_a_submission(api: KubeApi) -> None:
    uri = f"s3://lost-{os.getpid()}"
    for _ in range(2):
        with services.release_store(api, release_of(uri, bundled=True)) as store:
            store.put(f"{uri}/x", b"1")


def test_a_bucket_of_somebody_elses_store_is_not_made(api: KubeApi) -> None:
    uri = f"s3://foreign-{os.getpid()}"
    with (
        services.release_store(api, release_of(uri, bundled=False)) as store,
        pytest.raises(StorageError, match="bucket"),
    ):
        store.put(f"{uri}/x", b"1")
