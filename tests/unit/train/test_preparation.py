"""What cannot be trained is found on the driver, before the store is asked or a worker starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tests.published_tokenizers import write_tokenizer
from tests.training_support import free_port, tiny_base
from zhongjing.codes import Code
from zhongjing.codes import document as document_codes
from zhongjing.codes import model as codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Lora, Stage
from zhongjing.data.templates import PLAIN_TEMPLATE
from zhongjing.errors import DataError, ZhongjingError
from zhongjing.model.adapters import add_lora, save_adapter
from zhongjing.model.base import load_base
from zhongjing.model.export import copy_tokenizer
from zhongjing.model.reward import build_reward_model, save_reward_model
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.storage.artifacts import MADE
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import StageInput, StageRequest
from zhongjing.storage.objects import open_store
from zhongjing.train.job.prepare import _Preparation, prepare

LORA = Lora.model_validate({"rank": 2, "alpha": 4, "dropout": 0.0})
DOCUMENT = """
metadata: {{name: x}}
spec:
  base: {{uri: {base}}}
  sources:
    - {{name: talks, uri: talks.jsonl, kind: dialogue}}
    - {{name: ranked, uri: ranked.jsonl, kind: ranking}}
  stages:
    sft: {{data: [{{source: talks}}], maxLength: {length}}}
    rm: {{data: [{{source: ranked}}], maxLength: 64}}
    ppo: {{data: [{{source: talks}}], maxPromptLength: 32, maxNewTokens: {new}}}
"""

Prepare = Callable[..., ZhongjingError]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``other`` (one layer more), adapters ``sft`` and ``rm`` of the base. Not to be changed."""
    root = tmp_path_factory.mktemp("models")
    tiny_base(root / "base")
    tiny_base(root / "other", layers=3)
    model = add_lora(load_base(root / "base", dtype=torch.float32), LORA, "default", 0)
    assert isinstance(model, PeftModel)
    save_adapter(model, root / "sft", str(root / "base"))
    copy_tokenizer(root / "base", root / "sft")
    save_reward_model(
        build_reward_model(root / "base", LORA, 0, torch.float32), root / "rm", str(root / "base")
    )
    copy_tokenizer(root / "base", root / "rm")
    return root


