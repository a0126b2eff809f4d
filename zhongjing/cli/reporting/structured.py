"""JSON documents without secrets, and those that tell of a run also without the text of records.

A document says what is configured: system prompts, chat templates and column names stay. A manifest also
tells what came out, the answers of models to held-out questions among it: those are records' text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from zhongjing.cli.reporting.redact import Redactor
from zhongjing.cli.reporting.secrets import is_secret_key
from zhongjing.cli.reporting.shapes import MASK, REDACTED
from zhongjing.storage.progress import MetricPoint

# Below these keys stands configuration, as the user wrote it or resolved.
_CONFIGURATION = {"document", "user", "keyFields", "fields"}
# Written by programs (kubectl keeps whole objects there): read as logs are.
_NOTES = {"annotations"}
# Where things are: names are what an issue needs, and may be Chinese.
_PLACES = {"uri", "modelUri", "manifestUri", "baseUri", "requestUri", "tracebackUri", "tokenFile"}
# Text of records, or made from them.
_FREE_TEXT = {
    *(
        "answers",
        "answer",
        "question",
        "questions",
        "prompt",
        "prompts",
        "response",
        "responses",
        "text",
        "texts",
    ),
    *(
        "completion",
        "completions",
        "instruction",
        "chosen",
        "rejected",
        "history",
        "messages",
        "conversation",
    ),
    *("conversations", "sample", "samples", "content", "raw", "input", "output", "generated"),
}
_QUARANTINE = ("source", "uri", "index", "line", "reason")


def clean_configuration(value: Any, redactor: Redactor) -> Any:
    """A value of a document."""
    if isinstance(value, dict):
        return {
            redactor.known_only(str(key)): _named(str(key), item)
            or (clean(item, redactor) if key in _NOTES else clean_configuration(item, redactor))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [clean_configuration(item, redactor) for item in value]
    return redactor.text(value) if isinstance(value, str) else value


def clean(value: Any, redactor: Redactor) -> Any:
    """A value of a record that tells of a run: status, progress, manifest, request."""
    if isinstance(value, dict):
        return {
            redactor.known_only(str(key)): _clean_item(str(key), item, redactor)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [clean(item, redactor) for item in value]
    return redactor.log(value) if isinstance(value, str) else value


def _clean_item(key: str, item: Any, redactor: Redactor) -> Any:
    if (named := _named(key, item)) is not None:
        return named
    if key in _CONFIGURATION:
        return clean_configuration(item, redactor)
    if key in _FREE_TEXT:
        return without_text(item)
    if key == "extra":
        return clean(_without_prose(item), redactor)
    if key in _PLACES and isinstance(item, str):
        return redactor.text(item)
    if key == "host" and isinstance(item, str):
        return "<host>"
    return clean(item, redactor)


def _named(key: str, item: Any) -> str | None:
    return REDACTED if isinstance(item, str) and item and is_secret_key(key) else None


def without_text(value: Any) -> Any:
    """Every text of a value as its length; numbers and keys stay."""
    if isinstance(value, dict):
        return {key: without_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_text(item) for item in value]
    if not isinstance(value, str) or re.fullmatch(MASK, value):
        return value
    return f"<text {len(value)} characters>"


def _without_prose(value: Any) -> Any:
    """What a stage adds of its own: names and places stay, whatever reads as prose goes."""
    if isinstance(value, dict):
        return {key: _without_prose(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_prose(item) for item in value]
    if isinstance(value, str) and (len(value.split()) > 3 or not value.isascii()):
        return without_text(value)
    return value


def quarantine_line(line: str, redactor: Redactor) -> str:
    """A line of quarantine.jsonl with the place and the reason only."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        return "<a line that is not an entry>"
    kept = {key: entry[key] for key in _QUARANTINE if key in entry}
    return json.dumps(clean(kept, redactor), ensure_ascii=False)


def metric_line(line: str, redactor: Redactor) -> str:
    """A line of metrics.jsonl as it is; anything but a metric point is left out."""
    try:
        MetricPoint.model_validate_json(line)
    except ValueError:
        return '{"note": "a line that is not a metric point was left out"}'
    return redactor.known_only(line)
