"""What submit refuses before anything starts, and what it must leave to the jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhongjing.backends.local import machine
from zhongjing.cli.example import NAMES, write_examples
from zhongjing.cli.preflight.fit import check_machine
from zhongjing.cli.preflight.models import check_models
from zhongjing.cli.preflight.rehearsal import dry_run_data
from zhongjing.cli.preflight.sources import check_sources
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.quantity import from_bytes, to_bytes
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import Stage
from zhongjing.data.readers import read_object
from zhongjing.data.records import Rejected
from zhongjing.data.rejections import Rejections, check_source
from zhongjing.errors import ConfigError, DataError, ZhongjingError
from zhongjing.pipeline import graph
from zhongjing.storage.manifest import SourceCounts

GOOD = {"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}
RANKED = {"prompt": "感冒怎么办？", "answers": ["多喝水。", "不用管。"]}
ALONE = {"prompt": "感冒怎么办？", "answers": ["多喝水。"]}
BAD = {"标题": "感冒"}


def pipeline(
    uris: dict[str, str],
    *,
    kind: str = "dialogue",
    stage: str = "sft",
    source: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    **settings: Any,
) -> TrainingPipeline:
    short = {"maxNewTokens": 16} if stage == "ppo" else {}
    return resolve(
        {
            "metadata": {"name": "demo"},
            "spec": {
                "base": base or {"tiny": {}},
                "sources": [
                    {"name": name, "uri": uri, "kind": kind, **(source or {})} for name, uri in uris.items()
                ],
                "stages": {
                    stage: {"data": [{"source": name} for name in uris], "maxLength": 64, **short, **settings}
                },
            },
        }
    )


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return str(path)


def refusal(document: TrainingPipeline, stage: Stage = Stage.SFT, **more: Any) -> ZhongjingError:
    with pytest.raises(ZhongjingError) as caught:
        check_sources(document, [stage], **more)
    return caught.value


def verdict(check: Callable[[], object]) -> str | None:
    """Name of the code that a check refuses with."""
    try:
        check()
    except DataError as error:
        return error.code.name
    return None


# Sources


def test_a_source_of_another_layout_is_told_with_its_first_place(tmp_path: Path) -> None:
    uri = write(tmp_path / "talks.jsonl", BAD, BAD, 7)
    error = refusal(pipeline({"talks": uri}))
    assert error.code.name == "UnknownLayout"
    assert error.where == "spec.sources.talks"
    assert "none of the 3 records" in error.message
    assert f"(2, first: {uri} line 1)" in error.message
    assert f"(1, first: {uri} line 3)" in error.message
    assert "感冒" not in str(error)


def test_one_answer_is_nothing_to_rank(tmp_path: Path) -> None:
    uri = write(tmp_path / "ranked.jsonl", ALONE, ALONE)
    error = refusal(pipeline({"ranked": uri}, kind="ranking", stage="rm"), Stage.RM)
    assert error.code.name == "TooFewAnswers"


def test_records_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text('{"instruction": 1, "output": 2}\n{"instruction": "a\n')
    error = refusal(pipeline({"talks": str(tmp_path / "talks.jsonl")}))
    assert error.code.name == "NoGoodRecord"


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "[]"])
def test_an_empty_source(tmp_path: Path, text: str) -> None:
    (tmp_path / "talks.jsonl").write_text(text)
    error = refusal(pipeline({"talks": str(tmp_path / "talks.jsonl")}))
    assert error.code.name == "EmptySource"
    assert str(tmp_path / "talks.jsonl") in str(error)


def test_one_good_record_leaves_the_rest_to_the_job(tmp_path: Path) -> None:
    uri = write(tmp_path / "talks.jsonl", *[BAD] * 50, GOOD)
    assert check_sources(pipeline({"talks": uri}), [Stage.SFT]) == []


def test_a_folder_with_an_empty_file_is_not_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", GOOD)
    assert check_sources(pipeline({"talks": str(tmp_path)}), [Stage.SFT]) == []


def test_sources_that_no_stage_of_the_run_reads_are_not_looked_at(tmp_path: Path) -> None:
    document = pipeline({"talks": write(tmp_path / "talks.jsonl", BAD)})
    assert check_sources(document, []) == []


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "\n\n",
        json.dumps(BAD),
        f"{json.dumps(BAD)}\n7",
        json.dumps(ALONE),
        json.dumps(RANKED),
        f"{json.dumps(ALONE)}\n{json.dumps(BAD)}",
        f"{json.dumps(BAD)}\n{json.dumps(RANKED)}",
        f"[{json.dumps(BAD)}]",
        "题目,答案\n感冒,喝水\n",
        "只有一行字。",
    ],
)
@pytest.mark.parametrize("kind", ["text", "ranking", "dialogue", "prompts"])
def test_what_is_refused_here_a_job_refuses_too(tmp_path: Path, kind: str, lines: str) -> None:
    """The same verdict, code included, as of a job that has read all of the source."""
    stage = {"text": "pretrain", "ranking": "rm", "dialogue": "sft", "prompts": "ppo"}[kind]
    (tmp_path / "any").write_text(lines, encoding="utf-8")
    needs: dict[str, Any] = {"from": "s3://b/policy", "reward": "s3://b/reward"} if stage == "ppo" else {}
    document = pipeline({"any": str(tmp_path / "any")}, kind=kind, stage=stage, **needs)
    source = document.spec.source("any")
    rejections, read, bad = Rejections(), 0, 0
    for record in read_object(str(tmp_path / "any"), source):
        read += 1
        if isinstance(record, Rejected):
            bad += 1
            rejections.add(record)
    counts = SourceCounts(
        name="any",
        digest="",
        read=read,
        kept=0,
        train=0,
        validation=0,
        test=0,
        truncated=0,
        too_long=0,
        duplicates=0,
        leaks=0,
        quarantined=bad,
    )
    here = verdict(lambda: check_sources(document, [Stage(stage)]))
    there = verdict(lambda: check_source(source, counts, rejections, "quarantine"))
    if read and bad < read:
        assert here is None  # how many may be bad, the job decides
    else:
        assert here == there is not None


def test_what_is_too_large_to_be_read_here_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.cli.preflight.sources.SECONDS", 0.0)
    uri = write(tmp_path / "talks.jsonl", *[BAD] * 500)
    [note] = check_sources(pipeline({"talks": uri}), [Stage.SFT])
    assert "of source talks cannot be used: no known layout" in note


def test_a_large_source_of_the_wrong_kind_takes_its_time_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text((json.dumps(BAD) + "\n") * 1_000_000)
    started = time.process_time()
    notes = check_sources(pipeline({"talks": str(file)}), [Stage.SFT])
    assert time.process_time() - started < 2.0
    assert len(notes) == 1


def test_a_source_that_is_frozen_is_not_looked_at(tmp_path: Path) -> None:
    document = pipeline({"talks": str(tmp_path / "gone.jsonl")})
    assert refusal(document).code.name == "SourceNotFound"
    assert check_sources(document, [Stage.SFT], known={"talks"}) == []
    waited = pipeline({"talks": str(tmp_path / "gone.jsonl")}, source={"wait": True})
    assert check_sources(waited, [Stage.SFT]) == []


def test_a_local_run_has_no_other_store(tmp_path: Path) -> None:
    document = pipeline({"talks": "s3://corpora/talks.jsonl"})
    error = refusal(document, empty_store=True)
    assert error.code.name == "SourceNotFound"
    assert "the store of its own workdir" in error.message
    assert check_sources(document, [Stage.SFT]) == []


def test_a_damaged_archive_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_bytes(b"\x1f\x8b\x08\x00 and more")
    error = refusal(pipeline({"talks": str(tmp_path / "talks.jsonl")}))
    assert error.code.name == "UnreadableSource"
    assert "gzip" in error.message


# Models


def test_sequences_longer_than_a_made_base() -> None:
    document = pipeline({"talks": "talks.jsonl"}, base={"tiny": {"maxPositions": 128}}, maxLength=129)
    with pytest.raises(DataError, match="the model's 128 positions") as caught:
        graph.check(document)
    assert caught.value.where == "spec.stages.sft.maxLength"
    assert caught.value.code.name == "TooLongForModel"
    assert "spec.base.tiny.maxPositions: 129" in (caught.value.remedy or "")


def test_positions_of_a_stages_own_start_cannot_be_raised_by_the_base(tmp_path: Path) -> None:
    start = str(model_folder(tmp_path / "m", rows=10, entries=10))
    settings: dict[str, Any] = {"from": start, "maxLength": 65}
    document = pipeline({"talks": "talks.jsonl"}, **settings)
    with pytest.raises(DataError, match="the model's 64 positions") as caught:
        check_models(document, [Stage.SFT])
    assert caught.value.remedy == "set maxLength to at most 64"


def model_folder(folder: Path, *, rows: int, entries: int, positions: int = 64) -> Path:
    folder.mkdir()
    config = {"vocab_size": rows, "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "model": {"vocab": {f"t{number}": number for number in range(entries - 1)}},
        "added_tokens": [{"content": "t0", "id": 0}, {"content": "<|end|>", "id": entries - 1}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    ("entries", "length", "code"),
    [(11, 64, "TokenizerMismatch"), (10, 65, "TooLongForModel"), (10, 64, None), (3, 64, None)],
)
def test_a_local_base_is_read_without_transformers(
    tmp_path: Path, entries: int, length: int, code: str | None
) -> None:
    folder = model_folder(tmp_path / "base", rows=10, entries=entries)
    document = pipeline({"talks": "talks.jsonl"}, base={"uri": str(folder)}, maxLength=length)
    if code is None:
        check_models(document, [Stage.SFT])
        return
    with pytest.raises(DataError) as caught:
        check_models(document, [Stage.SFT])
    assert caught.value.code.name == code


def test_a_base_with_code_of_its_own_is_told_at_once(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", rows=10, entries=10)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_baichuan.BaichuanConfig"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "baichuan", "auto_map": auto_map})
    )
    document = pipeline({"talks": "talks.jsonl"}, base={"uri": str(folder)})
    with pytest.raises(DataError, match="a model of type baichuan brings code of its own") as caught:
        check_models(document, [Stage.SFT])
    assert caught.value.code.name == "UnsupportedModel"


def test_an_adapter_is_no_base_and_an_empty_folder_no_model(tmp_path: Path) -> None:
    document = pipeline({"talks": "talks.jsonl"}, base={"uri": str(tmp_path)})
    with pytest.raises(DataError) as caught:
        check_models(document, [Stage.SFT])
    assert (caught.value.code.name, caught.value.where) == ("ModelNotFound", "spec.base.uri")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        check_models(document, [Stage.SFT])
    assert caught.value.code.name == "NotAFullModel"


def test_answers_longer_than_the_model_and_prompts_that_only_the_job_can_measure() -> None:
    needs = {"from": "base", "reward": "s3://b/reward"}
    document = pipeline({"talks": "talks.jsonl"}, base={"tiny": {"maxPositions": 64}}, maxLength=64)
    spec = document.model_dump(mode="json", by_alias=True)["spec"]
    for length, refused in ((64, False), (65, True)):
        ppo = {
            **needs,
            "from": "sft",
            "data": [{"source": "talks"}],
            "maxNewTokens": length,
            "maxLength": 4096,
        }
        stages = {"sft": spec["stages"]["sft"], "ppo": ppo}
        both = resolve({"metadata": {"name": "demo"}, "spec": {**spec, "stages": stages}})
        if not refused:
            graph.check(both)
            continue
        with pytest.raises(DataError, match="maxNewTokens 65") as caught:
            graph.check(both)
        assert caught.value.where == "spec.stages.ppo.maxNewTokens"


# The machine


def asking(workers: int, **resources: Any) -> TrainingPipeline:
    return pipeline({"talks": "talks.jsonl"}, workers=workers, globalBatchSize=64, resources=resources)


@pytest.mark.parametrize(
    ("workers", "resources", "words"),
    [
        (5, {"cpus": 1}, "would take 5 cores, this machine has 4"),
        (2, {"cpus": 3}, "workers to at most 1"),
        (1, {"cpus": 5}, "not one worker fits"),
        (2, {"memory": "5Gi"}, "10.0Gi of memory, this machine has 8.0Gi"),
        (3, {"gpus": 1}, "would take 3 GPUs, this machine has 2"),
    ],
)
def test_more_workers_than_the_machine_can_hold(
    monkeypatch: pytest.MonkeyPatch, workers: int, resources: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    monkeypatch.setattr(machine, "memory", lambda: 8 * 2**30)
    with pytest.raises(ConfigError) as caught:
        check_machine(asking(workers, **resources), [Stage.SFT])
    assert caught.value.code.name == "TooManyWorkers"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("workers", "resources"), [(4, {"cpus": 1}), (8, {"cpus": 0.5}), (2, {"gpus": 1}), (2, {"memory": "4Gi"})]
)
def test_workers_that_fit(monkeypatch: pytest.MonkeyPatch, workers: int, resources: dict[str, Any]) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    monkeypatch.setattr(machine, "memory", lambda: 8 * 2**30)
    check_machine(asking(workers, **resources), [Stage.SFT])


def test_gpus_that_cannot_be_counted_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: None)
    check_machine(asking(2, gpus=1), [Stage.SFT])
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    with pytest.raises(ConfigError) as caught:
        check_machine(asking(2, gpus=1), [Stage.SFT])
    assert caught.value.code.name == "NoGpu"


def test_two_workers_may_share_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 1)
    check_machine(asking(2), [Stage.SFT])


def test_what_this_machine_has() -> None:
    assert machine.cores() >= 1
    assert machine.memory() > 2**28
    assert machine.gpus() is None or machine.gpus() >= 0  # type: ignore[operator]


@pytest.mark.parametrize(("visible", "found"), [("", 0), ("-1", 0)])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, visible: str, found: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == found


@pytest.mark.parametrize(
    ("listing", "visible", "found"),
    [
        ("GPU 0: H200 (UUID: GPU-1)\\nGPU 1: H200 (UUID: GPU-2)", None, 2),
        ("GPU 0: H200 (UUID: GPU-1)\\nGPU 1: H200 (UUID: GPU-2)", "1", 1),
        ("GPU 0: H200 (UUID: GPU-1)\\n  MIG 1g.18gb Device 0: (UUID: MIG-1)", None, 1),
    ],
)
def test_gpus_are_counted_by_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, visible: str | None, found: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nprintf "{listing}\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == found


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("81559, Disabled", 81559 * 2**20),  # H100 80GB
        ("23028, [N/A]\\n23028, [N/A]", 23028 * 2**20),  # A10: cannot be partitioned
        ("81559, Disabled\\n23028, [N/A]", None),
        ("143771, Enabled", None),
        ("[N/A], [N/A]", None),
    ],
)
def test_the_memory_of_a_gpu_is_asked_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, found: int | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu=memory.total*) printf "{listing}\\n";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.gpu_memory() == found


@pytest.mark.parametrize(
    ("quantity", "number"), [("80Gi", 80 * 2**30), ("1.5G", 1_500_000_000), ("512", 512), ("1k", 1000)]
)
def test_quantities(quantity: str, number: int) -> None:
    assert to_bytes(quantity) == number


def test_quantities_for_people() -> None:
    assert [from_bytes(number) for number in (12, 2**20, 80 * 2**30)] == ["12", "1.0Mi", "80.0Gi"]


def test_the_names_of_examples_are_what_is_written(tmp_path: Path) -> None:
    assert tuple(write_examples(tmp_path, 0, 0.01)) == NAMES


def test_who_submits_to_a_cluster_needs_no_psutil() -> None:
    """The client installs neither the training's packages nor the local services'."""
    modules = "zhongjing.cli.submission, zhongjing.cli.preflight.fit, zhongjing.pipeline.fit"
    program = f"import sys; sys.modules['psutil'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_dry_run_without_a_tokenizer_says_why_a_stage_would_stop(tmp_path: Path) -> None:
    file = tmp_path / "visits.csv"
    file.write_text(
        "question,answer,rank\n" + "".join(f"问{row // 2},答{row},{row % 2 + 1}\n" for row in range(8))
    )
    document = pipeline({"talks": str(file)})
    lines, _ = dry_run_data(document, [Stage.SFT], origin="my.yaml", tokenize=False)
    [why] = [line for line in lines if line.startswith("warning: ")]
    assert "sft: talks: a stage would stop: rank seems to rank several answers" in why
