"""Tokens of a stage by the bytes of its sources."""

from __future__ import annotations

from pathlib import Path

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import recipe, resolve
from zhongjing.config.stages import Stage
from zhongjing.planning.source_tokens import BYTES_A_TOKEN, COMPRESSION, tokens_of_sources

LOCAL = ("medical-books", "chatmed")


def document_of(folder: Path) -> TrainingPipeline:
    """A document whose pretraining reads local files and whose other stages read the store."""
    data = resolve(recipe("zhongjing-13b")).model_dump(mode="json", by_alias=True)
    for source in data["spec"]["sources"]:
        local = source["name"] in LOCAL
        source["uri"] = str(folder / source["name"] / "*") if local else f"s3://b/{source['name']}/*.jsonl"
    data["spec"]["stages"]["pretrain"]["data"] = [{"source": name} for name in LOCAL]
    return TrainingPipeline.model_validate(data)


def test_local_files_are_sized_and_compressed_ones_count_for_more(tmp_path: Path) -> None:
    for name in ("medical-books/a.txt", "medical-books/b.txt", "chatmed/c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    found = tokens_of_sources(document_of(tmp_path), lambda _: ())
    assert found == {Stage.PRETRAIN: (2000 + 1000 * COMPRESSION) // BYTES_A_TOKEN}


def test_a_stage_whose_sources_are_not_all_known_has_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "chatmed").mkdir()
    (tmp_path / "chatmed" / "c.jsonl").write_bytes(bytes(1000))
    assert tokens_of_sources(document_of(tmp_path), lambda _: ()) == {}


def test_the_store_is_asked_once_for_a_source_and_ppo_has_prompts_only(tmp_path: Path) -> None:
    asked: list[str] = []

    def listed(uri: str) -> list[tuple[str, int]]:
        asked.append(uri)
        return [(uri, 400), (uri, 400)]

    found = tokens_of_sources(document_of(tmp_path), listed)
    assert found == {Stage.SFT: 4 * 800 // BYTES_A_TOKEN, Stage.RM: 800 // BYTES_A_TOKEN}
    assert len(asked) == len(set(asked)) == 5
