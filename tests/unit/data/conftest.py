"""Fixtures of the data tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.data.support import QWEN3_LIKE_TEMPLATE, MemoryStore, make_tokenizer
from zhongjing.data.templates import CHATML_TEMPLATE, PLAIN_TEMPLATE


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    return make_tokenizer(CHATML_TEMPLATE, chatml=True)


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    return make_tokenizer(PLAIN_TEMPLATE, chatml=False, bos=True)


@pytest.fixture(scope="session")
def qwen3() -> PreTrainedTokenizerFast:
    return make_tokenizer(QWEN3_LIKE_TEMPLATE, chatml=True)


@pytest.fixture(scope="session")
def tokenizer_folder(chatml: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    chatml.save_pretrained(str(folder))
    return folder


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a published file; skips where ZHONGJING_DATA is not set."""
    folder = os.environ.get("ZHONGJING_DATA")

    def path(name: str) -> Path:
        if not folder:
            pytest.skip("ZHONGJING_DATA does not name the folder of published data")
        return Path(folder) / name

    return path
