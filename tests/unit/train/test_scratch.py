"""The scratch folder of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from zhongjing.train.scratch import VARIABLE, remove_earlier, scratch_folder


def test_only_earlier_attempts_of_the_same_stage_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    kept = ["x-1-sft-a10", "x-1-sft-a11", "x-1-sft-awake", "x-1-rm-a1", "y-x-1-sft-a1", "models"]
    for name in ["x-1-sft-a1", "x-1-sft-a9", *kept]:
        (scratch_folder(name) / "file").touch()
    remove_earlier("x-1-sft-a10")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
