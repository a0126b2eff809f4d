"""The scratch folder of a node."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zhongjing.errors import ConfigError
from zhongjing.train.job.scratch import (
    SIZE_VARIABLE,
    VARIABLE,
    FolderLock,
    keep_downloads_in_scratch,
    parse_size,
    remove_earlier,
    room,
    scratch_folder,
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_earlier_attempts_of_the_same_stage_are_removed_and_no_later_one(root: Path) -> None:
    kept = ["x-1-sft-a10", "x-1-sft-a11", "x-1-sft-awake", "models"]
    for name in ["x-1-sft-a1", "x-1-sft-a9", *kept]:
        (scratch_folder(name) / "file").touch()
    remove_earlier("x-1-sft-a10")
    assert names(root) == sorted(kept)


CLAIMING = """
import sys
from pathlib import Path
from zhongjing.train.job.scratch import FolderLock
claims = [FolderLock(Path(name)) for name in sys.argv[1:]]
print("claimed", flush=True)
sys.stdin.read()
"""


def test_what_others_left_is_removed_when_their_processes_are_gone(root: Path) -> None:
    others = ["y-2-rm-a1", "local-y-rm-k-checkpoints"]
    command = [sys.executable, "-c", CLAIMING, *(str(root / name) for name in others)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        remove_earlier("x-1-sft-a1")
        assert names(root) == sorted(others)
        other.kill()
    remove_earlier("x-1-sft-a1")
    assert names(root) == []


def test_a_snapshot_on_its_way_to_the_store_is_kept(root: Path) -> None:
    home = scratch_folder("local-y-rm-k-checkpoints") / "step-1"
    home.mkdir()
    with (home / "job.json").open("w") as job:
        fcntl.flock(job, fcntl.LOCK_EX)  # as its uploader does, which outlives the training
        remove_earlier("x-1-sft-a1")
        assert home.is_dir()
    remove_earlier("x-1-sft-a1")
    assert names(root) == []


def test_a_claim_that_is_given_back_protects_nothing(root: Path) -> None:
    lock = FolderLock(root / "y-2-rm-a1")
    remove_earlier("x-1-sft-a1")
    assert names(root) == ["y-2-rm-a1"]
    lock.release()
    remove_earlier("x-1-sft-a1")
    assert names(root) == []


DOWNLOADING = """
from zhongjing.config.stages import Stage
from zhongjing.train.job import entry
try: entry.main(Stage.SFT, ["--help"])
except SystemExit: pass
from huggingface_hub import constants
print(constants.HF_HUB_CACHE)
"""


def test_downloads_go_to_scratch(root: Path) -> None:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOADING],
        env={**known, VARIABLE: str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"{root}/huggingface/hub"


def test_a_cache_that_was_named_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    keep_downloads_in_scratch()
    assert os.environ["HF_HOME"] == "/elsewhere"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("400Gi", 400 * 2**30),
        ("1.5T", 1_500_000_000_000),
        ("100k", 100_000),
        ("4096", 4096),
        ("8Mi", 8 << 20),
    ],
)
def test_sizes_as_kubernetes_writes_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "-1Gi", "4 Gi", "4GiB", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_a_limit_that_the_disk_does_not_show_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scratch_folder("x-1-sft-a1")
    whole = room(folder)
    (folder / "sparse").touch()
    os.truncate(folder / "sparse", 1 << 40)  # takes no room
    monkeypatch.setenv(SIZE_VARIABLE, "8Mi")
    (folder / "file").write_bytes(bytes(3 << 20))
    assert room(folder) == 5 << 20 < whole
    (folder / "more").write_bytes(bytes(6 << 20))
    assert room(folder) == 0
