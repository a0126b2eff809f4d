"""A base as Qwen2.5-Base is published goes through all four stages, at lengths beyond its positions.

Its EOS and padding are ``<|endoftext|>``, its turns end with ``<|im_end|>``: what comes out must end there
although the base's own generation_config does not say so (QwenLM/Qwen3 #927, axolotl #2073).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.place import Place, wait_for
from tests.published_tokenizers import write_qwen25_base

pytestmark = [pytest.mark.integration, pytest.mark.timeout(700)]

DOCUMENT = """\
metadata: {{name: qwen}}
spec:
  base: {{uri: {folder}/base, maxPositions: 128}}
  sources:
  - {{name: textbook, uri: {folder}/textbook.txt, kind: text}}
  - {{name: dialogues, uri: {folder}/dialogues.jsonl, kind: dialogue}}
  - {{name: rankings, uri: {folder}/rankings.jsonl, kind: ranking}}
  - {{name: prompts, uri: {folder}/prompts.jsonl, kind: prompts}}
  stages:
    pretrain:
      &common
      data: [{{source: textbook}}]
      precision: fp32
      epochs: 100
      maxSteps: 20
      maxLength: 96
      globalBatchSize: 8
      microBatchSize: 8
      learningRate: 1.0e-3
      evaluations: 1
      maxEvaluationSamples: 16
      workers: 1
    sft: {{<<: *common, data: [{{source: dialogues}}], maxSteps: 120, learningRate: 5.0e-3}}
    rm: {{<<: *common, data: [{{source: rankings}}], maxSteps: 20}}
    ppo:
      <<: *common
      data: [{{source: prompts}}]
      learningRate: 1.0e-5
      maxPromptLength: 64
      maxNewTokens: 32
      maxSteps: 4
"""
TALKS = {"头痛": "多休息。", "发烧": "多喝水。", "咳嗽": "看医生。", "胃痛": "喝热水。"}
# Run by a Python that has none of our code: answers of a batch, padded to the left, as whole numbers.
ANSWERS = """
import sys, json
sys.modules["zhongjing"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM
kind = AutoPeftModelForCausalLM if sys.argv[2] == "adapter" else AutoModelForCausalLM
model = kind.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
talks = [[{"role": "user", "content": text}] for text in ("头痛3天，怎么办？", "发烧12天")]
batch = tokenizer.apply_chat_template(
    talks, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
)
given = model.generation_config.eos_token_id
made = model.generate(**batch, max_new_tokens=60, do_sample=False)[:, batch["input_ids"].shape[1] :]
end = tokenizer.get_vocab()["<|im_end|>"]
print(json.dumps({"named": given, "end": end, "answers": made.tolist()}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The pipeline, complete."""
    folder = tmp_path_factory.mktemp("qwen")
    talks = [
        (f"{name}{days}天{asked}", answer)
        for name, answer in TALKS.items()
        for days in range(1, 25)
        for asked in ("", "，怎么办？", "了")
    ]
    lines: dict[str, list[dict[str, object]]] = {
        "dialogues": [{"question": question, "answer": answer} for question, answer in talks],
        "rankings": [{"prompt": question, "answers": [answer, "不知道"]} for question, answer in talks],
        "prompts": [{"prompt": question} for question, _ in talks],
    }
    for name, records in lines.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    textbook = "\n".join(f"{question}。{answer}" for question, answer in talks)
    (folder / "textbook.txt").write_text(textbook, encoding="utf-8")
    write_qwen25_base(folder / "base", textbook.splitlines(), positions=64)
    place = Place(folder / "place", DOCUMENT.format(folder=folder))
    try:
        place.submit()
        ended = wait_for(lambda: place.process.poll() is not None, 540, interval=0.5)
        said = place.output.read_text(encoding="utf-8", errors="replace")
        assert ended, said
        assert place.process.returncode == 0, said
        yield place
    finally:
        place.end()
        shutil.rmtree(folder, ignore_errors=True)


def pulled(place: Place, stage: str, *arguments: str) -> Path:
    folder = place.folder / "-".join((stage, *arguments))
    command = [sys.executable, "-m", "zhongjing", "pull", f"qwen/{stage}", str(folder), *arguments]
    done = subprocess.run(
        [*command, "--local", "--workdir", str(place.workdir.path)],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(("stage", "kind"), [("ppo", "adapter"), ("ppo", "merged")])
def test_generation_ends_with_the_turn(place: Place, stage: str, kind: str) -> None:
    folder = pulled(place, stage, *(["--merged"] if kind == "merged" else []))
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(folder), kind],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["end"] in found["named"]
    for answer in found["answers"]:
        assert found["end"] in answer, "generation went on to its limit"
        rest = answer[answer.index(found["end"]) + 1 :]
        assert len(set(rest)) <= 1, "only padding stands behind the end of the turn"


def test_a_full_model_keeps_what_its_publisher_says_about_decoding(place: Place) -> None:
    folder = pulled(place, "pretrain")
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == 128
    assert settings["max_new_tokens"] == 2048
    assert len(settings["eos_token_id"]) == 2
