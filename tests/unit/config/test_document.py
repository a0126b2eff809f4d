"""The document: loading, overriding, freezing, keys, and what is generated from the models."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from zhongjing.config import keys, resolve
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import RopeScaling
from zhongjing.config.stages import SftSettings, Stage
from zhongjing.errors import ConfigError

ROOT = Path(__file__).parents[3]

DOCUMENT = """\
metadata: {name: x}
spec:
  base: {tiny: {}}
  sources:
  - {name: books, uri: books.txt, kind: text}
  - {name: talks, uri: talks.jsonl, kind: dialogue}
  - {name: ranked, uri: ranked.jsonl, kind: ranking}
  stages:
    pretrain:
      data: [{source: books}]
    sft:
      data: [{source: talks}]
    rm:
      data: [{source: ranked}]
    ppo:
      data: [{source: talks}]
"""
DIGESTS = {"books": "b1", "talks": "t1", "ranked": "r1"}


def document(*overrides: str) -> TrainingPipeline:
    return resolve.resolve(resolve.parse_document(DOCUMENT, "my.yaml"), overrides)


def all_models(model: type[BaseModel] = TrainingPipeline) -> set[type[BaseModel]]:
    found = {model}
    for info in model.model_fields.values():
        stack = [info.annotation]
        while stack:
            annotation = stack.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= all_models(annotation)
            stack += typing.get_args(annotation)
    return found


def test_every_field_is_tagged_and_described() -> None:
    for model in all_models():
        for name, info in model.model_fields.items():
            extra = info.json_schema_extra
            assert isinstance(extra, dict), f"{model.__name__}.{name}"
            assert extra["x-tag"] in ("training", "operational"), f"{model.__name__}.{name}"
            assert info.description, f"{model.__name__}.{name}"


def test_defaults_are_the_papers_table_4() -> None:
    stages = document().spec.stages
    table = {
        Stage.PRETRAIN: (5e-5, 4, 64),
        Stage.SFT: (7e-5, 3, 64),
        Stage.RM: (1e-4, 10, 32),
        Stage.PPO: (5e-5, 2, 32),
    }
    for stage, (learning_rate, epochs, batch) in table.items():
        settings = stages.get(stage)
        assert settings is not None
        assert (settings.learning_rate, settings.epochs, settings.global_batch_size) == (
            learning_rate,
            epochs,
            batch,
        )
    assert stages.sft is not None
    assert stages.rm is not None
    assert stages.ppo is not None
    assert stages.pretrain is not None
    assert {stages.sft.lora.rank, stages.rm.lora.rank, stages.ppo.lora.rank} == {16}
    assert stages.pretrain.tuning == "full"
    assert stages.sft.max_length == 4096


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("      learningRte: 3\n", "line 17: spec.stages.ppo.learningRte: unknown key .* 'learningRate'"),
        ("      epochs: many\n", "spec.stages.ppo.epochs: should be a valid number.* not 'many'"),
        ("      epochs: 0\n", "should be greater than 0, not 0"),
        ("      precision: fp8\n", "should be 'auto', 'fp32', 'fp16' or 'bf16', not 'fp8'"),
        (
            "      maxNewTokens: 4090\n",
            "maxNewTokens 4090 leaves a prompt fewer than 8 tokens",
        ),
        ("      minibatches: 5\n", "globalBatchSize must be a multiple of minibatches"),
        ("  seed: [\n", "line 18, column 1: is not valid YAML"),
        ("  seed: 1\n  seed: 2\n", "key 'seed' is given twice"),
        ("  targets: [evaluation, dance]\n", "spec.targets"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(line: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        resolve.resolve(resolve.parse_document(DOCUMENT + line, "my.yaml"))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "1.0e-4", "0.0001", "+1e-04"])
def test_numbers_are_numbers_as_kubectl_reads_them(text: str) -> None:
    user = resolve.apply_overrides(
        resolve.parse_document(DOCUMENT, "my.yaml"), [f"spec.stages.sft.learningRate={text}"]
    )
    assert user["spec"]["stages"]["sft"]["learningRate"] == 1e-4
    parsed = resolve.parse_document(DOCUMENT + f"      learningRate: {text}\n", "my.yaml")
    assert parsed["spec"]["stages"]["ppo"]["learningRate"] == 1e-4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("spec.stages.rm.data=[{source: talks}]", "kind dialogue, but rm reads ranking"),
        ("spec.stages.rm.data=[{source: nothing}]", "no source is named 'nothing' .there is: books, talks"),
        ("spec.sources.nothing.uri=x", "there is no element 'nothing' .there is: books, talks, ranked"),
        ("spec.sources.talks.split=test", "is test data"),
        ("spec.seed", "takes path=value"),
        ("spec.base={uri: IDEA-CCNL/Ziya-LLaMA-13B-v1}", "use base.delta with base.root"),
        ("spec.base={delta: x}", "delta and root belong together"),
        (
            "spec={base: {tiny: {}}, sources: [{name: talks, uri: t, kind: dialogue}], targets: [rm], "
            "stages: {sft: {data: [{source: talks}]}}}",
            "the pipeline has no stage rm",
        ),
        ("spec.stages.sft.learning_rate=1e-4", "did you mean 'learningRate'"),
        ("spec.stages.sft.lora={target_modules: [q_proj]}", "did you mean 'targetModules'"),
        ("spec.stages.sft={data: [{source: talks}], from_: base}", "did you mean 'from'"),
        ("spec.sources.books.uri=${ZHONGJING_NOT_SET}", "ZHONGJING_NOT_SET is not set"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        document(override)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("sft.epochs=4", "spec.stages.sft"),
        ("spec.sft.epochs=4", "spec.stages.sft"),
        ("seed=4", "spec.seed"),
        ("spec.seeed=4", "seed"),
    ],
)
def test_a_field_on_another_level_is_named_with_its_full_path(override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        document(override)


@pytest.mark.parametrize("field", ["metadata.name", "spec.sources.books.name"])
def test_a_name_in_chinese_is_told_what_names_are_made_of(field: str) -> None:
    with pytest.raises(ConfigError, match=r"takes small Latin letters, digits and hyphens.*not '医院'"):
        document(f"{field}=医院")


def test_a_number_with_a_colon_is_text_as_kubectl_reads_it() -> None:
    """YAML 1.2 has no sexagesimal numbers: 1:30 is no 90."""
    with pytest.raises(ConfigError, match="should be a valid integer"):
        document("spec.stages.sft.maxLength=1:30")


@pytest.mark.parametrize(
    ("old", "new", "code", "where"),
    [
        ("stages:", "stagez:", "UnknownField", "my.yaml, line 8: spec.stagez"),
        ("    sft:", "    sftt:", "UnknownStage", "my.yaml, line 11: spec.stages.sftt"),
        ("uri: books.txt, ", "", "MissingField", "my.yaml, line 5: spec.sources[0].uri"),
        ("base: {tiny: {}}", "base: {tiny: 3}", "InvalidValue", "my.yaml, line 3: spec.base.tiny"),
        ("base: {tiny: {}}", "seed: -1\n  base: {tiny: {}}", "InvalidValue", "my.yaml, line 3: spec.seed"),
        (
            "      data: [{source: ranked}]",
            "      data: [{source: talks}]",
            "WrongSourceKind",
            "my.yaml, line 14: spec.stages.rm.data[0]",
        ),
        (
            "      data: [{source: ranked}]",
            "      data: [{source: gone}]",
            "InvalidReference",
            "my.yaml, line 14: spec.stages.rm.data[0]",
        ),
        ("name: ranked", "name: talks", "InvalidValue", "my.yaml, line 7: spec.sources[2].name"),
    ],
)
def test_a_wrong_document_has_a_code_and_a_line(old: str, new: str, code: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve.resolve(resolve.parse_document(DOCUMENT.replace(old, new), "my.yaml"))
    assert (caught.value.code.name, caught.value.where) == (code, where)


def test_several_problems_are_all_listed_and_the_first_gives_the_code() -> None:
    text = DOCUMENT.replace("    rm:\n", "    rm:\n      learningRte: 1\n      epochs: many\n")
    with pytest.raises(ConfigError) as caught:
        resolve.resolve(resolve.parse_document(text, "my.yaml"))
    error = caught.value
    lines = [f"{error.where}: {error.message.splitlines()[0]}", *error.message.splitlines()[1:]]
    assert sorted(lines) == [
        "my.yaml, line 14: spec.stages.rm.learningRte: unknown key (did you mean 'learningRate'?)",
        "my.yaml, line 15: spec.stages.rm.epochs: should be a valid number, "
        "unable to parse string as a number, not 'many'",
    ]
    first = "UnknownField" if error.where is not None and "learningRte" in error.where else "InvalidValue"
    assert error.code.name == first


@pytest.mark.parametrize(
    ("override", "code", "where"),
    [
        ("spec.stages.sft.epochs=many", "InvalidValue", "--set spec.stages.sft.epochs"),
        ("spec.stages.sft.learningRte=1", "UnknownField", "--set spec.stages.sft.learningRte"),
        ("spec.sources.talks.kind=text", "WrongSourceKind", "my.yaml, line 12: spec.stages.sft.data[0]"),
        ("spec.sources.talks.kind=songs", "InvalidValue", "--set spec.sources[1].kind"),
        ("spec.targets=[sft, dance]", "UnknownStage", "--set spec.targets[1]"),
        ("spec.stages.sft.precision=fp16", "InvalidPrecision", "--set spec.stages.sft.precision"),
        ("sft.epochs=4", "UnknownField", "--set sft.epochs"),
        ("spec.seed", "InvalidOverride", None),
        ("spec.sources.books.uri=${ZHONGJING_NOT_SET}", "UnsetVariable", "--set spec.sources[0].uri"),
    ],
)
def test_what_came_by_set_is_not_looked_for_in_the_file(override: str, code: str, where: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        document(override)
    assert (caught.value.code.name, caught.value.where) == (code, where)


def test_fp16_with_a_gpu_is_taken() -> None:
    document("spec.stages.sft.precision=fp16", "spec.stages.sft.resources.gpus=1")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [", "InvalidYaml"),
        ("\ta: 1", "InvalidYaml"),
        ("", "NotATrainingPipeline"),
        ("[1, 2]", "NotATrainingPipeline"),
        ("kind: Pod\nspec: {}", "NotATrainingPipeline"),
        ("metadata: {name: x}", "NotATrainingPipeline"),
    ],
)
def test_what_is_no_document_says_so(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve.parse_document(text, "my.yaml")
    assert caught.value.code.name == code
    assert str(caught.value.where).startswith("my.yaml")


def test_overrides_reach_fields_and_named_list_elements() -> None:
    result = document("spec.stages.sft.learningRate=1e-4", "spec.sources.books.uri=other.txt", "spec.seed=7")
    assert result.spec.stages.sft is not None
    assert result.spec.stages.sft.learning_rate == 1e-4
    assert result.spec.source("books").uri == "other.txt"
    assert result.spec.seed == 7


def test_yaml_anchors_and_merges_work() -> None:
    text = DOCUMENT.replace(
        "    sft:\n      data: [{source: talks}]\n",
        "    sft: &s {data: [{source: talks}], epochs: 2}\n",
    ).replace("    ppo:\n      data", "    ppo:\n      <<: *s\n      epochs: 1\n      data")
    stages = resolve.resolve(resolve.parse_document(text, "my.yaml")).spec.stages
    assert stages.sft is not None
    assert stages.ppo is not None
    assert (stages.sft.epochs, stages.ppo.epochs) == (2, 1)


def test_a_document_survives_yaml() -> None:
    first = document()
    assert resolve.resolve(resolve.parse_document(resolve.to_yaml(first), "again")) == first


@pytest.mark.parametrize("name", resolve.recipe_names())
def test_recipes_are_valid(name: str) -> None:
    assert resolve.resolve(resolve.recipe(name)).name == name


def frozen(sparse: dict[str, Any], resolved: TrainingPipeline) -> resolve.Frozen:
    return resolve.Frozen(sparse, resolved.model_dump(mode="json"))


def test_frozen_defaults_outlive_an_upgrade_and_what_is_written_wins() -> None:
    user = resolve.parse_document(DOCUMENT, "my.yaml")
    old = document("spec.stages.sft.maxGradientNorm=0.5", "spec.stages.sft.epochs=9")
    # The earlier version's default of maxGradientNorm was 0.5; the user had written epochs: 9.
    sparse = resolve.apply_overrides(user, ["spec.stages.sft.epochs=9"])
    now = resolve.resolve(user, ["spec.stages.sft.learningRate=1e-3"], frozen(sparse, old))
    assert now.spec.stages.sft is not None
    assert now.spec.stages.sft.max_gradient_norm == 0.5  # frozen default
    assert now.spec.stages.sft.epochs == 3  # taken back: the default again
    assert now.spec.stages.sft.learning_rate == 1e-3  # written


def key(stage: Stage, doc: TrainingPipeline, *, start: str = "k", rerun: int = 0, **digests: str) -> str:
    return keys.digest(keys.key_fields(doc, stage, {**DIGESTS, **digests}, {"from": start}, rerun))


def test_the_rule_of_a_delta_counts_the_same_whether_known_or_written() -> None:
    """And a base that was merged before there were rules is not found again: it may be merged wrongly."""

    def key(rule: str | None) -> str:
        base = {"delta": "IDEA-CCNL/Ziya-LLaMA-13B-v1", "root": "r", **({"deltaRule": rule} if rule else {})}
        return keys.base_key(document(f"spec.base={json.dumps(base)}"), DIGESTS)

    before = {"version": keys.KEY_VERSION, "base": {"delta": "IDEA-CCNL/Ziya-LLaMA-13B-v1", "root": "r"}}
    assert key(None) == key("fengshen") != key("fastchat")
    assert key(None) != keys.digest(before)


@pytest.mark.parametrize(
    ("scaling", "place"),
    [
        ({"ropeType": "dynamic", "factor": 2}, "ropeType"),
        ({"ropeType": "yarn", "factor": 2}, "originalMaxPositionEmbeddings"),
        (
            {
                "ropeType": "llama3",
                "factor": 2,
                "originalMaxPositionEmbeddings": 64,
                "lowFreqFactor": 4,
                "highFreqFactor": 1,
            },
            "lowFreqFactor",
        ),
        (
            {
                "ropeType": "yarn",
                "factor": 2,
                "originalMaxPositionEmbeddings": 64,
                "betaFast": 1,
                "betaSlow": 32,
            },
            "betaSlow",
        ),
    ],
    ids=["does nothing", "incomplete", "llama3 reversed", "yarn reversed"],
)
def test_scalings_of_positions_that_cannot_work_are_refused(scaling: dict[str, Any], place: str) -> None:
    """transformers' modeling_rope_utils warns of the reversed ones and goes on."""
    with pytest.raises(ValidationError, match=place):
        RopeScaling.model_validate(scaling)


