"""Keys that are replaced while a store is in use, on a real server: no restart, no lost request."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.command_line import kept_environment
from zhongjing.backends.local.processes import wait_until
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import StorageError
from zhongjing.storage import failures
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.client import PART_BYTES
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import ObjectStore, open_store

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BUCKET = "s3://rotation"


class Rotation:
    """A server of its own, and the file with its keys, mounted as a kubelet mounts a Secret."""

    def __init__(self, server: EmbeddedS3, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.file = folder / "credentials"
        self.file.symlink_to("..data/credentials")
        self.keys = self._new()
        self.secrets = [self.keys[1]]

    @staticmethod
    def _new() -> tuple[str, str]:
        return f"ZJ{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30)

    def serve(self) -> None:
        """Has the server take the keys, and no others."""
        path = self.server.folder / "s3.json"
        content = json.loads(path.read_text())
        pair = {"accessKey": self.keys[0], "secretKey": self.keys[1]}
        content["identities"][0]["credentials"] = [pair]
        path.write_text(json.dumps(content))
        os.kill(self.server.pid, signal.SIGHUP)  # SeaweedFS reads its identities again, a moment later
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.keys[0],
            aws_secret_access_key=self.keys[1],
            config=Config(retries={"total_max_attempts": 1}),
        )

        def takes_them() -> bool:
            try:
                client.list_buckets()
            except ClientError:
                return False
            return True

        assert wait_until(takes_them, 20)

    def mount(self) -> None:
        """Puts the keys into the file: a new folder behind a link."""
        data = self.folder / f"..{time.monotonic_ns()}"
        data.mkdir()
        (data / "credentials").write_text(
            f"[default]\naws_access_key_id = {self.keys[0]}\naws_secret_access_key = {self.keys[1]}\n"
        )
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")

    def renew(self) -> None:
        """Other keys, known to nobody yet."""
        self.keys = self._new()
        self.secrets.append(self.keys[1])


@pytest.fixture(scope="module")
def rotation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotation]:
    with EmbeddedS3(tmp_path_factory.mktemp("s3")) as server, kept_environment():
        made = Rotation(server, tmp_path_factory.mktemp("secret"))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        known = server.environment()
        del known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"]
        os.environ.update(known, AWS_SHARED_CREDENTIALS_FILE=str(made.file), AWS_EC2_METADATA_DISABLED="true")
        made.mount()
        made.serve()
        BucketAdmin(Storage(uri=BUCKET)).ensure_bucket(BUCKET)
        yield made


@pytest.fixture
def used(rotation: Rotation) -> ObjectStore:
    """A store whose clients exist and have keys that the server takes."""
    store = open_store(Storage(uri=BUCKET, deadline_seconds=20))
    store.put(f"{BUCKET}/object", b"1")
    return store


def test_replaced_keys_are_taken_up_at_the_next_request(
    rotation: Rotation, used: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    large = tmp_path / "large"
    large.write_bytes(bytes(2 * PART_BYTES))
    used.put_file(f"{BUCKET}/large", large)  # by the patient client
    admin = BucketAdmin(Storage(uri=BUCKET, deadline_seconds=20))
    assert admin.bucket_exists(BUCKET)
    for act in (
        lambda: used.get(f"{BUCKET}/object"),
        lambda: used.exists(f"{BUCKET}/object"),
        lambda: list(used.list(BUCKET)),
        lambda: used.put_file(f"{BUCKET}/large", large),
        lambda: admin.bucket_exists(BUCKET),
    ):
        rotation.renew()
        rotation.mount()
        rotation.serve()
        assert act()
    assert not [secret for secret in rotation.secrets if secret in caplog.text]


@pytest.mark.parametrize("asked", ["get", "head", "admin"])
def test_a_refusal_is_borne_until_the_new_keys_are_here(
    asked: str, rotation: Rotation, used: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    admin = BucketAdmin(Storage(uri=BUCKET, deadline_seconds=20))
    assert admin.bucket_exists(BUCKET)
    rotation.renew()
    rotation.serve()
    arrived = threading.Event()

    def arrive() -> None:
        # Once a request has been refused, as its log tells.
        while "are refused" not in caplog.text:
            time.sleep(0.01)
        arrived.set()
        rotation.mount()

    kubelet = threading.Thread(target=arrive, daemon=True)
    kubelet.start()
    if asked == "get":
        assert used.get(f"{BUCKET}/object") == b"1"
    elif asked == "head":
        assert used.exists(f"{BUCKET}/object")
    else:
        assert admin.bucket_exists(BUCKET)
    assert arrived.is_set()
    kubelet.join()
    assert "is back after" in caplog.text
    assert not [secret for secret in rotation.secrets if secret in caplog.text]


def test_keys_that_the_server_learns_of_later_are_borne_too(
    rotation: Rotation, used: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    rotation.renew()
    rotation.mount()

    def learn() -> None:
        while "are refused" not in caplog.text:
            time.sleep(0.01)
        rotation.serve()

    administrator = threading.Thread(target=learn, daemon=True)
    administrator.start()
    assert used.exists(f"{BUCKET}/object")
    administrator.join()
    assert "is back after" in caplog.text


def test_keys_that_never_come_are_an_error_in_the_end(
    rotation: Rotation,
    used: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(failures, "ROTATION_SECONDS", 1.0)
    short = open_store(Storage(uri=BUCKET, deadline_seconds=1))
    short.put(f"{BUCKET}/object", b"1")
    rotation.renew()
    rotation.serve()
    with pytest.raises(StorageError) as caught:
        short.exists(f"{BUCKET}/object")
    assert caught.value.code is codes.ACCESS_DENIED
    assert "trying again" in caplog.text, "it was borne for a while"
    rotation.mount()
    assert short.exists(f"{BUCKET}/object")


def test_keys_that_were_never_good_are_refused_at_once(rotation: Rotation, tmp_path: Path) -> None:
    good = rotation.keys
    rotation.keys = ("ZJWRONG", "wrong")
    rotation.mount()
    store = open_store(Storage(uri=BUCKET, deadline_seconds=60))
    admin = BucketAdmin(Storage(uri=BUCKET, deadline_seconds=60))
    started = time.monotonic()
    for act in (lambda: store.get(f"{BUCKET}/object"), lambda: admin.bucket_exists(BUCKET)):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.code is codes.ACCESS_DENIED
    assert time.monotonic() - started < 10
    rotation.keys = good
    rotation.mount()
    assert store.exists(f"{BUCKET}/object")  # the same store, with the file corrected


def test_a_file_that_is_being_written_changes_nothing(rotation: Rotation, used: ObjectStore) -> None:
    whole = rotation.file.read_text()
    for part in (whole.splitlines()[0], "\n".join(whole.splitlines()[:2]), "[default", ""):
        rotation.file.write_text(part)
        assert used.exists(f"{BUCKET}/object")
    rotation.file.write_text(whole)
    assert used.exists(f"{BUCKET}/object")
