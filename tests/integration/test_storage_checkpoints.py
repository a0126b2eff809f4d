"""Checkpoints: background upload by a real process, rotation, damage, dead attempts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from zhongjing.backends.local.processes import wait_until
from zhongjing.config.sources import Storage
from zhongjing.errors import NotFoundError, StorageError, StorageUnavailableError
from zhongjing.storage import checkpoint_download as download_module
from zhongjing.storage import checkpoint_upload as upload_module
from zhongjing.storage.checkpoint_records import Ranges, is_ranged
from zhongjing.storage.checkpoint_upload import NICENESS
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectInfo, ObjectStore, open_store

pytestmark = pytest.mark.integration


def writing(text: str, size: int = 1000) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "engine").mkdir()
        (folder / "engine" / "rank-0-weights.bin").write_bytes(os.urandom(size))
        (folder / "trainer.json").write_text(text)

    return write


def uploader(checkpoints: CheckpointStore) -> psutil.Process:
    upload = checkpoints._upload
    assert upload is not None
    assert isinstance(upload.process, subprocess.Popen)
    return psutil.Process(upload.process.pid)


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    # It stays as a zombie until its parent, this process, asks for it.
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_save_rotate_and_resume(store: ObjectStore, layout: StageLayout, tmp_path: Path) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=1)
    assert checkpoints.restore(tmp_path / "part") is None
    assert checkpoints.latest() is None
    for step in (10, 20, 30, 40):
        checkpoints.save(step, writing(f"step {step}"), best=step == 20)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30, 40], "the last two and the best"
    assert list((tmp_path / "spool").iterdir()) == []
    manifest = checkpoints.manifest(20)
    assert (manifest.step, manifest.attempt, manifest.best) == (20, 1, True)
    assert [file.name for file in manifest.files] == ["engine/rank-0-weights.bin", "trainer.json"]

    second = CheckpointStore(open_store(store.storage), layout, tmp_path / "spool", keep=2, attempt=2)
    assert second.restore(tmp_path / "restored") == 40
    assert (tmp_path / "restored" / "trainer.json").read_text() == "step 40"
    second.fetch(20, tmp_path / "best")
    assert (tmp_path / "best" / "trainer.json").read_text() == "step 20"
    # A new best frees the old one.
    second.save(50, writing("step 50"), best=True)
    second.wait()
    assert second.steps() == [40, 50]
    with pytest.raises(NotFoundError):
        second.fetch(20, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    assert second.restore(tmp_path / "into") == 50
    assert (tmp_path / "into" / "trainer.json").read_text() == "step 50"


def test_upload_is_niced_and_does_not_hold_the_training(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2)
    started = time.monotonic()
    checkpoints.save(1, writing("1", size=64 << 20))
    assert time.monotonic() - started < 2.0
    process = uploader(checkpoints)
    base = psutil.Process().nice()
    while process.is_running() and process.nice() == base:
        time.sleep(0.01)
    assert process.nice() == min(19, base + NICENESS)
    with process.oneshot():
        assert not any("SECRET" in argument.upper() for argument in process.cmdline())
    assert checkpoints.latest() is None, "the manifest comes last"
    checkpoints.wait()
    assert checkpoints.latest() == 1


def test_uploader_killed_half_way(
    store: ObjectStore, layout: StageLayout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=1)
    first.save(10, writing("step 10"))
    first.wait()
    # A part of the checkpoint is in the store when the uploader is killed, and no manifest.
    store.put(f"{layout.checkpoint(20)}/aaa", b"a file that was uploaded before the end")
    for step in (20, 30, 40):
        first.save(step, writing(f"step {step}", size=64 << 20))
        kill(uploader(first))
        assert (first.completed, first.steps()) == (10, [10])
    # The first two were borne: each time a newer snapshot took the place of the one that was lost.
    assert caplog.text.count("was killed by signal 9") == 2
    with pytest.raises(StorageError, match=r"step 40 was killed by signal 9") as caught:
        first.save(50, writing("step 50"))
    assert "out-of-memory" in (caught.value.remedy or "")
    assert first.latest() == 10
    first.wait()  # the failure was told; nothing is pending
    (tmp_path / "spool" / "step-00000020-left-over").mkdir()

    second = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=2)
    assert second.restore(tmp_path / "part") == second.completed == 10
    assert list(store.list(layout.checkpoint(20))) == []
    assert list((tmp_path / "spool").iterdir()) == []
    second.save(20, writing("step 20 again", size=64 << 20))
    kill(uploader(second))
    second.wait()  # no newer snapshot comes, so this one is uploaded once more
    assert second.steps() == [10, 20]


def test_straggler_of_a_dead_attempt_is_waited_for(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    first = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=1)
    first.save(10, writing("step 10", size=32 << 20))
    # The trainer is gone at once; its uploader has hardly started.
    second = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=2)
    assert second.restore(tmp_path / "part") == 10
    first.wait()


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "manifest"])
def test_damaged_checkpoint_falls_back(
    harm: str, store: ObjectStore, layout: StageLayout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = CheckpointStore(store, layout, tmp_path / "spool", keep=3, attempt=1)
    for step in (10, 20):
        first.save(step, writing(f"step {step}"), best=step == 20)
    first.wait()
    uri = f"{layout.checkpoint(20)}/engine/rank-0-weights.bin"
    content = store.get(uri)
    if harm == "flip":
        store.put(uri, content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif harm == "cut":
        store.put(uri, content[:-1])
    elif harm == "missing":
        store.delete(uri)
    else:
        store.put(f"{layout.checkpoint(20)}/manifest.json", b'{"version": 1, "step"')

    second = CheckpointStore(store, layout, tmp_path / "spool", keep=3, attempt=2)
    assert second.restore(tmp_path / "restored") == 10
    assert (tmp_path / "restored" / "trainer.json").read_text() == "step 10"
    assert layout.checkpoint(20) in caplog.text
    # Step 20 is reached and kept again, by the new attempt.
    second.save(20, writing("step 20 of attempt 2"))
    second.wait()
    assert second.manifest(20).attempt == 2
    second.fetch(20, tmp_path / "again")
    assert (tmp_path / "again" / "trainer.json").read_text() == "step 20 of attempt 2"


def test_download_of_a_damaged_step_is_an_error(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2)
    checkpoints.save(10, writing("step 10"))
    checkpoints.wait()
    store.put(f"{layout.checkpoint(10)}/trainer.json", b"step 11")
    with pytest.raises(StorageError, match="damaged"):
        checkpoints.fetch(10, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_full_disk_is_named_and_leaves_nothing(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2)

    def write(folder: Path) -> None:
        (folder / "small.bin").write_bytes(b"fits")
        (folder / "large.bin").symlink_to("/dev/full")
        with (folder / "large.bin").open("wb") as file:
            file.write(bytes(1 << 20))

    with pytest.raises(StorageError, match="disk is full") as caught:
        checkpoints.save(10, write)
    assert str(tmp_path / "spool") in str(caught.value)
    assert list((tmp_path / "spool").iterdir()) == []
    checkpoints.save(11, writing("there is space again"))
    checkpoints.wait()
    assert checkpoints.steps() == [11]


def test_error_of_write_is_passed_on(store: ObjectStore, layout: StageLayout, tmp_path: Path) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2)

    def write(folder: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoints.save(10, write)
    assert list((tmp_path / "spool").iterdir()) == []


def test_outages_are_borne_then_told(
    store: ObjectStore, layout: StageLayout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = open_store(Storage(uri=store.storage.uri, endpoint="http://127.0.0.1:1", deadline_seconds=0.2))
    checkpoints = CheckpointStore(gone, layout, tmp_path / "spool", keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, writing(f"step {step}"))
    assert caplog.text.count("was not stored") == 2
    with pytest.raises(StorageUnavailableError, match="did not answer"):
        checkpoints.save(40, writing("step 40"))

    # The last one is tried once more: here the store is back by then.
    checkpoints.save(50, writing("step 50"))
    assert checkpoints._upload is not None
    process = checkpoints._upload.process
    assert process is not None
    assert wait_until(lambda: process.poll() is not None, 30)
    job = next((tmp_path / "spool").glob("*/job.json"))
    job.write_text(job.read_text().replace("http://127.0.0.1:1", store.connection.endpoint or ""))
    checkpoints.wait()
    assert CheckpointStore(store, layout, tmp_path / "spool", keep=2).steps() == [50]


def test_lost_uploader_credentials_surface(
    store: ObjectStore, layout: StageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = CheckpointStore(store, layout, tmp_path / "spool", keep=2)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    checkpoints.save(10, writing("step 10", size=9 << 20))
    monkeypatch.undo()
    with pytest.raises(StorageError, match="does not accept these credentials"):
        checkpoints.wait()


class Table:
    """Where ranks that are threads of a test meet."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._results: list[Any] = [None] * ranks

    def seat(self, rank: int) -> Callable[[Callable[[], Any]], list[Any]]:
        """The ``meet`` of a rank."""

        def meet(work: Callable[[], Any]) -> list[Any]:
            self._results[rank] = work()
            self._barrier.wait()
            results = json.loads(json.dumps(self._results))
            self._barrier.wait()
            return list(results)

        return meet


