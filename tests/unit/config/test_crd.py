"""The CRD as it is made from the models. What the API server makes of it: tests/cluster/test_crd_api.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from pydantic import BaseModel, Field

from tools import crd, crd_rules, crd_schema, crd_status
from tools.crd_schema import UnstructuralSchemaError, structural
from zhongjing.config import resolve
from zhongjing.config.stages import TRAINING, Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline import graph
from zhongjing.pipeline.state import ConditionType, StageState, StageStatus
from zhongjing.storage.progress import Failure

ROOT = Path(__file__).parents[3]
RULES = "x-kubernetes-validations"


def schema() -> dict[str, Any]:
    found: dict[str, Any] = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with the path of its field."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from nodes(node["additionalProperties"], f"{path}.*")


def spec_nodes() -> list[tuple[str, dict[str, Any]]]:
    return list(nodes(schema()["properties"]["spec"], "spec"))


def test_the_text_of_the_definition_holds_all_of_it() -> None:
    assert yaml.safe_load(crd.crd_yaml()) == crd.crd()


def test_the_rest_of_the_values_schema_is_left_alone() -> None:
    rest = {"type": "object", "$defs": {"other": {"type": "string"}}, "properties": {"药": {"type": "null"}}}
    written = json.loads(crd.values_schema(json.dumps(rest)))
    assert written["$defs"].pop("pipelineSpec") == crd.pipeline_values_schema()
    assert written == rest
    # One that is up to date keeps the form that its author gave it.
    compact = json.dumps({**rest, "$defs": {"pipelineSpec": crd.pipeline_values_schema()}})
    assert crd.values_schema(compact) == compact


def test_a_client_side_apply_can_hold_it_in_its_annotation() -> None:
    assert len(json.dumps(crd.crd(), ensure_ascii=False).encode()) < 262144


def test_all_of_the_spec_is_bounded_described_and_without_what_the_api_server_refuses() -> None:
    refused = {"default", "anyOf", "oneOf", "allOf", "not", "const", "$ref", "title", "nullable"}
    for path, node in spec_nodes():
        assert not refused & node.keys(), path
        assert not ("properties" in node and "additionalProperties" in node), path
        if not path.endswith(("[]", ".*")) and ".reruns." not in path:
            assert node["description"], path
        if "enum" in node:
            continue
        match node["type"]:
            case "string":
                assert "maxLength" in node, path
            case "array":
                assert "maxItems" in node, path
            case "integer" | "number":
                assert {"minimum", "maximum"} <= node.keys(), path
                assert isinstance(node.get("exclusiveMinimum", True), bool), path
                assert isinstance(node.get("exclusiveMaximum", True), bool), path
            case "object":
                assert "properties" in node, path


def test_a_field_tells_its_unit_default_and_source() -> None:
    found = dict(spec_nodes())
    assert found["spec.stages.pretrain.maxLength"]["description"] == (
        "Longest sequence, history included. Unit: tokens. Default: 4096. Source: paper section 4."
    )
    assert found["spec.stages.ppo.gamma"] == {
        "description": "Discount. Default: 1.0.",
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
    }
    assert found["spec.stages.rm.tuning"]["enum"] == ["lora"]
    assert set(found["spec.reruns"]["properties"]) == set(Stage)


class _Inner(BaseModel):
    text: str = Field("x", max_length=3)


class _Ring(BaseModel):
    ring: _Ring | None = None


class _Union(BaseModel):
    field: Annotated[int, Field(ge=0, le=1)] | Annotated[str, Field(max_length=3)] = 0


class _TwoModels(BaseModel):
    field: _Inner | _Ring | None = None


class _Unbounded(BaseModel):
    field: int = Field(0, ge=0)


class _LongText(BaseModel):
    inner: list[str] = Field(default_factory=list, max_length=3)


class _LongMap(BaseModel):
    field: dict[str, bool] = Field(default_factory=dict)


class _Anything(BaseModel):
    field: Any = None


class _Format(BaseModel):
    field: bytes = Field(b"", max_length=3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Ring, "ring.*: _Ring holds itself"),
        (_Union, "^field: is a union of types"),
        (_TwoModels, "^field: is a union of types"),
        (_Unbounded, "^field: has no maximum"),
        (_LongText, r"^inner\[\]: has no maxLength"),
        (_LongMap, "^field: has no maxProperties"),
        (_Anything, "^field: has no type"),
        (_Format, "^field: has format, which a CRD cannot express"),
    ],
)
def test_a_model_that_a_crd_cannot_express_is_an_error(model: type[BaseModel], message: str) -> None:
    with pytest.raises(UnstructuralSchemaError, match=message):
        structural(model.model_json_schema())


def test_the_converter_on_one_of_everything() -> None:
    class Everything(BaseModel):
        """All that the document uses."""

        maybe: _Inner | None = Field(None, description="A part.")
        share: float = Field(0.5, gt=0, lt=1)
        one: Literal["a"] = "a"
        stages: dict[Stage, bool] = Field(default_factory=dict, max_length=5)
        names: dict[str, bool] = Field(default_factory=dict, max_length=5)
        must: bool

    assert structural(Everything.model_json_schema()) == {
        "description": "All that the document uses.",
        "type": "object",
        "required": ["must"],
        "properties": {
            "maybe": {
                "description": "A part.",
                "type": "object",
                "properties": {"text": {"description": "Default: x.", "type": "string", "maxLength": 3}},
            },
            "share": {
                "description": "Default: 0.5.",
                "type": "number",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 1,
                "exclusiveMaximum": True,
            },
            "one": {"description": "Default: a.", "type": "string", "enum": ["a"]},
            "stages": {
                "type": "object",
                "maxProperties": 5,
                "properties": {stage.value: {"type": "boolean"} for stage in Stage},
            },
            "names": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "boolean"}},
            "must": {"type": "boolean"},
        },
    }


def test_the_values_schema_is_draft_07_and_takes_the_recipes() -> None:
    found = crd.pipeline_values_schema()
    jsonschema.Draft7Validator.check_schema(found)
    text = json.dumps(found)
    assert "x-kubernetes" not in text
    assert "$ref" not in text
    validator = jsonschema.Draft7Validator(found)
    for name in resolve.recipe_names():
        validator.validate(resolve.recipe(name)["spec"])


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("spec.stages.sft.learningRte=1", "stages.sft"),
        ("spec.stages.sft.epochs=0", "stages.sft.epochs"),
        ("spec.stages.sft.epochs=1001", "stages.sft.epochs"),
        ("spec.stages.sft.lora.dropout=1", "stages.sft.lora.dropout"),
        ("spec.seed=often", "seed"),
        ("spec.sources.textbook.kind=song", "sources.0.kind"),
        ("spec.reruns={dance: 1}", "reruns"),
        ("spec.sorces=[]", ""),
    ],
)
def test_the_values_schema_refuses_what_is_wrong_by_itself(override: str, path: str) -> None:
    spec = resolve.apply_overrides(resolve.recipe("tiny"), [override])["spec"]
    errors = list(jsonschema.Draft7Validator(crd.pipeline_values_schema()).iter_errors(spec))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [path]


def _shape(node: dict[str, Any], defs: dict[str, Any]) -> Any:
    """Types of a pydantic JSON schema, nested."""
    if "$ref" in node:
        node = defs[node["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in node:
        return next(_shape(option, defs) for option in node["anyOf"] if option.get("type") != "null")
    if "properties" in node:
        return {name: _shape(field, defs) for name, field in node["properties"].items()}
    if node["type"] == "array":
        return [_shape(node["items"], defs)]
    return node["type"]


def _model_shape(model: type[BaseModel]) -> Any:
    found = model.model_json_schema(by_alias=True)
    return _shape(found, found.get("$defs", {}))


def test_the_status_of_a_stage_has_the_fields_of_the_sequencers() -> None:
    found = crd_status.stage_status()
    shape = _shape(found, {})
    progress = shape.pop("progress")
    assert shape == _model_shape(StageStatus)
    assert shape["failure"] == _model_shape(Failure)
    assert progress["metrics"] == "object"


def test_the_status_speaks_of_all_states_and_conditions() -> None:
    """Both are text that no enumeration closes: an old CRD must not refuse a newer controller's status."""
    status = crd_status.status_schema()["properties"]
    assert set(status["stages"]["properties"]) == set(Stage)
    told = status["stages"]["properties"]["sft"]["properties"]["state"]["description"]
    assert all(re.search(rf"\b{state}\b", told) for state in StageState)
    conditions = status["conditions"]["items"]["properties"]["type"]["description"]
    assert all(type_ in conditions for type_ in ConditionType)


