"""What a server's refusal means: try again, stop the run, leave out the record, or ask in another form.

Statuses and codes: https://platform.openai.com/docs/guides/error-codes; 402 is DeepSeek's "insufficient
balance" (https://api-docs.deepseek.com/quick_start/error_codes), 529 is an overloaded server, ``Arrearage``
and ``data_inspection_failed`` are DashScope's. vLLM answers 400 and FastAPI 422 where a field is not known.

A body is never repeated: servers quote the request, and some the key. Only its ``code``, ``type`` and
``param`` get into messages, and only when they are words.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from zhongjing.codes import Code
from zhongjing.codes import language_model as codes
from zhongjing.construct.llm.server import Server
from zhongjing.errors import LanguageModelError

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,48}")
_NO_FUNDS = frozenset(
    {
        *(
            "insufficient_quota",
            "billing_hard_limit_reached",
            "billing_not_active",
            "credit_balance_exhausted",
        ),
        *("insufficient_balance", "arrearage", "account_deactivated"),
    }
)
_NO_MODEL = frozenset({"model_not_found", "model_not_exist", "invalid_model"})
_BAD_KEY = frozenset({"invalid_api_key", "invalid_authentication"})
_OF_THE_RECORD = frozenset(
    {
        *("context_length_exceeded", "string_above_max_length", "content_filter", "content_policy_violation"),
        *("data_inspection_failed", "datainspectionfailed", "invalid_prompt"),
    }
)
_PARAMETER = frozenset({"unsupported_parameter", "unsupported_value"})
_FORM = ("response_format", "json_schema", "text.format")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status above 299 with the words of its body that may be shown."""

    status: int
    words: tuple[str, ...] = ()  # code, type: as they came
    parameter: str | None = None
    retry_after: float | None = None  # seconds

    @property
    def reason(self) -> str:
        """For messages."""
        shown = [*self.words, *([f"parameter {self.parameter}"] if self.parameter else [])]
        return f"HTTP {self.status}" + (f" ({', '.join(shown)})" if shown else "")

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be sent again."""
        return self.status in _PASSING and not self._has(_NO_FUNDS)

    @property
    def may_be_the_form(self) -> bool:
        """Whether the form of the answer that was asked for may be what the server does not take."""
        if self.status not in (400, 422) or self._has(_OF_THE_RECORD | _NO_FUNDS | _NO_MODEL | _BAD_KEY):
            return False
        return self.parameter is None or self.parameter.startswith(_FORM)

    @property
    def is_of_the_record(self) -> bool:
        """Whether other records may fare better."""
        if self.names_the_record:
            return True
        return self.status in (400, 422) and not self._has(_PARAMETER | _NO_FUNDS | _NO_MODEL | _BAD_KEY)

    @property
    def names_the_record(self) -> bool:
        """Whether the server says that it is the record: its length, or a filter."""
        return self._has(_OF_THE_RECORD) or self.status == 413

    @property
    def wants_other_length_field(self) -> bool:
        """Whether ``max_completion_tokens`` is to take the place of ``max_tokens``: newer models want it."""
        return self.status == 400 and self.parameter == "max_tokens" and self._has(_PARAMETER)

    def stop(self, server: Server) -> LanguageModelError:
        """The error that ends the run."""
        code, what = self._meaning()
        key = server.key.name if server.key is not None else "no key was given"
        where = f"{server.name} (key: {key})" if code is codes.API_KEY_REFUSED else server.name
        return LanguageModelError(f"{what}: {self.reason}", code=code, where=where)

    def _has(self, words: frozenset[str]) -> bool:
        return any(word.lower() in words for word in self.words)

    def _meaning(self) -> tuple[Code, str]:
        if self._has(_NO_FUNDS) or self.status == 402:
            return codes.OUT_OF_FUNDS, "the account has no funds left"
        if self._has(_NO_MODEL) or self.status == 404:
            return codes.UNKNOWN_LANGUAGE_MODEL, "there is no such model"
        if self._has(_BAD_KEY) or self.status in (401, 403, 407):
            return codes.API_KEY_REFUSED, "the key is not taken"
        if self._has(_PARAMETER):
            return codes.PARAMETER_REFUSED, "a parameter is not taken"
        # A redirect, another 4xx: nothing that a second request would change.
        return codes.INVALID_MODEL_SERVER, "the server does not answer as one of chat completions"


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Reads a refusal; a body that is no JSON, or not of OpenAI's layout, tells nothing."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    fields = error if isinstance(error, dict) else {}
    words = tuple(
        dict.fromkeys(word for name in ("code", "type") if (word := _word(fields.get(name))) is not None)
    )
    return Refusal(status, words, _word(fields.get("param")), retry_after(headers))


def _word(value: object) -> str | None:
    # What looks like a key is none: keys begin with sk-.
    if isinstance(value, str) and _WORD.fullmatch(value) and not value.startswith("sk-"):
        return value
    return None


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks for: ``retry-after-ms``, or Retry-After (RFC 9110, 10.2.3)."""
    milliseconds = headers.get("retry-after-ms", "")
    if re.fullmatch(r"\d{1,9}(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None
    return max(0.0, at - (time.time() if now is None else now))
