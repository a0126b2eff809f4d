"""Values at the edges of every field of the document, and what an API server says of them.

The fields are read off the CRD. Each verdict is asked for twice, of the API server and of the models: a bound
that stands in one of them only is found from either side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from tools import crd
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.config.pipeline import API_VERSION, KIND, TrainingPipeline
from zhongjing.errors import BackendError

Path = tuple[str | int, ...]
Document = dict[str, Any]

# A source that no stage reads may be of any kind, and test data.
_FREE_SOURCE = 2
# What its parts require of each other stands in it also where only one of them is probed.
_MADE: Document = {
    "from": "s3://abc/raw",
    "steps": ["normalize"],
    "kg": "s3://abc/graph",
    "author": {
        "model": "m",
        "baseUrl": "http://server",
        "prices": {"prompt": 1, "completion": 1, "currency": "USD"},
    },
}
_PATTERNS = {
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "",
    r"^s3://[^/]{3,63}(/.*)?$": "s3://abc/",
    r"^s3://[^/]+/.+$": "s3://abc/",
    r"^https?://[^@?#\s]+$": "http://",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "A",
    r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$": "",
}
_NAMED = re.compile(
    r"(?:^|[\s\[])((?:spec|metadata)[\w.\[\]]*): "
    r"(?=(?:Invalid value|Required value|Unsupported value|Too long|Too many|Duplicate value|Forbidden)\b)"
)
_UNKNOWN = re.compile(r'unknown field "([^"]+)"')


@dataclass(frozen=True)
class Leaf:
    """A field that holds no further fields, and its schema."""

    path: Path
    schema: Mapping[str, Any]


def base_document(name: str = "probe") -> Document:
    """A document with every stage and as little else as it takes."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "base": {"tiny": {}},
            "sources": [
                {"name": "talks", "uri": "s3://abc/talks", "kind": "dialogue"},
                {"name": "ranked", "uri": "s3://abc/ranked", "kind": "ranking"},
                {"name": "free", "uri": "s3://abc/free", "kind": "text"},
            ],
            "stages": {
                stage: {"data": [{"source": "ranked" if stage == "rm" else "talks"}]}
                for stage in ("pretrain", "sft", "rm", "ppo")
            },
        },
    }


def leaves() -> list[Leaf]:
    """All leaves of spec; of a list its first element, of the sources the free one."""
    schema = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return list(_leaves(("spec",), schema["properties"]["spec"]))


def _leaves(path: Path, schema: Mapping[str, Any]) -> Iterator[Leaf]:
    if "properties" in schema:
        for name, field in schema["properties"].items():
            yield from _leaves((*path, name), field)
    elif schema["type"] == "array":
        yield Leaf(path, schema)
        yield from _leaves((*path, _FREE_SOURCE if path == ("spec", "sources") else 0), schema["items"])
    else:
        yield Leaf(path, schema)


def inside(leaf: Leaf, side: str) -> Any:
    """The value of that side (``low`` or ``high``) that is just good; None if the field has no such edge."""
    schema = leaf.schema
    if "enum" in schema:
        return schema["enum"][0 if side == "low" else -1]
    match schema["type"]:
        case "boolean":
            return side == "high"
        case "string":
            length = schema["maxLength"] if side == "high" else schema.get("minLength")
            return None if length is None else _text(schema, length)
        case "integer":
            return schema["minimum" if side == "low" else "maximum"]
        case "number":
            edge = float(schema["minimum" if side == "low" else "maximum"])
            within = math.inf if side == "low" else -math.inf
            return math.nextafter(edge, within) if _exclusive(schema, side) else edge
    return None


def outside(leaf: Leaf, side: str) -> Any:
    """The value that is just beyond that side."""
    schema = leaf.schema
    if "enum" in schema:
        return "nonsense" if side == "high" else None
    match schema["type"]:
        case "string":
            length = schema["maxLength"] + 1 if side == "high" else schema.get("minLength", 0) - 1
            return None if length < 0 else _text(schema, length)
        case "integer":
            return schema["minimum"] - 1 if side == "low" else schema["maximum"] + 1
        case "number":
            edge = float(schema["minimum" if side == "low" else "maximum"])
            beyond = -math.inf if side == "low" else math.inf
            return edge if _exclusive(schema, side) else math.nextafter(edge, beyond)
    return None


def mistyped(leaf: Leaf) -> Any:
    """A value of a type that neither side takes for another."""
    return 3 if leaf.schema["type"] == "string" else "perhaps"


def _exclusive(schema: Mapping[str, Any], side: str) -> bool:
    return bool(schema.get("exclusiveMinimum" if side == "low" else "exclusiveMaximum", False))


def _text(schema: Mapping[str, Any], length: int) -> str:
    start = _PATTERNS[schema["pattern"]] if "pattern" in schema else ""
    # A character of three bytes where any will do: lengths are counted in characters, not in bytes.
    return start + ("1" if "pattern" in schema else "药") * (length - len(start))


def put(document: Document, path: Path, value: Any) -> None:
    """Sets a field, making the objects and lists above it."""
    here: Any = document
    for part, after in pairwise(path):
        if isinstance(here, list):
            while len(here) <= int(part):
                here.append({})
        elif part not in here:
            here[part] = [] if isinstance(after, int) else {}
        here = here[part]
    last = path[-1]
    if isinstance(here, list) and int(last) == len(here):
        here.append(value)
    else:
        here[last] = value


def dotted(path: Path) -> str:
    """As the API server writes it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text[1:]


def group(path: Path) -> str:
    """Which document a field is probed in: a base is named, and a source is there, in one way only."""
    if "made" in path or "canaries" in path or path[:3] == ("spec", "stages", "construct"):
        return "made"
    way = path[2] if path[:2] == ("spec", "base") else "tiny"
    if way in ("uri", "revision", "maxPositions", "ropeScaling"):
        return "uri"
    return "delta" if way in ("delta", "root", "deltaRule") else "tiny"


def documents() -> dict[str, Document]:
    """A document for each way of naming the base, and one with a source that is made."""
    bases: dict[str, dict[str, Any]] = {
        "tiny": {"tiny": {}},
        # What ropeScaling requires stands in it also where only its other fields are probed.
        "uri": {"uri": "owner/name", "ropeScaling": {"ropeType": "linear", "factor": 2}},
        "delta": {"delta": "owner/delta", "root": "owner/root", "deltaRule": "fengshen"},
    }
    found = {way: base_document() for way in bases}
    for way, base in bases.items():
        found[way]["spec"]["base"] = base
    found["made"] = base_document()
    spec = found["made"]["spec"]
    spec["sources"][_FREE_SOURCE] = {"name": "free", "kind": "text", "made": deepcopy(_MADE)}
    spec["stages"]["construct"] = {}
    return found


def refused_by_models(document: Document) -> set[str]:
    """Fields that the models refuse."""
    try:
        TrainingPipeline.model_validate(document)
    except ValidationError as error:
        return {dotted(tuple(part for part in each["loc"] if part != "[key]")) for each in error.errors()}
    return set()


def refused_by_server(api: KubeApi, document: Document) -> set[str]:
    """Fields that the API server refuses (dry run)."""
    try:
        api.create(PIPELINES, document, dry_run=True)
    except BackendError as error:
        told = str(error)
        return set(_NAMED.findall(told)) or set(_UNKNOWN.findall(told)) or {told}
    return set()
