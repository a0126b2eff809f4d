"""What the controller says of a store that is away."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.backends.test_kubernetes_explain import release
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PODS
from zhongjing.codes.storage import STORAGE_UNREACHABLE
from zhongjing.controller.store import ReleaseStore
from zhongjing.errors import StorageUnavailableError
from zhongjing.storage.credentials import KeySource

BAD = "registry.example/zhongjing:9.9-controller"
WAITING = {
    "reason": "ImagePullBackOff",
    "message": f'Back-off pulling image "{BAD}": ErrImagePull: not found',
}


def store_of(status: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ReleaseStore:
    """Of a bundled store that does not answer, and whose pod has this status."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    labels = {"app.kubernetes.io/component": "s3"}
    pod = {"metadata": {"name": "zhongjing-s3-0", "labels": labels}, "status": {"phase": "Pending", **status}}

    def find(resource: object, **_: object) -> SimpleNamespace:
        return SimpleNamespace(items=[pod] if resource == PODS else [])

    store = ReleaseStore(cast(KubeApi, SimpleNamespace(find=find)), release())

    def away(uri: str) -> bool:
        raise StorageUnavailableError("no answer", code=STORAGE_UNREACHABLE, where=uri, remedy="wait")

    monkeypatch.setattr(store._admin, "ensure_bucket", away)
    return store


@pytest.mark.parametrize("kind", ["initContainerStatuses", "containerStatuses"])
def test_the_condition_names_the_image_that_keeps_the_bundled_store(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {kind: [{"name": "s3", "image": BAD, "state": {"waiting": WAITING}}]}
    with pytest.raises(StorageUnavailableError) as told:
        store_of(status, monkeypatch).ask()

    assert told.value.code is STORAGE_UNREACHABLE
    assert f"no answer; pod/zhongjing-s3-0: the image {BAD} cannot be pulled" in told.value.message
    assert "image" in told.value.remedy


def test_a_store_whose_pod_serves_is_told_of_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    with pytest.raises(StorageUnavailableError) as told:
        store_of(status, monkeypatch).ask()

    assert (told.value.message, told.value.remedy) == ("no answer", "wait")


def credentials(access_key: str) -> str:
    return f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = secret\n"


def test_keys_are_lent_from_the_secret_until_the_mounted_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    mounted, lent = tmp_path / "credentials", tmp_path / "lent"
    lent.mkdir()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    monkeypatch.setattr(tempfile, "tempdir", str(lent))
    secret = {"data": {"credentials": base64.b64encode(credentials("OF-THE-SECRET").encode()).decode()}}
    api = cast(KubeApi, SimpleNamespace(namespace="ns", get=lambda *_: secret))
    given = release()
    storage = given.storage.model_copy(update={"secret": "zj-s3"})
    store = ReleaseStore(api, given.model_copy(update={"storage": storage}))
    keys = KeySource(store.objects.connection.access, "store")

    store.follow_keys()
    assert keys.keys().access_key == "OF-THE-SECRET"
    assert [file.stat().st_mode & 0o777 for file in lent.iterdir()] == [0o600]
    mounted.write_text(credentials("MOUNTED"))
    store.follow_keys()
    assert keys.keys().access_key == "MOUNTED"
    assert not list(lent.iterdir())