def test_a_field_that_came_later_counts_only_when_it_is_set() -> None:
    settings = SftSettings.model_validate({"data": [{"source": "a"}]})
    assert "quantization" not in keys.training_fields(settings)
    chosen = settings.model_copy(update={"quantization": "nf4"})
    assert keys.training_fields(chosen)["quantization"] == "nf4"


def test_only_training_fields_change_a_key() -> None:
    first = key(Stage.SFT, document())
    for same in (
        "spec.stages.sft.workers=8",
        "spec.stages.sft.microBatchSize=2",
        "spec.stages.sft.logging.everySteps=9",
        "spec.sources.talks.uri=elsewhere.jsonl",
        "spec.stages.rm.learningRate=0.5",
        "spec.storage.endpoint=http://there",
        "spec.stages.sft.epochs=3.0",
        "spec.suspend=true",
    ):
        assert key(Stage.SFT, document(same)) == first, same
    for other in (
        "spec.stages.sft.learningRate=0.5",
        "spec.stages.sft.lora.rank=8",
        "spec.seed=1",
        "spec.sources.talks.category=general",
        "spec.sources.ranked.testFraction=0.5",
    ):
        assert key(Stage.SFT, document(other)) != first, other
    assert key(Stage.SFT, document(), talks="t2") != first
    assert key(Stage.SFT, document(), ranked="r2") == first
    assert key(Stage.SFT, document(), start="other") != first
    assert key(Stage.SFT, document(), rerun=1) != first


