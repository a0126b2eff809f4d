from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from obstore.exceptions import GenericError

from zhongjing.codes import Code
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import (
    ConflictError,
    CredentialsError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    TransientError,
)
from zhongjing.storage.connection import Connection
from zhongjing.storage.credentials import SECRET_VARIABLE, Access
from zhongjing.storage.failures import translate
from zhongjing.storage.objects import ObjectStore, open_store

if TYPE_CHECKING:
    from tests.unit.storage.conftest import RudeServer

URI = "s3://rude-bucket/a/b.json"


def test_503_is_borne(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    rude_server.objects["/rude-bucket/a/b.json"] = b"content"
    rude_server.statuses.extend([503] * 7)  # more than the client itself bears
    assert rude_store.get(URI) == b"content"
    assert not rude_server.statuses


@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_other_passing_answers_are_borne(
    status: int, rude_server: RudeServer, rude_store: ObjectStore
) -> None:
    rude_server.statuses.extend([status] * 2)
    rude_store.put(URI, b"content")
    assert rude_server.objects["/rude-bucket/a/b.json"] == b"content"


def test_outage_ends_at_the_deadline(rude_server: RudeServer) -> None:
    rude_server.statuses.extend([503] * 1000)
    store = open_store(Storage(uri="s3://rude-bucket", deadline_seconds=1))
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError) as caught:
        store.get(URI)
    assert 0.4 < time.monotonic() - started < 2.5
    assert isinstance(caught.value, TransientError)
    assert URI in str(caught.value)
    assert "kept failing for 1 seconds (HTTP 503" in str(caught.value)
    assert caught.value.code is codes.STORAGE_FAILING
    assert "disk" in caught.value.remedy


def test_nobody_listens(rude_server: RudeServer) -> None:
    store = open_store(Storage(endpoint="http://127.0.0.1:1", deadline_seconds=0.5))
    with pytest.raises(StorageUnavailableError, match=r"http://127\.0\.0\.1:1 did not answer") as caught:
        store.head(URI)
    assert caught.value.code is codes.STORAGE_UNREACHABLE


@pytest.mark.parametrize(
    ("status", "s3_code", "code"),
    [
        (403, "InvalidAccessKeyId", codes.ACCESS_DENIED),
        (403, "SignatureDoesNotMatch", codes.ACCESS_DENIED),
        (403, "AccessDenied", codes.ACCESS_DENIED),
        (400, "ExpiredToken", codes.ACCESS_DENIED),
        (403, "RequestTimeTooSkewed", codes.CLOCK_SKEWED),
        (404, "NoSuchBucket", codes.BUCKET_NOT_FOUND),
        (404, "NoSuchKey", codes.OBJECT_NOT_FOUND),
        (301, "PermanentRedirect", codes.WRONG_REGION),
        (412, "PreconditionFailed", codes.CONFLICT),
        (400, "InvalidArgument", codes.STORAGE_REFUSED),
    ],
)
def test_each_refusal_has_its_code(status: int, s3_code: str, code: Code) -> None:
    """In the words of the client that carries the bytes."""
    answer = f"<Error><Code>{s3_code}</Code><Message>No.</Message><StringToSign>secret</StringToSign></Error>"
    words = f"Generic S3 error: Error - Server returned non-2xx status code: {status} X: {answer}"
    connection = Connection.of(Storage(endpoint="http://store.example:9000"))
    error = translate(GenericError(words), "s3://bucket/key", connection)
    assert error.code is code
    assert "secret" not in str(error)
    if code not in (codes.OBJECT_NOT_FOUND, codes.CONFLICT):
        assert "http://store.example:9000" in error.message


