"""Downloads from a hub say how far they are, and can be ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zhongjing.config.sources import Storage
from zhongjing.storage.objects import open_store
from zhongjing.train.job.folders import Folders


@pytest.mark.parametrize("disabled", [False, True])
def test_a_hub_download_tells_its_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    def snapshot_download(name: str, *, tqdm_class: Any, **_: Any) -> str:
        # As huggingface_hub 2.4 does: a bar over bytes whose total grows, and one over files.
        bytes_bar = tqdm_class(total=0, initial=0, unit="B", disable=disabled)
        files_bar = tqdm_class(total=2, unit="it", disable=disabled)
        bytes_bar.total = (bytes_bar.total or 0) + 400
        bytes_bar.update(100)
        bytes_bar.update(300)
        files_bar.update(1)
        bytes_bar.close()
        files_bar.close()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    told: list[float] = []
    folders = Folders(open_store(Storage(uri="s3://bucket")), tmp_path, told.append)
    assert folders.local("owner/name") == tmp_path
    assert told == [0.25, 1.0]

    class StopError(Exception):
        pass

    def end(fraction: float) -> None:
        raise StopError

    with pytest.raises(StopError):
        Folders(open_store(Storage(uri="s3://bucket")), tmp_path, end).local("owner/name")
