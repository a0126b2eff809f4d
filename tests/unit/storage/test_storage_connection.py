from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.unit.storage.conftest import RudeServer
from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError, NotFoundError
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.connection import Connection, split_uri
from zhongjing.storage.credentials import Access, Keys, KeySource
from zhongjing.storage.objects import ObjectStore, open_store


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_CA_BUNDLE",
        "AWS_PROFILE",
    ):
        monkeypatch.delenv(name, raising=False)
    # Nothing of this machine's own configuration, and no instance role.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("uri", ["https://host/bucket", "/a/b", "s3://", "s3:/bucket/key", ""])
def test_only_s3_uris(uri: str) -> None:
    with pytest.raises(ConfigError):
        split_uri(uri)


def test_split_uri_keeps_the_key_as_it_is() -> None:
    assert split_uri("s3://bucket/a b/中文#1.json") == ("bucket", "a b/中文#1.json")
    assert split_uri("s3://bucket") == ("bucket", "")


def test_document_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://from-environment:1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    given = Connection.of(Storage(endpoint="https://from-document/", region="cn-north-1"))
    assert (given.endpoint, given.region) == ("https://from-document", "cn-north-1")
    default = Connection.of(Storage())
    assert (default.endpoint, default.region) == ("http://from-environment:1", "eu-north-1")


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "http://"])
def test_endpoint_must_be_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="not the URL"):
        Connection.of(Storage(endpoint=endpoint))


def test_endpoint_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(ConfigError) as caught:
        Connection.of(Storage(endpoint="http://user:hunter2@host"))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Connection.of(Storage(endpoint="user:hunter2@host"))
    assert "hunter2" not in str(caught.value)


def test_ca_bundle_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Connection.of(Storage(ca_bundle=str(tmp_path / "none.pem")))


def test_no_credentials_is_an_error_with_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Storage(endpoint="http://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        store.get("s3://bucket/key")


def test_credentials_of_a_profile_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        "[team]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = hunter2\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "team")
    provided = KeySource(Access.from_environment(os.environ), "store").provide()
    assert provided["access_key_id"] == "AKIDEXAMPLE"
    assert provided["secret_access_key"] == "hunter2"


def test_pickle_carries_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-token")
    store = open_store(Storage(endpoint="http://127.0.0.1:1", deadline_seconds=0.2))
    with pytest.raises(Exception, match="did not answer"):
        store.get("s3://bucket/key")  # the client, which has the secret, exists now
    pickled = pickle.dumps(store)
    assert b"hunter2" not in pickled
    assert b"token-token" not in pickled
    again = pickle.loads(pickled)
    assert isinstance(again, ObjectStore)
    assert again.storage == store.storage


def test_an_access_is_read_once_from_an_environment_and_hides_the_secret() -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://other:1",
        "AWS_ENDPOINT_URL_S3": "http://store:1",
        "AWS_DEFAULT_REGION": "cn-north-1",
        "AWS_REGION": "",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_SESSION_TOKEN": "token-token",
    }
    access = Access.from_environment(environment)
    assert (access.endpoint, access.region) == ("http://store:1", "cn-north-1")
    assert KeySource(access, "store").keys() == Keys("AKIDEXAMPLE", "hunter2", "token-token")
    connection = Connection.of(Storage(), access)
    for text in (repr(access), repr(connection), str(access.keys)):
        assert "hunter2" not in text
        assert "token-token" not in text
    assert Access.from_environment({**environment, "AWS_SECRET_ACCESS_KEY": ""}).keys is None


def test_the_first_file_that_exists_has_the_keys(tmp_path: Path) -> None:
    mounted, lent = tmp_path / "mounted", tmp_path / "lent"
    source = KeySource(Access(credentials_files=(str(mounted), str(lent))), "store")
    for number, file in enumerate((lent, mounted)):
        file.write_text(f"[default]\naws_access_key_id = {file.name}\naws_secret_access_key = s\n")
        assert source.keys().access_key == file.name
        assert source.version == number


def test_files_that_may_not_be_looked_at_have_no_keys() -> None:
    closed = Access(credentials_files=("/" + "x" * 300,))  # as a home folder that is another user's
    with pytest.raises(ConfigError, match="no credentials"):
        KeySource(closed, "store").keys()


def test_a_given_access_counts_whatever_the_environment_says(
    rude_server: RudeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("config", "credentials"):  # as the environment names them
        (tmp_path / name).write_text("no file that the AWS tools can read")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of another store")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another store")
    monkeypatch.setenv("AWS_PROFILE", "of another store")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    access = Access(endpoint=rude_server.endpoint, keys=Keys("key-of-the-test", "secret"))
    storage = Storage(deadline_seconds=3)
    open_store(storage, access).put("s3://rude-bucket/a", b"1")
    with pytest.raises(NotFoundError):  # this server knows no listings
        BucketAdmin(storage, access).bucket_exists("s3://rude-bucket")
    assert rude_server.objects == {"/rude-bucket/a": b"1"}
    assert len(rude_server.headers) == 2
    for headers in rude_server.headers:
        assert "Credential=key-of-the-test/" in headers["Authorization"]
        assert "X-Amz-Security-Token" not in headers
