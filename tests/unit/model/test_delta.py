"""Deltas made by their publishers' rules: merged to the bit, and refused by another rule or root."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from tests.published_bases import POSITIONS, ROWS, TOKENS, Published, publish_ziya
from zhongjing.config.sources import Base, DeltaRule
from zhongjing.errors import DataError
from zhongjing.model.delta import MERGE_FILE, SENTENCES, merge_delta
from zhongjing.model.tokenizer import TOKENIZER_FILES
from zhongjing.model.weights import WeightReader

Publish = Callable[[DeltaRule], Published]
RULES: list[DeltaRule] = ["fengshen", "fastchat"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    made: dict[DeltaRule, Published] = {}

    def publish(rule: DeltaRule) -> Published:
        if rule not in made:
            made[rule] = publish_ziya(tmp_path_factory.mktemp("published"), rule)
        return made[rule]

    return publish


@pytest.mark.parametrize("rule", RULES)
def test_the_publishers_rule_gives_the_model(
    rule: DeltaRule, published: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = published(rule), tmp_path / "out"
    monkeypatch.setattr("zhongjing.model.weights.SHARD_BYTES", 100_000)
    told: list[float] = []
    merge = merge_delta(source.delta, source.root, out, rule, told.append)
    assert merge.perplexity < 100
    assert json.loads((out / MERGE_FILE).read_text()) == {"rule": rule, "perplexity": merge.perplexity}
    assert told == sorted(told)
    assert len(list(out.glob("*.safetensors"))) > 2
    with WeightReader(out) as merged:
        assert sorted(merged) == sorted(source.target)
        for name, tensor in source.target.items():
            # The difference was rounded to fp16 once; what stands whole is equal to the bit.
            torch.testing.assert_close(merged.get(name), tensor, rtol=2e-3, atol=2e-4, msg=name)
            if rule == "fengshen" and ("embed_tokens" in name or "lm_head" in name):
                assert torch.equal(merged.get(name), tensor)
    model = LlamaForCausalLM.from_pretrained(str(out))
    assert (model.config.vocab_size, model.config.max_position_embeddings) == (ROWS, POSITIONS)
    assert model.dtype is torch.float16
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert len(tokenizer) == TOKENS
    assert tokenizer.convert_tokens_to_ids("<bot>") == TOKENS - 1
    assert 2 in GenerationConfig.from_pretrained(str(out)).eos_token_id


def test_the_perplexity_is_that_of_each_sentence_by_itself(published: Publish, tmp_path: Path) -> None:
    source = published("fengshen")
    merge = merge_delta(source.delta, source.root, tmp_path, "fengshen")
    model = LlamaForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    total, count = 0.0, 0
    for sentence in SENTENCES:
        ids = torch.tensor([tokenizer(sentence)["input_ids"]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert merge.perplexity == pytest.approx(math.exp(total / count), rel=5e-3)


@pytest.mark.parametrize(("published_by", "merged_by"), [RULES, RULES[::-1]])
def test_the_other_rule_is_refused_and_named(
    published_by: DeltaRule, merged_by: DeltaRule, published: Publish, tmp_path: Path
) -> None:
    source = published(published_by)
    with pytest.raises(DataError, match=f"rule {published_by}, not {merged_by}") as refused:
        merge_delta(source.delta, source.root, tmp_path / "out", merged_by)
    assert refused.value.where == "spec.base.deltaRule"
    assert refused.value.remedy == f"set base.deltaRule: {published_by}"


def test_another_release_of_the_root_is_refused_by_its_perplexity(published: Publish, tmp_path: Path) -> None:
    source = published("fengshen")
    other = tmp_path / "root"
    other.mkdir()
    for path in source.root.iterdir():
        if path.suffix != ".bin":
            (other / path.name).write_bytes(path.read_bytes())
    random = torch.Generator().manual_seed(1)
    tensors = torch.load(source.root / "pytorch_model.bin")
    noise = {name: 0.5 * torch.randn(t.shape, generator=random).half() for name, t in tensors.items()}
    # The vocabulary is the same: LLaMA's other releases share it.
    noise |= {name: t for name, t in tensors.items() if "embed_tokens" in name or "lm_head" in name}
    torch.save(noise, other / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot read: perplexity"):
        merge_delta(source.delta, other, tmp_path / "out", "fengshen")


def test_a_root_of_another_shape_is_refused_by_the_tensors_name(published: Publish, tmp_path: Path) -> None:
    source = published("fengshen")
    name = "model.layers.1.mlp.up_proj.weight"
    root = tmp_path / "root"
    root.mkdir()
    (root / "config.json").write_bytes((source.root / "config.json").read_bytes())
    tensors = torch.load(source.root / "pytorch_model.bin")
    torch.save({**tensors, name: tensors[name][:-1].clone()}, root / "pytorch_model.bin")
    with pytest.raises(DataError, match=name):
        merge_delta(source.delta, root, tmp_path / "shape", "fengshen")
    del tensors[name]
    torch.save(tensors, root / "pytorch_model.bin")
    with pytest.raises(DataError, match=name):
        merge_delta(source.delta, root, tmp_path / "missing", "fengshen")


def test_a_delta_without_a_tokenizer_is_refused_before_the_merge(published: Publish, tmp_path: Path) -> None:
    source = published("fengshen")
    delta = tmp_path / "delta"
    delta.mkdir()
    for path in source.delta.iterdir():
        if path.name not in TOKENIZER_FILES:
            (delta / path.name).symlink_to(path)
    with pytest.raises(DataError, match="tokenizer") as caught:
        merge_delta(delta, source.root, tmp_path / "out", "fengshen")
    assert caught.value.where == str(delta)
    assert not (tmp_path / "out").exists()


def test_the_rule_is_known_for_published_ids_and_asked_for_otherwise() -> None:
    assert Base(delta="IDEA-CCNL/Ziya-LLaMA-13B-v1", root="r").rule_of_delta == "fengshen"
    assert Base(delta="lmsys/vicuna-13b-delta-v1.1", root="r").rule_of_delta == "fastchat"
    with pytest.raises(ValidationError, match=r"set base\.deltaRule"):
        Base(delta="s3://bucket/ziya", root="r")
    assert Base(delta="s3://bucket/ziya", root="r", delta_rule="fengshen").rule_of_delta == "fengshen"
