"""Secrets and text of records as programs write them down, for tests of what must not leave the machine."""

from __future__ import annotations

import json

KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY&EXAMPLE=="
AWKWARD = "p\"q\\r/s't ü<&>=病人\t%41"

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "".join(f"{'MIIEpAIBAAKCAQEA' * 4}\n" for _ in range(25))
    + "aGVsbG8=\n-----END RSA PRIVATE KEY-----"
)

RECORD = "患者男，45岁，反复咳嗽、咳痰伴气促3年，体温38.5℃"


def assert_no_trace(text: str, value: str) -> None:
    """Neither ``value`` nor its beginning is in ``text``, as it is or as JSON has it, once or twice."""
    once = json.dumps(value)[1:-1]
    for spelt in (value, once, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(once)[1:-1]):
        assert spelt not in text
        assert spelt[:12] not in text