def ranks_of(
    store: ObjectStore, layout: StageLayout, spool: Path, attempt: int = 1, keep: int = 1
) -> list[CheckpointStore]:
    table = Table(2)
    return [
        CheckpointStore(store, layout, spool, keep, attempt, rank=rank, ranks=2, meet=table.seat(rank))
        for rank in range(2)
    ]


def together(act: Callable[[CheckpointStore], object], ranks: list[CheckpointStore]) -> list[object]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(act, ranks))


def part(step: int, size: int = 0) -> Callable[[CheckpointStore], None]:
    def save(checkpoints: CheckpointStore) -> None:
        def write(folder: Path) -> None:
            (folder / f"rank-{checkpoints.rank}-weights.bin").write_bytes(b"w%d" % step)
            (folder / f"rank-{checkpoints.rank}-moments.bin").write_bytes(b"m%d" % step + bytes(size))

        checkpoints.save(step, write, best=step == 10)

    return save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_of_two_ranks_is_whole_when_both_parts_are_there(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    ranks = ranks_of(store, layout, tmp_path / "spool")
    for step in (10, 20, 30):
        together(part(step), ranks)
        together(CheckpointStore.wait, ranks)
        # While the best is also a latest one, a run can go on from it; then it loses its moments at once.
        assert ranks[0].manifest(10).weights_only == (step > 10)
    # Of the best only the weights are left; of the others the last.
    assert ranks[0].steps() == [10, 30]
    assert ranks[0].manifest(10).weights_only
    ranks[0].fetch(10, tmp_path / "best")
    assert names(tmp_path / "best") == ["rank-0-weights.bin", "rank-1-weights.bin"]
    stored = {Path(info.uri).name for info in store.list(layout.checkpoint(30))}
    assert stored == {
        "manifest.json",
        *(f"rank-{rank}-{kind}.bin" for rank in (0, 1) for kind in ("weights", "moments")),
    }, "no word of a rank is left"
    later = CheckpointStore(store, layout, tmp_path / "spool", 1, 2)
    store.delete(next(info.uri for info in store.list(layout.checkpoint(30)) if "rank-1-m" in info.uri))
    assert later.restore(tmp_path / "part") is None, "the best is no place to go on from"
    # It begins again: what is left of a later step must not pass for its best, nor for one of its last.
    assert later.steps() == []
    for step in (2, 4):
        later.save(step, writing(f"step {step}"), best=step == 2)
        later.wait()
        assert later.latest() == step
    assert later.steps() == [2, 4]


def test_a_part_that_was_lost_leaves_no_checkpoint_and_the_next_is_one(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    ranks = ranks_of(store, layout, tmp_path / "spool")
    together(part(10, size=64 << 20), ranks)
    upload = ranks[1]._upload
    assert upload is not None
    assert isinstance(upload.process, subprocess.Popen)
    upload.process.kill()
    together(part(20), ranks)
    together(CheckpointStore.wait, ranks)
    assert ranks[0].steps() == [20]
    assert [checkpoints.completed for checkpoints in ranks] == [20, 20]


def test_a_part_that_was_lost_is_stored_again_where_it_is_waited_for(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    ranks = ranks_of(store, layout, tmp_path / "spool")
    together(part(10, size=64 << 20), ranks)
    upload = ranks[1]._upload
    assert upload is not None
    assert isinstance(upload.process, subprocess.Popen)
    upload.process.kill()
    together(CheckpointStore.wait, ranks)
    assert ranks[0].steps() == [10]
    ranks[0].fetch(10, tmp_path / "restored")
    assert len(names(tmp_path / "restored")) == 4


def test_a_full_disk_of_one_rank_is_told_to_all(
    store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    def save(checkpoints: CheckpointStore) -> str:
        def write(folder: Path) -> None:
            if checkpoints.rank == 1:
                raise OSError(errno.ENOSPC, "full")
            (folder / "a").write_bytes(b"a")

        with pytest.raises(StorageError) as error:
            checkpoints.save(10, write)
        return error.value.code.name

    ranks = ranks_of(store, layout, tmp_path / "spool")
    assert together(save, ranks) == ["DiskFull", "DiskFull"]
    together(part(20), ranks)
    together(CheckpointStore.wait, ranks)
    assert ranks[0].steps() == [20]


class CountingStore(ObjectStore):
    """Counts the bytes that are read of weights and moments."""

    read = 0

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        self.read += length * is_ranged(uri)
        return super().get_range(uri, start, length)

    def get_file(self, uri: str, path: Path, told: Callable[[int], None] | None = None) -> ObjectInfo:
        info = super().get_file(uri, path, told)
        self.read += info.size * is_ranged(uri)
        return info


BLOCK = 1 << 16
WEIGHTS, MOMENTS = 5 * BLOCK + 100, 10 * BLOCK + 200  # of each of the two ranks that write


@pytest.fixture
def stored(store: ObjectStore, layout: StageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what two ranks have stored in steps 10 and 20, in small blocks."""
    monkeypatch.setattr(download_module, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(upload_module, "BLOCK_BYTES", BLOCK)
    ranks = ranks_of(store, layout, tmp_path / "spool", keep=2)
    files = tmp_path / "files"
    files.mkdir()
    for rank in range(2):
        (files / f"rank-{rank}-weights.bin").write_bytes(os.urandom(WEIGHTS))
        (files / f"rank-{rank}-moments.bin").write_bytes(os.urandom(MOMENTS))

    def save(step: int, checkpoints: CheckpointStore) -> None:
        def write(folder: Path) -> None:
            (folder / f"rank-{checkpoints.rank}.json").write_text("{}")
            for path in files.glob(f"rank-{checkpoints.rank}-*"):
                shutil.copy(path, folder)

        checkpoints.save(step, write)
        checkpoints.wait()

    for step in (10, 20):
        together(partial(save, step), ranks)
    return files


def wanting(rank: int, ranks: int) -> Callable[[Path], Ranges]:
    """What one of ``ranks`` needs: its share of everything, as ZeRO-2 cuts it."""

    def wanted(folder: Path) -> Ranges:
        assert {"rank-0.json", "rank-1.json"} <= set(names(folder)), "they say where everything is"
        found: Ranges = {}
        indexes = {path.stem.split("-")[1]: path.parent for path in folder.rglob("rank-*.json")}
        for kind, size in (("weights", WEIGHTS), ("moments", MOMENTS)):
            first, last = (2 * size * at // ranks for at in (rank, rank + 1))
            for writer in range(2):
                start, end = max(first - writer * size, 0), min(last - writer * size, size)
                if start < end:
                    place = indexes[str(writer)].relative_to(folder) / f"rank-{writer}-{kind}.bin"
                    found[place.as_posix()] = [(start, end)]
        return found

    return wanted


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_rank_reads_its_own_part_whoever_wrote_it(
    world: int, stored: Path, store: ObjectStore, layout: StageLayout, tmp_path: Path
) -> None:
    """Before, each rank that was alone on its node read everything, and rank 0 checked everything first."""
    everything = 2 * (WEIGHTS + MOMENTS)
    table = Table(world)
    ranks = [
        CheckpointStore(
            CountingStore(store.storage),
            layout,
            tmp_path / "s",
            2,
            2,
            rank=rank,
            ranks=world,
            meet=table.seat(rank),
        )
        for rank in range(world)
    ]

    def restore(checkpoints: CheckpointStore) -> int:
        folder, wanted = tmp_path / f"part-{checkpoints.rank}", wanting(checkpoints.rank, world)
        assert checkpoints.restore(folder, wanted) == 20
        for place, parts in wanted(folder).items():
            got, true = (folder / place).read_bytes(), (stored / Path(place).name).read_bytes()
            assert len(got) == len(true)
            assert all(got[start:end] == true[start:end] for start, end in parts)
        assert isinstance(checkpoints.store, CountingStore)
        return checkpoints.store.read

    read = [int(str(count)) for count in together(restore, ranks)]
    if world < 3:
        assert read == [everything // world] * world
    else:
        # No border of the three is one of the two, so a block on each side of a border is read by both.
        assert all(everything // 3 <= of_rank <= everything // 3 + 8 * BLOCK for of_rank in read)


def test_damage_that_one_rank_meets_takes_all_ranks_back(
    stored: Path, store: ObjectStore, layout: StageLayout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = next(info.uri for info in store.list(layout.checkpoint(20)) if "rank-1-moments" in info.uri)
    content = bytearray(store.get(uri))
    content[-1] ^= 1
    store.put(uri, bytes(content))
    ranks = ranks_of(store, layout, tmp_path / "spool", attempt=2)

    def restore(checkpoints: CheckpointStore) -> int | None:
        return checkpoints.restore(tmp_path / f"part-{checkpoints.rank}", wanting(checkpoints.rank, 2))

    assert together(restore, ranks) == [10, 10]
    assert ranks[0].steps() == [10], "nobody meets it again"
    assert "rank-1-moments.bin is damaged" in caplog.text
