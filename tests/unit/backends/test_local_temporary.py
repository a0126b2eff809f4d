"""Temporary folders of a workdir: where paths are short, where they are long, and after a power cut."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zhongjing.backends.local.temporary import TemporaryFolders, clear_scratch


@pytest.fixture
def long_workdir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ("long-" * 15)
    path.mkdir()
    yield path
    TemporaryFolders(path).remove()


@pytest.fixture
def short_workdir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def no_caches_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch names its cache folder in the environment when another test imports its compiler."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_short_path_holds_everything(short_workdir: Path) -> None:
    folders = TemporaryFolders(short_workdir)
    folders.make()
    environment = folders.environment()
    assert folders.ray == short_workdir / "ray"
    assert environment["TMPDIR"] == str(short_workdir / "tmp")
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(environment[name]).is_relative_to(short_workdir)
    (folders.temporary / "left").write_text("")
    (folders.caches / "kept").write_text("")
    folders.make()
    assert list(folders.temporary.iterdir()) == [], "what a predecessor left is gone"
    assert (folders.caches / "kept").exists()
    folders.remove()
    assert sorted(path.name for path in short_workdir.iterdir()) == ["home"]


def test_a_long_path_has_one_short_folder_that_the_next_one_finds(long_workdir: Path) -> None:
    folders = TemporaryFolders(long_workdir)
    folders.make()
    short = folders.ray.parent
    assert short.parent == Path("/tmp")
    assert short.stat().st_mode & 0o777 == 0o700
    assert folders.temporary.parent == short
    # Everything was killed; another process looks after the same workdir.
    again = TemporaryFolders(long_workdir)
    again.make()
    assert not short.exists()
    assert again.ray.parent != short
    again.remove()
    assert not again.folder.joinpath("short-folder").exists()
    assert sorted(path.name for path in long_workdir.iterdir()) == ["home"]


@pytest.mark.parametrize("noted", ["/etc", "/tmp/../etc", "/tmp/zj-0", "zj-01234567", ""])
def test_only_a_folder_of_its_own_is_removed(tmp_path: Path, noted: str) -> None:
    (tmp_path / "short-folder").write_text(noted)
    TemporaryFolders(tmp_path).remove()
    assert Path("/etc").is_dir()
    assert not (tmp_path / "short-folder").exists()


def test_a_link_is_not_followed(tmp_path: Path, long_workdir: Path) -> None:
    folders = TemporaryFolders(long_workdir)
    folders.make()
    short = folders.ray.parent
    shutil.rmtree(short)
    (tmp_path / "precious").write_text("")
    short.symlink_to(tmp_path)
    try:
        TemporaryFolders(long_workdir).remove()
        assert (tmp_path / "precious").exists()
    finally:
        short.unlink()


def test_a_cache_of_compiled_kernels_of_the_user_s_own_stays_in_use(
    long_workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared/triton")
    assert TemporaryFolders(long_workdir).environment()["TRITON_CACHE_DIR"] == "/shared/triton"


def test_the_scratch_folder_keeps_the_models(tmp_path: Path) -> None:
    clear_scratch(tmp_path)
    for name in ("models/x", "tiny-0-sft-a1/checkpoints", "local-tiny-sft-key-checkpoints/step-1"):
        (tmp_path / "scratch" / name).mkdir(parents=True)
    clear_scratch(tmp_path)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["models"]


@pytest.mark.parametrize("name", ["病历", "mit Ümlaut", "two words", "a%20b", "it's"])
def test_a_workdir_may_have_any_letters(short_workdir: Path, name: str) -> None:
    """Ray, given a session folder of other letters, starts and then answers every job with 500."""
    (short_workdir / name).mkdir()
    folders = TemporaryFolders(short_workdir / name)
    folders.make()
    try:
        for folder in (folders.ray, folders.temporary):
            assert re.fullmatch(r"/tmp/zj-[0-9a-f]{8}/(ray|tmp)", str(folder))
    finally:
        folders.remove()
    assert [path.name for path in (short_workdir / name).iterdir()] == ["home"]
