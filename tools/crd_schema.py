"""From pydantic's JSON schema to the structural schema that a CRD must have, and to the one Helm takes.

The API server refuses most of what pydantic writes: references, ``anyOf`` with null, ``const``, numbers as
``exclusiveMinimum``, ``additionalProperties`` beside ``properties``. It prunes or refuses unknown fields by
itself. Its CEL rules are priced by the largest object that a schema lets in, so everything needs a bound.

Nothing is passed through unseen: a keyword that is not known here is an error when the files are generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

_COPIED = frozenset(
    {
        "type",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
    }
)
# Defaults are the recipe's and the models': in a CRD they would be frozen into every object.
_DROPPED = frozenset({"title", "default", "x-tag", "x-unit", "x-source", "x-later", "description", "const"})
_HANDLED = frozenset(
    {"properties", "items", "additionalProperties", "propertyNames", "exclusiveMinimum", "exclusiveMaximum"}
)


class UnstructuralSchemaError(ValueError):
    """A model has something that a CRD cannot express.

    Args:
        path: of the field, from the top of the model.
        message: what it has.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or 'the model'}: {message}")


def structural(schema: Mapping[str, Any]) -> Schema:
    """The structural OpenAPI v3 schema (apiextensions.k8s.io/v1) of a pydantic JSON schema.

    Args:
        schema: from ``model_json_schema(by_alias=True)``, with its ``$defs``.

    Raises:
        UnstructuralSchemaError: a union, a cycle, an unbounded list, map, string or number, or a keyword that
            is not known here.
    """
    return _convert(schema, schema.get("$defs", {}), "", ())


def _convert(node: Mapping[str, Any], defs: Mapping[str, Any], path: str, within: tuple[str, ...]) -> Schema:
    node, within = _inlined(node, defs, path, within)
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    unknown = node.keys() - _COPIED - _DROPPED - _HANDLED
    if unknown:
        raise UnstructuralSchemaError(path, f"has {', '.join(sorted(unknown))}, which a CRD cannot express")
    if "type" not in node:
        raise UnstructuralSchemaError(path, "has no type")
    result: Schema = {}
    if description := _description(node):
        result["description"] = description
    result |= {key: value for key, value in node.items() if key in _COPIED}
    for side in ("Minimum", "Maximum"):
        if f"exclusive{side}" in node:
            result[side.lower()] = node[f"exclusive{side}"]
            result[f"exclusive{side}"] = True
    if "properties" in node:
        result["properties"] = {
            name: _convert(field, defs, f"{path}.{name}".lstrip("."), within)
            for name, field in node["properties"].items()
        }
    elif node["type"] == "object":
        result |= _map(node, defs, path, within)
    if node["type"] == "array":
        result["items"] = _convert(node["items"], defs, f"{path}[]", within)
    _require_bounds(result, path)
    return result


def _inlined(
    node: Mapping[str, Any], defs: Mapping[str, Any], path: str, within: tuple[str, ...]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """``node`` without ``$ref`` and without "or null"; what stands beside them wins."""
    while "$ref" in node or "anyOf" in node:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "$defs")}
        if "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            if name in within:
                raise UnstructuralSchemaError(path, f"{name} holds itself")
            within = (*within, name)
            node = {**defs[name], **beside}
        else:
            options = [option for option in node["anyOf"] if option.get("type") != "null"]
            if len(options) != 1:
                raise UnstructuralSchemaError(path, "is a union of types")
            node = {**options[0], **beside}
    return {key: value for key, value in node.items() if key != "$defs"}, within


def _map(node: Mapping[str, Any], defs: Mapping[str, Any], path: str, within: tuple[str, ...]) -> Schema:
    """A map of free keys; one whose keys are an enumeration becomes an object with these properties."""
    values = node.get("additionalProperties")
    if not isinstance(values, Mapping):
        raise UnstructuralSchemaError(path, "is an object of which nothing is known")
    converted = _convert(values, defs, f"{path}.*", within)
    if "propertyNames" in node:
        names, _ = _inlined(node["propertyNames"], defs, path, within)
        return {"properties": dict.fromkeys(names["enum"], converted)}
    return {"additionalProperties": converted}


def _require_bounds(schema: Mapping[str, Any], path: str) -> None:
    if "enum" in schema:
        return
    missing = {
        "string": ["maxLength"],
        "array": ["maxItems"],
        "integer": ["minimum", "maximum"],
        "number": ["minimum", "maximum"],
        "object": [] if "properties" in schema else ["maxProperties"],
    }.get(schema["type"], [])
    for bound in missing:
        if bound not in schema:
            raise UnstructuralSchemaError(path, f"has no {bound}")


def _description(node: Mapping[str, Any]) -> str:
    """The field's description with unit, default and source, as ``kubectl explain`` shows it."""
    parts = [" ".join(str(node.get("description", "")).split())]
    if unit := node.get("x-unit"):
        parts.append(f"Unit: {unit}.")
    default = node.get("default")
    if default is not None and not isinstance(default, dict | list):
        parts.append(f"Default: {default if isinstance(default, str) else json.dumps(default)}.")
    if source := node.get("x-source"):
        parts.append(f"Source: {source}.")
    return " ".join(part for part in parts if part)


def plain_json_schema(schema: Mapping[str, Any]) -> Schema:
    """A structural schema as JSON schema draft-07: unknown fields refused, no Kubernetes extensions.

    Args:
        schema: from :func:`structural`, rules of the API server added or not.
    """
    result: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: plain_json_schema(field) for name, field in value.items()}
            result["additionalProperties"] = False
        elif key in ("items", "additionalProperties"):
            result[key] = plain_json_schema(value)
        elif key in ("minimum", "maximum"):
            exclusive = f"exclusive{key.capitalize()}"
            result[exclusive if schema.get(exclusive) else key] = value
        elif not key.startswith(("x-kubernetes-", "exclusive")):
            result[key] = value
    return result
