"""feedback next: real reward models, tiny, whose scores are those of transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.feedback_support import task, write_task_set
from tests.ppo_support import make_folders, reward_by_peft, shake
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from zhongjing.config.stages import Lora
from zhongjing.data.records import Turn
from zhongjing.feedback.selection import worth
from zhongjing.feedback.tasks import read_task_set, read_tasks
from zhongjing.model.export import copy_tokenizer
from zhongjing.model.reward import build_reward_model, save_reward_model
from zhongjing.model.scorer import Scorer
from zhongjing.storage.objects import ObjectStore

ANSWERS = ("多喝水", "请到医院就诊，遵医嘱用药")


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


@pytest.fixture(scope="module")
def reward_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two over one base, as `pull` leaves them."""
    root = tmp_path_factory.mktemp("rm")
    folders = make_folders(root, "llama")
    other = build_reward_model(
        folders.base, Lora.model_validate({"rank": 2, "alpha": 4.0, "dropout": 0.0}), 9, torch.float32
    )
    shake(other, 10)
    save_reward_model(other, root / "rm-b", str(folders.base))
    for folder in (folders.reward, root / "rm-b"):
        copy_tokenizer(folders.base, folder)
    return folders.reward, root / "rm-b"


def score(folder: Path, number: int) -> list[float]:
    scorer = Scorer(folder, device=torch.device("cpu"), dtype=torch.float32)
    found = scorer.scores((Turn("user", task(number, ANSWERS).prompt[0].content),), ANSWERS)
    assert found is not None
    return found


def test_scores_are_those_of_peft(reward_models: tuple[Path, Path]) -> None:
    folder = reward_models[0]
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = reward_by_peft(base, folder)
    wanted = []
    for answer in ANSWERS:
        turns = [
            {"role": "user", "content": task(3, ANSWERS).prompt[0].content},
            {"role": "assistant", "content": answer},
        ]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip("\n")
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            wanted.append(float(model(input_ids=ids).logits))
    assert score(folder, 3) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_next_chooses_by_the_models_disagreement(
    command: CommandLine, store: ObjectStore, bucket_uri: str, reward_models: tuple[Path, Path]
) -> None:
    tasks = [task(number, ANSWERS) for number in range(6)]
    write_task_set(store, f"{bucket_uri}/tasks", tasks)
    models = ",".join(map(str, reward_models))
    words = ("feedback", "next", f"{bucket_uri}/tasks", f"{bucket_uri}/next", "--reward-models", models)
    result = command(*words, "--count", "3", "--local", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "3 of 6 tasks" in result.stdout
    worths = {each.id: worth([score(folder, n) for folder in reward_models]) for n, each in enumerate(tasks)}
    found = list(read_tasks(store, f"{bucket_uri}/next", read_task_set(store, f"{bucket_uri}/next")))
    best = sorted(tasks, key=lambda each: -worths[each.id])[:3]
    assert [each.id for each in found] == [each.id for each in best]
    # The rest, once these are ranked.
    rest = ("feedback", "next", f"{bucket_uri}/tasks", f"{bucket_uri}/rest", "--reward-models", models)
    result = command(*rest, "--ranked", f"{bucket_uri}/next", "--local", "--device", "cpu", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompts"] == {"in_distribution": 3}
    one = command(*words[:-1], str(reward_models[0]), "--local")
    assert one.exit_code == 2
    assert "one reward model does not disagree" in one.output
    missing = command(*words[:-1], f"{reward_models[0]},nowhere", "--local")
    assert missing.exit_code == 2
    assert "no folder of a reward model" in missing.output
