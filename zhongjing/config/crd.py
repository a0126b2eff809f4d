"""The CustomResourceDefinition of TrainingPipelines, made from the models.

``make generated`` writes it into the chart, and the schema of a pipeline in the chart's values with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from zhongjing.config import crd_rules
from zhongjing.config.crd_schema import Schema, plain_json_schema, structural
from zhongjing.config.crd_status import printer_columns, status_schema
from zhongjing.config.pipeline import API_GROUP, API_VERSION, KIND, Metadata, PipelineSpec

CRD_FILE = "helm/files/trainingpipeline-crd.yaml"
VALUES_SCHEMA_FILE = "helm/values.schema.json"
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


def write_chart_files(root: Path) -> None:
    """Writes the CRD into the chart under ``root``, and ``$defs.pipelineSpec`` of the values' schema."""
    target = root / CRD_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(crd_yaml(), encoding="utf-8")
    values = root / VALUES_SCHEMA_FILE
    if not values.exists():
        return
    schema = json.loads(values.read_text(encoding="utf-8"))
    if schema.get("$defs", {}).get("pipelineSpec") == pipeline_values_schema():
        return
    schema.setdefault("$defs", {})["pipelineSpec"] = pipeline_values_schema()
    values.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
    for stage in crd_rules.STAGES:
        settings = fields["stages"]["properties"][stage.value]
        settings["required"] = ["data"]
        settings[_RULES] = crd_rules.stage_rules(stage)
    return spec


class _Dumper(yaml.SafeDumper):
    """No anchors: the same part is written out at each of its places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
