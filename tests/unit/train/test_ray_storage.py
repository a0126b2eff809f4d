"""Where Ray Train keeps its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError
from zhongjing.train.job.ray_storage import VARIABLE, ray_storage


def test_on_one_machine_it_is_the_attempts_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    storage = ray_storage(Storage(), tmp_path / "x-a1")
    assert storage.path == str(tmp_path / "x-a1" / "ray-train")
    run = Path(storage.path) / "x-a1"
    run.mkdir()
    (run / "file").touch()
    storage.remove("x-a1")
    storage.remove("x-a1")
    assert not run.exists()


def test_a_shared_file_system_is_made_use_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/shared/")
    storage = ray_storage(Storage(), tmp_path / "x-a1")
    assert storage.path == f"{tmp_path}/shared"
    assert (tmp_path / "shared").is_dir()


@pytest.mark.parametrize("named", ["relative/folder", "gs://bucket/ray", "s3:///key"])
def test_other_places_are_refused(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(ConfigError):
        ray_storage(Storage(), tmp_path)


def test_where_the_store_cannot_be_used_the_attempts_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "s3://bucket/ns/ray/")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    storage = ray_storage(Storage(endpoint="http://127.0.0.1:9", deadline_seconds=0.1), tmp_path)
    assert storage.path == str(tmp_path / "ray-train")
    assert "Ray Train cannot use s3://bucket/ns/ray/" in caplog.text
    assert "hunter2" not in caplog.text
