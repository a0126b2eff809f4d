"""Secrets are made once and never touched again; what is wrong with one that was given is told."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator

import pytest

from tests.cluster.capacity_support import FULLNAME, RELEASE, group, release
from tests.cluster.own_namespace import own_namespace
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import SECRETS, Object
from zhongjing.backends.kubernetes.secrets import KEEP, prepare_secrets, read_secret
from zhongjing.codes import pods as codes
from zhongjing.config.release import ReleaseConfig

pytestmark = pytest.mark.cluster

TOKEN, STORE = f"{FULLNAME}-ray-token", f"{FULLNAME}-s3"


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with own_namespace("secrets") as api:
        yield api


def given(config: ReleaseConfig, **storage: object) -> ReleaseConfig:
    """A release whose Secrets somebody else makes."""
    return config.model_copy(
        update={
            "ray": config.ray.model_copy(update={"token_managed": False}),
            "storage": config.storage.model_copy(update={"secret_managed": False, **storage}),
        }
    )


def put(api: KubeApi, name: str, **values: str) -> None:
    body: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    api.create(SECRETS, body | {"stringData": {key.replace("__", "."): text for key, text in values.items()}})


def told(api: KubeApi, config: ReleaseConfig) -> list[tuple[str, str]]:
    findings = prepare_secrets(api, config)
    assert all(finding.code is codes.SECRET_INCOMPLETE and finding.fatal for finding in findings)
    return [(finding.place, finding.message) for finding in findings]


def test_made_once_with_keys_that_fit_and_never_shown(api: KubeApi, caplog: pytest.LogCaptureFixture) -> None:
    config = release(api, group())
    with caplog.at_level(logging.DEBUG):
        assert prepare_secrets(api, config) == []
    first = {name: api.get(SECRETS, name) for name in (TOKEN, STORE)}
    token, store = read_secret(api, TOKEN), read_secret(api, STORE)
    assert token is not None
    assert store is not None
    assert len(bytes.fromhex(token["auth_token"])) == 32
    [identity] = json.loads(store["s3.json"])["identities"]
    [pair] = identity["credentials"]
    assert identity["actions"] == ["Admin", "Read", "Write", "List", "Tagging"]
    assert f"aws_access_key_id = {pair['accessKey']}\n" in store["credentials"]
    assert f"aws_secret_access_key = {pair['secretKey']}\n" in store["credentials"]
    for value in (token["auth_token"], pair["secretKey"]):
        assert value not in caplog.text
    for secret in first.values():
        assert secret is not None
        metadata = secret["metadata"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == RELEASE
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == f"{FULLNAME}-controller"
        assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
        assert metadata["annotations"][KEEP]
        assert "ownerReferences" not in metadata  # they outlive the release
    # Another start, another replica: nothing is written.
    assert prepare_secrets(api, config) == []
    assert {name: api.get(SECRETS, name) for name in (TOKEN, STORE)} == first


def test_two_releases_have_other_keys(api: KubeApi) -> None:
    prepare_secrets(api, release(api, group()))
    with own_namespace("secrets-other") as other:
        prepare_secrets(other, release(other, group()))
        for name in (TOKEN, STORE):
            assert read_secret(api, name) != read_secret(other, name)


def test_what_others_made_is_taken_as_it_is(api: KubeApi) -> None:
    put(api, TOKEN, auth_token="one-that-was-here\n")
    prepare_secrets(api, release(api, group()))
    assert read_secret(api, TOKEN) == {"auth_token": "one-that-was-here\n"}


def test_secrets_that_somebody_else_should_have_made(api: KubeApi) -> None:
    config = given(release(api, group()))
    assert told(api, config) == [
        (f"secret/{TOKEN}", "does not exist"),
        (f"secret/{STORE}", "does not exist"),
    ]
    [token, store] = prepare_secrets(api, config)
    assert token.remedy == f"`kubectl create secret generic {TOKEN} --from-file=auth_token=<file>`"
    assert "--from-file=credentials=<file> --from-file=s3.json=<file>" in store.remedy
    assert read_secret(api, TOKEN) is None


def test_keys_that_are_missing_or_unusable(api: KubeApi) -> None:
    config = given(release(api, group()), bundled=False, endpoint="https://s3.example.com")
    put(api, TOKEN, token="under another name")
    put(api, STORE, credentials="AKIA:secret")
    assert told(api, config) == [
        (f"secret/{TOKEN}", "has no key auth_token"),
        (f"secret/{STORE}", "its credentials has no profile [default] as the AWS tools read it"),
    ]
    api.delete(SECRETS, TOKEN)
    api.delete(SECRETS, STORE)
    put(api, TOKEN, auth_token="two words")
    put(api, STORE, credentials="[default]\naws_access_key_id = a%b\naws_secret_access_key = c\n")
    assert told(api, config) == [
        (f"secret/{TOKEN}", "its auth_token is not one word of printable characters")
    ]


def test_keys_of_the_bundled_store_that_do_not_fit(api: KubeApi) -> None:
    config = given(release(api, group()))
    put(api, TOKEN, auth_token="t")
    credentials = "[default]\naws_access_key_id = a\naws_secret_access_key = {}\n"
    identities = json.dumps({"identities": [{"credentials": [{"accessKey": "a", "secretKey": "s"}]}]})
    put(api, STORE, credentials=credentials.format("other"), s3__json=identities)
    assert told(api, config) == [
        (f"secret/{STORE}", "the keys in its credentials are not among those of its s3.json")
    ]
    text = base64.b64encode(credentials.format("s").encode()).decode()
    api.patch(SECRETS, STORE, {"data": {"credentials": text}})
    assert told(api, config) == []
    api.patch(SECRETS, STORE, {"data": {"s3.json": base64.b64encode(b"[]").decode()}})
    assert told(api, config) == [
        (f"secret/{STORE}", "its s3.json is no list of identities as SeaweedFS reads it")
    ]


def test_no_secret_where_pods_have_a_role(api: KubeApi) -> None:
    config = given(release(api, group()), bundled=False, secret=None)
    put(api, TOKEN, auth_token="t")
    assert told(api, config) == []
