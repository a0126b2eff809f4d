"""Secrets of a release: what the controller makes, and what is wrong with those that are there."""

from __future__ import annotations

import base64
from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import Object, Resource
from zhongjing.backends.kubernetes.secrets import check_secrets, prepare_secrets, secret_value
from zhongjing.codes.pods import SECRET_INCOMPLETE
from zhongjing.config.release import StorageRelease
from zhongjing.errors import BackendError

PROFILE = "[default]\naws_access_key_id = a\naws_secret_access_key = s"
KEYS = '{"identities": [{"credentials": [{"accessKey": "a", "secretKey": "s"}]}]}'


class Secrets:
    """A namespace with Secrets only."""

    namespace = "ns"

    def __init__(self, **values: dict[str, str]) -> None:
        self.made: dict[str, Object] = {name: _secret(each) for name, each in values.items()}

    def get(self, resource: Resource, name: str) -> Object | None:
        return self.made.get(name)

    def create(self, resource: Resource, body: Object) -> Object:
        return self.made.setdefault(body["metadata"]["name"], body)


def _secret(values: dict[str, str]) -> Object:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


def release(*, bundled: bool = True, managed: bool = True) -> Any:
    storage = StorageRelease(bundled=bundled, uri="s3://b", secret="s3", secret_managed=managed)
    return release_config(ray={"token_managed": managed}, storage=storage)


def test_what_is_made_is_complete_and_is_made_once() -> None:
    secrets = Secrets()
    api = cast(KubeApi, secrets)
    assert prepare_secrets(api, release()) == []
    token = secret_value(api, "t", "auth_token")
    assert prepare_secrets(api, release()) == []
    assert secret_value(api, "t", "auth_token") == token
    assert secrets.made["s3"]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(
    ("values", "bundled", "fault"),
    [
        ({"credentials": PROFILE, "s3.json": KEYS}, True, None),
        ({"credentials": PROFILE}, False, None),
        ({"credentials": PROFILE}, True, "has no key s3.json"),
        ({"credentials": "[default", "s3.json": KEYS}, True, "has no profile [default]"),
        ({"credentials": "[other]\na = b"}, False, "has no profile [default]"),
        ({"credentials": PROFILE, "s3.json": "[]"}, True, "is no list of identities"),
        ({"credentials": PROFILE.replace("= s", "= x"), "s3.json": KEYS}, True, "are not among those"),
    ],
)
def test_keys_of_a_store(values: dict[str, str], bundled: bool, fault: str | None) -> None:
    api = cast(KubeApi, Secrets(t={"auth_token": "one-word"}, s3=values))
    found = check_secrets(api, release(bundled=bundled, managed=False))
    assert [each.code for each in found] == ([SECRET_INCOMPLETE] if fault else [])
    assert all(each.fatal and each.place == "secret/s3" and (fault or "") in each.message for each in found)


def test_a_token_that_is_missing_or_no_word() -> None:
    missing, _ = check_secrets(cast(KubeApi, Secrets()), release(managed=False))
    assert missing.message == "does not exist"
    assert "kubectl create secret generic t --from-file=auth_token=" in missing.remedy
    broken = Secrets(t={"auth_token": "two words"}, s3={"credentials": PROFILE, "s3.json": KEYS})
    [fault] = check_secrets(cast(KubeApi, broken), release())
    assert "not one word" in fault.message
    assert "kubectl delete secret t" in fault.remedy


def test_one_value() -> None:
    secrets = Secrets(t={"other": "x"})
    with pytest.raises(BackendError, match="there is no such Secret"):
        secret_value(cast(KubeApi, secrets), "s3", "auth_token")
    with pytest.raises(BackendError, match="has no key 'auth_token'"):
        secret_value(cast(KubeApi, secrets), "t", "auth_token")
    secrets.made["t"]["data"]["auth_token"] = "/w=="
    with pytest.raises(BackendError, match="is no text"):
        secret_value(cast(KubeApi, secrets), "t", "auth_token")
