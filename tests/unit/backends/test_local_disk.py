"""A full disk of a workdir is told as such, at once before a run and after a while during one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from zhongjing.backends.local.machine import PATIENCE_SECONDS, DiskWatch, check_disk
from zhongjing.errors import StorageError
from zhongjing.storage.embedded import MIN_FREE_BYTES


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Disk:
    def __init__(self) -> None:
        self.free = 10 * MIN_FREE_BYTES
        self.asked: list[Path] = []

    def usage(self, folder: Path) -> Usage:
        self.asked.append(folder)
        return Usage(2**40, 2**40 - self.free, self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(shutil, "disk_usage", found.usage)
    return found


def test_a_full_disk_is_refused_with_numbers(disk: Disk, tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet")
    assert disk.asked == [tmp_path]
    disk.free = 60 * 2**20
    with pytest.raises(StorageError, match=r"60\.0Mi are free.*below 256\.0Mi") as caught:
        check_disk(tmp_path / "not" / "yet")
    assert caught.value.code.name == "DiskFull"
    assert caught.value.where == str(tmp_path / "not" / "yet")


def test_a_run_is_given_time_until_somebody_makes_room(disk: Disk, tmp_path: Path) -> None:
    clock = [0.0]
    watch = DiskWatch(tmp_path, now=lambda: clock[0])
    disk.free = 0
    watch.check()
    clock[0] = PATIENCE_SECONDS - 1
    watch.check()
    disk.free = MIN_FREE_BYTES
    watch.check()
    disk.free = 0
    clock[0] += 2
    watch.check()
    clock[0] += PATIENCE_SECONDS
    with pytest.raises(StorageError):
        watch.check()


def test_a_file_system_that_tells_nothing_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(folder: Path) -> Usage:
        raise OSError(f"{folder}: not now")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    check_disk(tmp_path)
