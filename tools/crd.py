"""The CustomResourceDefinition of TrainingPipelines, made from the models.

``make generated`` writes it into the chart, the schema of a pipeline into that of the chart's values, and the
list of its fields beside the check that looks for them in a cluster.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from tools import crd_rules
from tools.crd_schema import Schema, plain_json_schema, structural
from tools.crd_status import printer_columns, status_schema
from zhongjing.cli.diagnosis.cluster import definition_fields
from zhongjing.config.pipeline import API_GROUP, API_VERSION, KIND, Metadata, PipelineSpec
from zhongjing.config.stages import TRAINING

CRD_FILE = "helm/files/trainingpipeline-crd.yaml"
VALUES_SCHEMA_FILE = "helm/values.schema.json"
FIELDS_FILE = "zhongjing/cli/diagnosis/crd_fields.txt"
PLURAL = "trainingpipelines"

_VERSION = API_VERSION.removeprefix(f"{API_GROUP}/")
_RULES = "x-kubernetes-validations"
_HEADER = "# Generated from zhongjing/config by `make generated`; do not edit.\n"


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition, as the API server takes it."""
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": ["tp"],
        "categories": ["zhongjing"],
    }
    version = {
        "name": _VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _object_schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": printer_columns(),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {"group": API_GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def crd_yaml() -> str:
    """The text of :data:`CRD_FILE`."""
    return _HEADER + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def pipeline_values_schema() -> Schema:
    """JSON schema (draft-07, without references) of a pipeline's spec among the chart's values.

    It has types, bounds and known fields; what fields say of each other is left to the API server.
    """
    return {**plain_json_schema(_spec_schema()), "description": "spec of a TrainingPipeline"}


def values_schema(text: str) -> str:
    """The schema of the chart's values with ``$defs.pipelineSpec`` as the models have it.

    Args:
        text: of :data:`VALUES_SCHEMA_FILE`; one that is up to date keeps the form that its author gave it.
    """
    schema = json.loads(text)
    definitions = schema.setdefault("$defs", {})
    if definitions.get("pipelineSpec") == pipeline_values_schema():
        return text
    definitions["pipelineSpec"] = pipeline_values_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def field_list() -> str:
    """The text of :data:`FIELDS_FILE`: every field of the definition, one a line."""
    return "".join(f"{path}\n" for path in sorted(definition_fields(crd())))


def _object_schema() -> Schema:
    name = structural(Metadata.model_json_schema(by_alias=True)["properties"]["name"])
    return {
        "description": "A run of the training pipeline: what to train, from what, on what.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # Of metadata the API server lets a schema bound the name only.
            "metadata": {
                "type": "object",
                "properties": {"name": {key: name[key] for key in ("type", "pattern", "maxLength")}},
            },
            "spec": _spec_schema(),
            "status": status_schema(),
        },
        _RULES: crd_rules.transition_rules(),
    }


def _spec_schema() -> Schema:
    spec = structural(PipelineSpec.model_json_schema(by_alias=True))
    fields = spec["properties"]
    spec["description"] = "What to train, from what, on what."
    spec["required"] = ["base", "stages"]
    spec[_RULES] = crd_rules.spec_rules()
    fields["base"][_RULES] = crd_rules.base_rules()
    fields["base"]["properties"]["tiny"][_RULES] = crd_rules.tiny_rules()
    # What has no settings cannot be brought about.
    fields["targets"]["items"]["enum"] = [stage.value for stage in crd_rules.STAGES]
    # By name: a name given twice is refused, and server-side apply merges sources instead of the list.
    fields["sources"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    source = fields["sources"]["items"]
    source[_RULES] = crd_rules.source_rules()
    made = source["properties"]["made"]
    made[_RULES] = crd_rules.made_rules()
    made["properties"]["steps"]["x-kubernetes-list-type"] = "set"
    made["properties"]["author"][_RULES] = crd_rules.author_rules()
    for stage in TRAINING:
        settings = fields["stages"]["properties"][stage.value]
        settings["required"] = ["data"]
        settings[_RULES] = crd_rules.stage_rules(stage)
    return spec


class _Dumper(yaml.SafeDumper):
    """No anchors: the same part is written out at each of its places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