def test_a_status_may_be_long() -> None:
    """What the controller has to say must not be refused for its length."""
    limits = {"maxItems", "maxProperties", "pattern", "maximum", "minimum"}
    for path, node in nodes(crd_status.status_schema(), "status"):
        assert not limits & node.keys(), path
        if "maxLength" in node:
            assert path.endswith((".state", "conditions[].type")), path


def test_the_columns_are_the_ones_people_know() -> None:
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"].upper() for column in columns if not column.get("priority")]
    assert shown == ["TARGETS", "STAGE", "STATE", "PROGRESS", "ETA", "METRIC", "AGE"]
    properties = schema()["properties"]
    for column in columns:
        part, name = column["jsonPath"].split(".")[1:3]
        if part == "status":
            assert name.partition("[")[0] in properties["status"]["properties"]


def test_every_rule_has_one_line_and_a_place_that_exists() -> None:
    rules = 0
    for path, node in nodes(schema()):
        for rule in node.get(RULES, []):
            rules += 1
            assert rule["message"], path
            assert "\n" not in rule["message"] + rule["rule"], path
            here = node
            for part in rule.get("fieldPath", "").split(".")[1:]:
                here = here["properties"][part]
    assert rules == len(crd_rules.transition_rules() + crd_rules.spec_rules() + crd_rules.base_rules()) + len(
        crd_rules.tiny_rules()
    ) + sum(len(crd_rules.stage_rules(stage)) for stage in TRAINING) + len(
        crd_rules.source_rules() + crd_rules.made_rules() + crd_rules.author_rules()
    )