def test_bad_request_is_not_retried(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    rude_server.statuses.extend([400])
    with pytest.raises(StorageError, match="HTTP 400"):
        rude_store.get(URI)
    assert len(rude_server.requests) == 1


def test_refusal_is_not_retried_and_names_a_remedy(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    rude_server.statuses.extend([403])
    with pytest.raises(StorageError, match="refused access") as caught:
        rude_store.get(URI)
    assert caught.value.remedy is not None
    assert not isinstance(caught.value, TransientError)
    assert len(rude_server.requests) == 1


def test_body_cut_short_is_never_returned(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    content = b"0123456789" * 1000
    rude_server.objects["/rude-bucket/a/b.json"] = content
    rude_server.cut_bodies = 4
    assert rude_store.get(URI) == content
    assert rude_server.cut_bodies == 0


def test_body_cut_short_for_ever_is_an_outage(rude_server: RudeServer, tmp_path: Path) -> None:
    rude_server.objects["/rude-bucket/a/b.json"] = b"0123456789" * 1000
    rude_server.cut_bodies = 10_000
    store = open_store(Storage(uri="s3://rude-bucket", deadline_seconds=1))
    with pytest.raises(StorageUnavailableError):
        store.get_file(URI, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_lost_answer_to_ones_own_write_is_recognised(
    rude_server: RudeServer, rude_store: ObjectStore
) -> None:
    rude_server.lost_answers = 1
    rude_store.put_once(URI, b"by attempt 1")
    conditional = [request for request in rude_server.requests if request[0] == "PUT"]
    assert len(conditional) >= 2, "the write was repeated"
    assert {request[2] for request in conditional} == {"*"}
    with pytest.raises(ConflictError):
        rude_store.put_once(URI, b"by attempt 2")
    assert rude_server.objects["/rude-bucket/a/b.json"] == b"by attempt 1"


def test_server_that_ignores_conditions_is_detected(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    rude_store.require_conditional_writes("s3://rude-bucket/prefix")
    rude_server.honours_conditions = False
    with pytest.raises(StorageError, match="ignores conditional writes"):
        rude_store.require_conditional_writes("s3://rude-bucket/prefix")
    assert rude_server.objects == {}, "the probe removes its object"


def test_messages_have_no_secret_and_no_debug_output(
    rude_server: RudeServer, rude_store: ObjectStore
) -> None:
    rude_server.statuses.extend([403])
    with pytest.raises(StorageError) as caught:
        rude_store.get(URI)
    texts = f"{caught.value} {caught.value.__cause__!r}"
    assert "secret-of-the-test" not in texts
    assert "RetryError" not in texts


def test_unusable_key_is_said_so(rude_store: ObjectStore) -> None:
    with pytest.raises(Exception, match="cannot be used"):
        rude_store.get("s3://rude-bucket/a//b")


def test_missing_object(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    with pytest.raises(NotFoundError):
        rude_store.get(URI)


def test_a_store_that_does_not_wait_fails_at_once(rude_server: RudeServer) -> None:
    """For a thread that others wait for: whoever asked decides when the store is asked again."""
    rude_server.statuses.extend([503] * 1000)
    store = open_store(Storage(uri="s3://rude-bucket", deadline_seconds=60), waits=False)
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError, match=r"fails \(HTTP 503") as caught:
        store.get(URI)
    assert time.monotonic() - started < 2
    assert caught.value.code is codes.STORAGE_FAILING
    assert not pickle.loads(pickle.dumps(store)).connection.waits


@pytest.mark.parametrize("s3_code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_the_remedy_of_refused_keys_names_the_secret_on_a_cluster(s3_code: str) -> None:
    storage = Storage(endpoint="http://store.example:9000")
    words = f"Generic S3 error: Error - Server returned non-2xx status code: 403 X: <Code>{s3_code}</Code>"
    here = translate(GenericError(words), URI, Connection.of(storage, Access()))
    connection = Connection.of(storage, Access.from_environment({SECRET_VARIABLE: "zj-zhongjing-s3"}))
    there = translate(GenericError(words), URI, connection)
    assert isinstance(there, CredentialsError)
    assert "AWS_" in here.remedy
    assert "the Secret zj-zhongjing-s3" in there.remedy
    assert "AWS_" not in there.remedy
    refused = translate(GenericError(words.replace(s3_code, "AccessDenied")), URI, connection)
    assert "the Secret zj-zhongjing-s3" in refused.remedy
    assert not isinstance(refused, CredentialsError), "other folders may be open to these keys"
