"""Tiny bases of the three families, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training_support import TEMPLATE, tiny
from zhongjing.model.base import make_tiny_base

TEXTS = [
    "感冒的典型症状是发热、咳嗽、流鼻涕，应到呼吸内科就诊，多喝水，注意休息。",
    "高血压患者应当低盐饮食，按时服药，定期测量血压。It's 120/80 mmHg, don't worry.",
    "胃炎患者常有上腹痛、反酸，可到消化内科做胃镜检查。",
] * 20


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("bases") / family
            make_base(made[family], family)
        return made[family]

    return make


def make_base(folder: Path, family: str, seed: int = 7, layers: int = 2) -> None:
    make_tiny_base(folder, tiny(family=family, layers=layers, vocabulary_size=480), TEXTS, seed, TEMPLATE)


@pytest.fixture(scope="session")
def new_base() -> Callable[..., None]:
    """``new_base(folder, family, seed=7, layers=2)`` writes a base of two layers, width 32, 480 rows."""
    return make_base
