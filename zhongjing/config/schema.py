"""JSON schema of a TrainingPipeline, made from the models: for editors."""

from __future__ import annotations

from typing import Any

from zhongjing.config.defaults import DEFAULTS, names
from zhongjing.config.pipeline import TrainingPipeline


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a TrainingPipeline, as editors take it."""
    schema = TrainingPipeline.model_json_schema(by_alias=True)
    # What all stages share, as a stage has it, and nothing of it required.
    shared: dict[str, Any] = {}
    for stage in ("SftSettings", "PretrainSettings"):
        shared |= {
            name: field for name, field in schema["$defs"][stage]["properties"].items() if name in names()
        }
    schema["$defs"]["Stages"]["properties"][DEFAULTS] = {
        "type": "object",
        "description": "Settings of all stages; what a stage says itself wins.",
        "properties": shared,
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "TrainingPipeline",
        **schema,
    }