def test_a_tiny_base_depends_on_its_corpora_but_not_on_ranked_answers() -> None:
    first = keys.base_key(document(), DIGESTS)
    assert keys.base_key(document(), {**DIGESTS, "ranked": "later"}) == first
    assert keys.base_key(document(), {**DIGESTS, "books": "b2"}) != first
    assert keys.base_key(document("spec.base.tiny.layers=2"), DIGESTS) != first


def test_a_change_is_explained_by_its_path() -> None:
    old = keys.key_fields(document(), Stage.SFT, DIGESTS, {"from": "k"})
    new = keys.key_fields(document("spec.stages.sft.learningRate=0.5"), Stage.SFT, DIGESTS, {"from": "k"})
    assert keys.explain_change(old, new) == ["spec.stages.sft.learningRate: 7e-05 -> 0.5"]
    changed = document("spec.sources.talks.maxQuarantineFraction=0.5", "spec.stages.sft.data.0.weight=2")
    new = keys.key_fields(changed, Stage.SFT, {**DIGESTS, "talks": "t2"}, {"from": "k"})
    assert keys.explain_change(old, new, sources=["talks"]) == [
        "the content of source talks changed",
        "spec.sources.talks.maxQuarantineFraction: 0.01 -> 0.5",
        "spec.stages.sft.data[0].weight: null -> 2.0",
    ]