def test_what_runs_is_what_the_sequencer_calls_active() -> None:
    active = {state.value for state in StageState if state.is_active}
    frozen = [rule["rule"] for rule in crd_rules.transition_rules()]
    assert all(set(re.findall(r"state\.orValue\(''\) == '(\w+)'", rule)) == active for rule in frozen)


def test_the_rules_of_inputs_are_those_of_the_graph() -> None:
    for (stage, role), allowed in crd_rules.INPUTS.items():
        for name in ("base", *Stage, "s3://elsewhere/model"):
            override = f"spec.stages.{stage}.{role}={name}"
            document = resolve.resolve(resolve.recipe("tiny"), [override])
            taken = True
            try:
                graph.needs(document, stage)
            except ConfigError:
                taken = False
            assert taken == (name in allowed or name.startswith("s3:")), override
    roles = {(need_stage, role) for need_stage, role in crd_rules.INPUTS}
    fields = {(stage, "from") for stage in TRAINING} | {(Stage.PPO, "reward")}
    assert roles == fields


def test_a_stage_must_name_its_data() -> None:
    """The models fill in an empty list when it is left out, and refuse one that is written."""
    stages = schema()["properties"]["spec"]["properties"]["stages"]["properties"]
    assert {stage: stages[stage]["required"] for stage in TRAINING} == {name: ["data"] for name in TRAINING}


def test_plain_json_schema_turns_exclusive_bounds_into_numbers() -> None:
    node = {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 2}
    assert crd_schema.plain_json_schema(node) == {"type": "number", "exclusiveMinimum": 0, "maximum": 2}


@pytest.mark.parametrize("name", ["tiny", "zhongjing-13b"])
def test_the_examples_of_the_cluster_are_the_recipes(name: str) -> None:
    """But for the places of the data and for what only a cluster has."""
    recipe = resolve.resolve(resolve.recipe(name))
    example = resolve.resolve(resolve.load_document(ROOT / "k8s" / "examples" / f"{name}.yaml"))
    assert example.metadata == recipe.metadata
    assert example.spec.stages == recipe.spec.stages
    assert example.spec.base == recipe.spec.base
    assert example.spec.seed == recipe.spec.seed
    assert [source.uri for source in example.spec.sources if not source.place.startswith("s3://")] == []
    places = {source.name: {"uri": source.uri} for source in example.spec.sources}
    assert example.spec.sources == [
        source.model_copy(update=places[source.name]) for source in recipe.spec.sources
    ]
