"""The documents that the project ships: valid, and what they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from zhongjing.config import resolve
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.data.example.generate import write

ROOT = Path(__file__).parents[3]

# learning rate, LoRA rank (None: full parameters), epochs, batch size, accumulation: Table 4 of the paper.
TABLE_4 = {
    Stage.PRETRAIN: (5e-5, None, 4, 16, 4),
    Stage.SFT: (7e-5, 16, 3, 16, 4),
    Stage.RM: (1e-4, 16, 10, 32, 4),
    Stage.PPO: (5e-5, 16, 2, 8, 4),
}


def recipe(name: str) -> TrainingPipeline:
    return resolve.resolve(resolve.recipe(name))


@pytest.mark.parametrize("stage", list(TABLE_4))
def test_zhongjing_13b_is_table_4(stage: Stage) -> None:
    settings = recipe("zhongjing-13b").spec.stages.get(stage)
    assert settings is not None
    rate, rank, epochs, batch, accumulation = TABLE_4[stage]
    assert settings.learning_rate == rate
    assert settings.epochs == epochs
    assert (settings.lora.rank if settings.tuning == "lora" else None) == rank
    assert settings.workers == 4
    # K = 4 answers make a row of the table's batch; the document counts prompts.
    rows = 4 if stage is Stage.RM else 1
    assert settings.global_batch_size * rows == batch * accumulation
    micro_step = settings.micro_batch_size * settings.workers
    assert settings.global_batch_size == micro_step * accumulation
    assert (settings.schedule, settings.precision, settings.max_length) == ("cosine", "fp16", 4096)
    assert settings.validation_fraction == 0.1
    assert settings.resources.gpus == 1
    assert settings.gradient_checkpointing


def test_zhongjing_13b_begins_with_ziya_and_waits_for_people() -> None:
    spec = recipe("zhongjing-13b").spec
    assert spec.base.delta == "IDEA-CCNL/Ziya-LLaMA-13B-v1"
    assert spec.base.root is not None
    sft = spec.stages.sft
    assert sft is not None
    assert sft.mixture is not None
    assert (sft.mixture.single_turn, sft.mixture.multi_turn) == (7, 1)
    assert [source.name for source in spec.sources if source.wait] == ["ranked-answers"]
    assert all(source.place.startswith("s3://") for source in spec.sources)
    pretrain = spec.stages.pretrain
    assert pretrain is not None
    assert len(pretrain.data) == 11  # the rows of Table 1


def test_tiny_names_every_example_and_trains_on_no_held_out_one(tmp_path: Path) -> None:
    spec = recipe("tiny").spec
    names = {source.place.removeprefix("example://") for source in spec.sources}
    assert names == set(write(tmp_path, scale=0.1))
    assert {s.name for s in spec.sources if s.split == "test"} == {n for n in names if "heldout" in n}
    for stage in (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO):
        settings = spec.stages.get(stage)
        assert settings is not None
        assert (settings.workers, settings.precision, settings.resources.gpus) == (2, "fp32", 0)


def test_the_published_data_example_is_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZHONGJING_DATA", str(tmp_path))
    document = resolve.resolve(resolve.load_document(ROOT / "examples" / "published-data.yaml"))
    sources = {source.name: source for source in document.spec.sources}
    assert sources["cmtmedqa"].uri == f"{tmp_path}/CMtMedQA_sample.json"
    assert sources["cmtmedqa"].test_fraction == sources["huatuo26m"].test_fraction == 0.5
    assert sources["safety-questions"].split == "test"
