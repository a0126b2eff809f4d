"""The forms in which a secret may stand in a file: raw, escaped, URL-encoded, base64, hexadecimal."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

# A value this long is looked for everywhere, a shorter one only where it stands alone.
ANYWHERE = 8
# Of base64 that starts within something else the borders are unknown; what is left must be telling.
_INNER = 10
_LINE = 12


_ESCAPE = re.compile(r"(%|\\u|\\x)([0-9A-Fa-f]{2,4})")


def fold(text: str) -> str:
    """A form with its escapes in lower case: ``%2F`` and ``%2f`` are the same."""
    return _ESCAPE.sub(lambda match: match[0].lower(), text)


def pattern_of(form: str) -> str:
    """A regular expression that matches a form, however its escapes are written."""
    parts: list[str] = []
    end = 0
    for match in _ESCAPE.finditer(form):
        parts += [re.escape(form[end : match.start()]), f"(?i:{re.escape(match[0])})"]
        end = match.end()
    return "".join([*parts, re.escape(form[end:])])


def forms(value: str) -> set[str]:
    """Every text that stands for ``value``, itself among them, folded. Short values have fewer forms."""
    values = {value}
    if "\n" in value:
        # Logs break it up; a line of it is as secret as the whole.
        values |= {line.strip() for line in value.splitlines() if len(line.strip()) >= _LINE}
    return {fold(form) for each in values for form in _forms(each) if len(form) >= min(len(value), ANYWHERE)}


def _forms(value: str) -> Iterator[str]:
    yield value
    yield from _escaped(value)
    yield from _url_encoded(value)
    for encoded in _base64(value.encode()):
        yield encoded
        yield from _url_encoded(encoded)
        yield encoded.replace("/", "\\/")
    if len(value) >= ANYWHERE:
        yield value.encode().hex()
        yield value.encode().hex().upper()


def _escaped(value: str) -> Iterator[str]:
    for ascii_only in (True, False):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield once.replace("/", "\\/")
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        # Go writes these three so; SeaweedFS is a Go program.
        yield once.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    yield repr(value)[1:-1]
    yield repr(value.encode())[2:-1]
    yield html.escape(value)
    yield html.escape(value, quote=False)
    yield value.replace("'", "'\"'\"'")
    yield value.replace("'", "'\\''")


def _url_encoded(value: str) -> Iterator[str]:
    for once in (quote(value, safe=""), quote(value, safe="/"), quote_plus(value)):
        yield once
        yield quote(once, safe="")


def _base64(data: bytes) -> Iterator[str]:
    """Alone, and within longer base64: there it begins at one of three offsets."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        alone = encode(data).decode()
        yield alone
        yield alone.rstrip("=")
        for offset in range(3):
            whole = encode(b"\0" * offset + data).decode().rstrip("=")
            # The characters at both ends also carry bits of what stands before and after.
            inner = whole[(offset * 8 + 5) // 6 : -1 if (offset + len(data)) % 3 else None]
            if len(inner) >= _INNER:
                yield inner
