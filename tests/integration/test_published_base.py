"""Bases as Ziya and Qwen2.5-Base are published go through the recipe's four stages, beyond their positions.

Ziya: a delta in ``.bin`` shards, a sentencepiece tokenizer, fewer positions than the paper trains at. Qwen:
EOS and padding are ``<|endoftext|>``, turns end with ``<|im_end|>``: what comes out must end there although
the base's own generation_config does not say so (QwenLM/Qwen3 #927, axolotl #2073).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.command_line import kept_environment
from tests.faults.place import Place, wait_for
from tests.published_bases import MILLIONS, POSITIONS, publish_ziya, write_qwen25_base
from tests.published_runs import answers_of, recipe_document, write_corpora
from zhongjing.cli.app import app

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Published:
    """A base that is published, and what is asked of it."""

    name: str
    base: dict[str, Any]  # fields of spec.base
    positions: int  # its config.json's
    max_positions: int
    max_length: int
    end: str  # of a turn


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One machine for all runs of this module."""
    place = Place(tmp_path_factory.mktemp("published"), "")
    try:
        yield place
    finally:
        place.end()
        shutil.rmtree(place.folder, ignore_errors=True)


@pytest.fixture(scope="module", params=["ziya", "qwen"])
def published(place: Place, request: pytest.FixtureRequest) -> Published:
    """A base, after all four stages."""
    name: str = request.param
    folder = place.folder / name
    texts = write_corpora(folder)
    base: dict[str, Any]
    if name == "ziya":
        made = publish_ziya(folder, size=MILLIONS)
        base = {"delta": str(made.delta), "root": str(made.root), "deltaRule": "fengshen"}
        found = Published(name, base, POSITIONS, 2 * POSITIONS, 160, "</s>")
    else:
        write_qwen25_base(folder / "base", texts, positions=128)
        base = {"uri": str(folder / "base"), "delta": None, "root": None}
        found = Published(name, base, 128, 256, 224, "<|im_end|>")
    document = recipe_document(
        name, {**found.base, "maxPositions": found.max_positions}, folder, max_length=found.max_length
    )
    place.document.write_text(json.dumps(document), encoding="utf-8")
    place.submit()
    ended = wait_for(lambda: place.process.poll() is not None, 700, interval=0.2)
    said = place.output.read_text(encoding="utf-8", errors="replace")
    assert ended, said
    assert place.process.returncode == 0, said
    return found


@pytest.fixture(scope="module")
def pulled(place: Place, published: Published) -> tuple[Path, Path]:
    """What PPO left, beside its base, and as one model."""
    folders = place.folder / f"{published.name}-adapter", place.folder / f"{published.name}-merged"
    for folder in folders:
        words = [
            "pull",
            f"{published.name}/ppo",
            str(folder),
            "--local",
            "--workdir",
            str(place.workdir.path),
        ]
        words += ["--merged"] if folder is folders[1] else []
        with kept_environment():
            done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    return folders


def test_what_comes_out_loads_without_our_code_and_ends_its_turns(
    published: Published, pulled: tuple[Path, Path]
) -> None:
    for found in answers_of(pulled):
        assert found["positions"] == published.max_positions
        assert published.end in found["ends"]
        for answer in found["answers"]:
            assert published.end in answer, "generation went on to its limit"
            rest = answer[answer.index(published.end) + 1 :]
            assert len(set(rest)) <= 1, "only padding stands behind the end of the turn"


def test_the_sequences_were_longer_than_the_base_had_positions(
    place: Place, published: Published, pulled: tuple[Path, Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(pulled[0]))
    lines = (place.folder / published.name / "CMtMedQA.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        record: dict[str, Any] = json.loads(line)
        turns = []
        for asked, answer in [*record["history"], (record["instruction"], record["output"])]:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        tokens = len(tokenizer.apply_chat_template(turns)["input_ids"])
        assert published.positions < tokens <= published.max_length


def test_a_full_model_keeps_what_its_publisher_says_about_decoding(
    published: Published, pulled: tuple[Path, Path]
) -> None:
    base = pulled[0] / "base"  # what pretraining left
    settings = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == published.max_positions
    if published.name == "qwen":
        assert settings["max_new_tokens"] == 2048
        assert len(settings["eos_token_id"]) == 2
    else:
        assert settings["bos_token_id"] == 1
        assert settings["eos_token_id"] == [2]
