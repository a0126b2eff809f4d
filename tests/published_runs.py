"""Pipelines over bases as they are published: the recipe's own fields, with sizes that take seconds."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zhongjing.config.resolve import recipe

ENDING = "多休息，多喝水。"
_WORSE = ("多喝水。", "不知道", "？")
_ASKED = ("头痛", "发烧", "咳嗽", "胃痛")

# Run by a Python that has none of our code: answers of a batch, padded to the left, as whole numbers.
_ANSWERS = """
import json, sys
sys.modules["zhongjing"] = None
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
talks = [[{"role": "user", "content": text}] for text in ("头痛3天", "发烧12天")]
for folder in sys.argv[1:]:
    adapter = folder.endswith("adapter")
    model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer.apply_chat_template(
        talks, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    made = model.generate(**batch, max_new_tokens=40, do_sample=False)[:, batch["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    print(json.dumps({
        "ends": tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]),
        "positions": model.config.max_position_embeddings,
        "answers": [tokenizer.convert_ids_to_tokens(ids) for ids in made.tolist()],
    }))
"""


def write_corpora(folder: Path) -> list[str]:
    """The corpora of :func:`recipe_document`, in the layouts that they are published in.

    Returns:
        Their texts. The longest dialogues have about 140 characters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    single = [f"{name}{days}天" for name in _ASKED for days in range(1, 17)]
    lines: dict[str, list[dict[str, Any]]] = {
        "single-turn": [{"question": asked, "answer": ENDING} for asked in single],
        # As CMtMedQA has them.
        "CMtMedQA": [
            {"instruction": asked, "output": ENDING, "history": [[before, ENDING]] * 5}
            for asked, before in zip(single, reversed(single), strict=True)
        ],
        "ranked": [{"prompt": asked, "answers": [ENDING, *_WORSE]} for asked in single],
    }
    for name, records in lines.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    book = "\n".join(f"{asked}的病人应该{ENDING}" for asked in single * 6)
    (folder / "book.txt").write_text(book, encoding="utf-8")
    return [*book.splitlines(), *_WORSE]


def recipe_document(
    name: str, base: Mapping[str, Any], corpora: Path, *, max_length: int, workers: int = 1
) -> dict[str, Any]:
    """The recipe ``zhongjing-13b`` on another base and other corpora, in steps that take seconds.

    What is changed are sizes, places, learning rates (for so few steps) and what needs a GPU: ``gpus``, and
    ``precision``, which is fp16 in the recipe and fp32 on a CPU. All other fields are the recipe's.

    Args:
        name: of the pipeline.
        base: fields of ``spec.base``, over the recipe's; None takes one away.
        corpora: folder of :func:`write_corpora`.
        max_length: of every stage, in tokens.
        workers: of pretraining.
    """
    found: dict[str, Any] = copy.deepcopy(dict(recipe("zhongjing-13b")))
    found["metadata"]["name"] = name
    spec = found["spec"]
    del spec["storage"]
    spec["base"] = {key: value for key, value in {**spec["base"], **base}.items() if value is not None}
    files = {
        "medical-books": "book.txt",
        "cmtmedqa": "CMtMedQA.jsonl",
        "medical-single-turn": "single-turn.jsonl",
        "ranked-answers": "ranked.jsonl",
    }
    spec["sources"] = [
        {**source, "uri": str(corpora / files[source["name"]])}
        for source in spec["sources"]
        if source["name"] in files
    ]
    common = {
        "maxLength": max_length,
        "precision": "auto",
        "microBatchSize": 8,
        "globalBatchSize": 8,
        "evaluations": 1,
        "maxEvaluationSamples": 8,
        "workers": 1,
        "resources": {"cpus": 1, "gpus": 0, "memory": "2Gi"},
    }
    own: dict[str, dict[str, Any]] = {
        "pretrain": {"maxSteps": 6, "learningRate": 1e-3, "workers": workers},
        "sft": {"maxSteps": 24, "learningRate": 1e-2, "epochs": 10},
        "rm": {"maxSteps": 4, "globalBatchSize": 4},
        "ppo": {"maxSteps": 4, "maxPromptLength": max_length - 32, "maxNewTokens": 32},
    }
    for stage, settings in spec["stages"].items():
        settings.update({**common, **own[stage]})
        settings["data"] = [each for each in settings["data"] if each["source"] in files]
    return found


def answers_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What a fresh process gets from model folders with transformers and PEFT alone.

    Args:
        folders: of full models, and of adapters where the name ends in ``adapter``.

    Returns:
        For each ``ends`` (tokens that generation_config names), ``positions`` and ``answers`` (tokens).
    """
    done = subprocess.run(
        [sys.executable, "-c", _ANSWERS, *map(str, folders)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        cwd=folders[0],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