@pytest.fixture
def failing(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares a stage and returns what it ends with. Nobody answers for the store: good models end there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    store = open_store(
        Storage(uri="s3://nowhere", endpoint=f"http://127.0.0.1:{free_port()}", deadline_seconds=0.1)
    )

    def run(
        stage: Stage,
        start: Path | str,
        reward: Path | None = None,
        *,
        length: int = 64,
        new: int = 32,
        said: Callable[[str, float], None] = lambda *_: None,
        **base: str,
    ) -> ZhongjingError:
        text = DOCUMENT.format(base=models / "base", length=length, new=new)
        user = parse_document(text, "x")
        user["spec"]["base"].update(base)
        document = resolve(user)
        inputs = [StageInput(role="from", uri=str(start), key="k")]
        if reward is not None:
            inputs.append(StageInput(role="reward", uri=str(reward), key="r"))
        request = StageRequest(
            stage=stage,
            key="k" * 16,
            attempt=1,
            submission_id="x-1",
            document=document,
            sources=[],
            inputs=inputs,
        )
        scratch = tmp_path / "scratch" / "x-1"
        scratch.mkdir(parents=True, exist_ok=True)
        with pytest.raises(ZhongjingError) as caught:
            prepare(request, store, Layout("s3://nowhere", "local", "x"), scratch, said)
        return caught.value

    return run


def changed(source: Path, folder: Path, file: str, **fields: Any) -> Path:
    """A copy of a model folder with another value in one of its JSON files."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**content, **fields}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.RM, Stage.PPO])
def test_good_models_pass(failing: Prepare, models: Path, stage: Stage) -> None:
    ppo = stage is Stage.PPO
    error = failing(stage, models / ("sft" if ppo else "base"), models / "rm" if ppo else None)
    assert error.code is storage_codes.STORAGE_UNREACHABLE, error


def test_sequences_longer_than_the_positions(failing: Prepare, models: Path) -> None:
    error = failing(Stage.SFT, models / "base", length=129)
    assert error.code is codes.TOO_LONG_FOR_MODEL
    assert error.where == "spec.stages.sft.maxLength"
    assert "129 is longer than the model's 128 positions" in error.message
    error = failing(Stage.PPO, models / "sft", models / "rm", new=129)
    assert error.code is codes.TOO_LONG_FOR_MODEL
    assert error.where == "spec.stages.ppo.maxNewTokens"


def test_tokenizer_with_ids_beyond_the_embedding(failing: Prepare, models: Path, tmp_path: Path) -> None:
    base = changed(models / "base", tmp_path / "base", "config.json", vocab_size=100)
    error = failing(Stage.SFT, base)
    assert error.code is codes.TOKENIZER_MISMATCH
    assert "the embedding has only 100 rows" in error.message


def test_base_without_tokenizer(failing: Prepare, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "base", tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    assert failing(Stage.SFT, tmp_path / "base").code is codes.UNUSABLE_TOKENIZER


@pytest.mark.parametrize("harm", ["cut", "missing", "config"])
def test_damaged_base(failing: Prepare, models: Path, tmp_path: Path, harm: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(models / "base", base)
    weights = base / "model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "missing":
        weights.unlink()
    else:
        (base / "config.json").write_text('{"model_type": "nobody"}')
    error = failing(Stage.SFT, base)
    assert error.code is codes.UNUSABLE_MODEL
    assert str(base) in str(error.where)


def test_sft_does_not_start_from_an_adapter(failing: Prepare, models: Path) -> None:
    assert failing(Stage.SFT, models / "sft").code is codes.NOT_A_FULL_MODEL


@pytest.mark.parametrize("role", ["from", "reward"])
@pytest.mark.parametrize("difference", ["layers", "name", "tokenizer", "half", "damaged"])
def test_adapters_that_do_not_fit(
    failing: Prepare, models: Path, tmp_path: Path, role: str, difference: str
) -> None:
    made = models / ("sft" if role == "from" else "rm")
    adapter = tmp_path / "adapter"
    shutil.copytree(made, adapter)
    weights = adapter / "adapter_model.safetensors"
    expected: Code = codes.ADAPTER_MISMATCH
    if difference == "layers":
        tensors = {name: tensor for name, tensor in load_file(weights).items() if ".layers.1." not in name}
        save_file(tensors, weights)
    elif difference == "name":
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(models / "other")
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    elif difference == "tokenizer":
        expected = codes.TOKENIZER_MISMATCH
        content = json.loads((adapter / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        first, second = list(vocabulary)[300:302]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        (adapter / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    elif difference == "half":
        expected = codes.UNUSABLE_ADAPTER
        tensors = load_file(weights)
        del tensors[next(name for name in tensors if ".lora_B." in name)]
        save_file(tensors, weights)
    else:
        expected = codes.UNUSABLE_ADAPTER
        (adapter / "adapter_config.json").write_text("{")
    start, reward = (adapter, models / "rm") if role == "from" else (models / "sft", adapter)
    error = failing(Stage.PPO, start, reward)
    assert error.code is expected, error
    assert isinstance(error, DataError)


def test_a_reward_model_without_a_head(failing: Prepare, models: Path) -> None:
    assert failing(Stage.PPO, models / "sft", models / "sft").code is codes.NO_REWARD_HEAD
    assert failing(Stage.PPO, models / "sft", models / "base").code is codes.NO_REWARD_HEAD


def test_a_model_with_code_of_its_own_is_told_from_a_damaged_one(
    failing: Prepare, models: Path, tmp_path: Path
) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}
    base = changed(
        models / "base", tmp_path / "base", "config.json", model_type="baichuan", auto_map=auto_map
    )
    error = failing(Stage.SFT, base)
    assert error.code is codes.UNSUPPORTED_MODEL
    assert "Llama layout" in str(error.remedy)


def test_the_documents_template_is_used_in_place_of_the_tokenizers_and_says_so(
    failing: Prepare, models: Path
) -> None:
    said: list[str] = []

    def told(template: str) -> ZhongjingError:
        said.clear()
        return failing(
            Stage.SFT, models / "base", said=lambda message, _: said.append(message), chatTemplate=template
        )

    notice = "base.chatTemplate is used in place of the tokenizer's chat template"
    assert told(PLAIN_TEMPLATE).code is storage_codes.STORAGE_UNREACHABLE
    assert notice in said
    own = load_tokenizer(models / "base").chat_template
    assert told(str(own)).code is storage_codes.STORAGE_UNREACHABLE
    assert notice not in said
    # One that cannot be trained with is told, with nothing tokenised.
    refused = told("{% for m in messages %}{{ m.role + m.content }}{% endfor %}")
    assert refused.code is document_codes.INVALID_TEMPLATE
    assert not any("tokenising" in message for message in said)


@pytest.mark.parametrize("name", ["qwen2.5-base", "llama-3", "llama-3-eot", "llama-2-chat"])
def test_bases_as_they_are_published_pass(failing: Prepare, models: Path, tmp_path: Path, name: str) -> None:
    """Their EOS pads, or nothing does (QwenLM/Qwen3 #1064, unsloth #416)."""
    base = changed(models / "base", tmp_path / "base", "config.json", vocab_size=1024)
    for file in base.glob("*token*"):
        file.unlink()
    (base / "chat_template.jinja").unlink(missing_ok=True)
    write_tokenizer(base, name)
    assert failing(Stage.SFT, base).code is storage_codes.STORAGE_UNREACHABLE


def test_a_tokenizer_of_pieces_is_stored_as_what_anybody_reads_alike(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where template and padding are its own: training, export and serving read the stored files."""
    base, stored = tmp_path / "base", tmp_path / "stored"
    write_tokenizer(base, "yi-chat")
    kept: dict[str, str] = {}

    class Store:
        def exists(self, uri: str) -> bool:
            return uri in kept

        def upload_folder(self, folder: Path, uri: str) -> list[Any]:
            shutil.copytree(folder, stored)
            return []

        def put(self, uri: str, data: bytes, *, if_none_match: bool) -> None:
            kept[uri] = data.decode()

    monkeypatch.setattr("zhongjing.train.job.folders.Folders.outline", lambda *_: stored)
    document = resolve(parse_document(DOCUMENT.format(base=base, length=64, new=32), "x"))
    request = StageRequest(
        stage=Stage.SFT, key="k", attempt=1, submission_id="x-1", document=document, sources=[], inputs=[]
    )
    store: Any = Store()
    work = _Preparation(request, store, Layout("s3://n", "local", "x"), tmp_path / "s" / "x", lambda *_: None)
    uri, folder = work._tokenizer(str(base), base)
    assert folder == stored
    assert list(kept) == [f"{uri}/{MADE}"]
    assert (stored / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(str(stored)), load_tokenizer(base)
    for text in ("头痛", "  头痛", "<|im_start|>user\n 头痛<|im_end|> 多休息"):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize(
    ("least", "metrics", "ending"),
    [
        (None, {"accuracy": 0.8, "accuracy_low": 0.7, "longer_accuracy": 0.5}, ""),
        (None, {"accuracy": 0.48, "accuracy_low": 0.3, "longer_accuracy": 0.2}, "above chance"),
        (None, None, "not known"),
        (0.6, None, "cannot be held"),
        (0.6, {"accuracy": 0.8, "accuracy_low": 0.7, "longer_accuracy": 0.5}, ""),
        (0.6, {"accuracy": 0.59, "accuracy_low": 0.55, "longer_accuracy": 0.5}, "error"),
    ],
)
def test_a_weak_reward_model_is_warned_of_or_refused_before_ppo_uses_it(
    tmp_path: Path, least: float | None, metrics: dict[str, float] | None, ending: str
) -> None:
    """What ``ppo.minRewardAccuracy`` does with what the rm stage measured."""
    user = parse_document(DOCUMENT.format(base=tmp_path, length=64, new=32), "x")
    user["spec"]["stages"]["ppo"]["minRewardAccuracy"] = least
    settings = resolve(user).spec.stages.ppo
    assert settings is not None
    judged: Any = (
        None
        if metrics is None
        else type("Manifest", (), {"metrics": {"accuracy_high": 0.9, "pairs": 21.0, **metrics}})
    )
    work = object.__new__(_Preparation)
    if ending == "error":
        with pytest.raises(DataError) as caught:
            work._check_accuracy(settings, "s3://b/rm/k/model", judged)
        assert caught.value.code is codes.WEAK_REWARD_MODEL
        assert "0.590 on its 21 held-out pairs" in caught.value.message
        return
    found = work._check_accuracy(settings, "s3://b/rm/k/model", judged)
    assert len(found) == bool(ending)
    assert all(ending in sentence for sentence in found)
