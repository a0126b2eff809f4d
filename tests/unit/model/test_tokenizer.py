from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from zhongjing.errors import DataError
from zhongjing.model.tokenizer import (
    DOCUMENT_END,
    TURN_END,
    TURN_START,
    end_ids,
    load_tokenizer,
    padding_id,
    train_bpe,
)

FAMILIES = ("llama", "qwen2", "qwen3")
TEXTS = ["感冒的典型症状是发热、咳嗽。It's fine, don't worry: 120/80 mmHg.\n\n  多喝水。"] * 8
HARD = "药😀 e\u0301  it'S\r\n\t12.5mg\u3000未见词「龘」<|im_end|>\n"


def test_the_same_texts_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    train_bpe(TEXTS, 400, "{{ messages }}", tmp_path / "here")
    code = (
        "import sys, pathlib\nfrom zhongjing.model.tokenizer import train_bpe\n"
        "train_bpe(eval(sys.argv[1]), 400, '{{ messages }}', pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, repr(TEXTS), str(tmp_path / "there")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True)
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_it_with_the_same_tokens(
    family: str, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in base_folder(family).iterdir():
        if path.name != "config.json":
            (plain / path.name).write_bytes(path.read_bytes())
    reference = load_tokenizer(plain)
    loaded = AutoTokenizer.from_pretrained(str(base_folder(family)))
    assert loaded(HARD)["input_ids"] == reference(HARD)["input_ids"]
    assert loaded.chat_template == reference.chat_template
    assert loaded.decode(loaded(HARD)["input_ids"]) == HARD.replace("e\u0301", "é")


def test_special_tokens_are_single_and_have_their_roles(base_folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(base_folder("llama"))
    assert [tokenizer(token)["input_ids"] for token in (DOCUMENT_END, TURN_START, TURN_END)] == [
        [0],
        [1],
        [2],
    ]
    assert tokenizer.eos_token == TURN_END
    assert padding_id(tokenizer) == 0
    assert end_ids(tokenizer) == [0, 2]


def test_no_token_is_a_whole_clause(tmp_path: Path) -> None:
    clause = "感冒的典型症状是发热咳嗽流鼻涕"
    train_bpe([clause] * 100, 400, "", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(clause)["input_ids"]
    assert max(len(token) for token in tokenizer.convert_ids_to_tokens(ids)) <= 24  # a character a byte
    assert 2 <= len(ids) < len(clause)


def test_padding_is_never_the_end_of_a_turn(base_folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(base_folder("llama"))
    tokenizer.pad_token = tokenizer.eos_token  # as many fine-tuned models are published
    assert padding_id(tokenizer) == tokenizer.get_vocab()[DOCUMENT_END]


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocabularySize"):
        train_bpe(TEXTS, 200, "", tmp_path)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path)
