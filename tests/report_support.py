"""Secrets and text of records as programs write them down, for tests of what must not leave the machine."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY&EXAMPLE=="
AWKWARD = "p\"q\\r/s't ü<&>=病人\t%41"

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "".join(f"{'MIIEpAIBAAKCAQEA' * 4}\n" for _ in range(25))
    + "aGVsbG8=\n-----END RSA PRIVATE KEY-----"
)

RECORD = "患者男，45岁，反复咳嗽、咳痰伴气促3年，体温38.5℃"


def spellings(value: str) -> dict[str, str]:
    """How programs write a text down."""
    data = value.encode()
    once = json.dumps(value)[1:-1]
    return {
        "raw": value,
        "json": once,
        "json, characters": json.dumps(value, ensure_ascii=False)[1:-1],
        "json in json": json.dumps(once)[1:-1],
        "json of PHP": once.replace("/", "\\/"),
        "json of Go": once.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"),
        "repr": repr(value)[1:-1],
        "repr of bytes": repr(data)[2:-1],
        "url": quote(value, safe=""),
        "url with slashes": quote(value),
        "url, lower case": quote(value, safe="").replace("%2B", "%2b").replace("%2F", "%2f"),
        "form": quote_plus(value),
        "url twice": quote(quote(value, safe=""), safe=""),
        "html": html.escape(value),
        "base64": base64.b64encode(data).decode(),
        "base64 for URLs": base64.urlsafe_b64encode(data).decode(),
        "base64 without padding": base64.b64encode(data).decode().rstrip("="),
        "base64 in a URL": quote(base64.b64encode(data).decode(), safe=""),
        "hexadecimal": data.hex(),
        "hexadecimal, upper case": data.hex().upper(),
    }


def assert_no_trace(text: str, value: str) -> None:
    """No spelling of ``value`` is in ``text``, nor a part of it that says as much."""
    for form, spelt in spellings(value).items():
        assert spelt not in text, form
        assert spelt[:12] not in text, form
