"""Which language model is asked, where, and with which key.

Any server that speaks OpenAI's chat completions will do (https://platform.openai.com/docs/api-reference/chat):
a paid one, vLLM, ``transformers serve``. The key is named by the variable or the file that holds it, so it
stands in no command line, manifest, log or error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zhongjing.codes import language_model as codes
from zhongjing.errors import ConfigError, LanguageModelError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the API key is: an environment variable or a file of the process that asks; not the key."""

    environment: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if (self.environment is None) == (self.file is None):
            raise ConfigError(
                "the API key is in an environment variable or in a file: name one of them",
                code=codes.INVALID_MODEL_SERVER,
            )

    @property
    def name(self) -> str:
        """What messages call the place."""
        return f"${self.environment}" if self.environment is not None else str(self.file)

    def read(self) -> str:
        """The key, without white space around it.

        Raises:
            LanguageModelError: there is none, or it cannot stand in a header.
        """
        if self.environment is not None:
            key = os.environ.get(self.environment, "").strip()
        else:
            assert self.file is not None
            try:
                key = self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                key = ""
        if not key or not key.isascii() or not key.isprintable():
            raise LanguageModelError(
                "there is no API key" if not key else "the API key has characters that no key has",
                code=codes.API_KEY_MISSING,
                where=self.name,
            )
        return key


@dataclass(frozen=True, slots=True)
class Server:
    """A model at an OpenAI-compatible server; without ``key`` no key is sent.

    ``base_url`` is what the openai client calls so; where it has no path, ``/v1`` is meant.
    """

    base_url: str
    model: str
    key: KeySource | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            # The address is not repeated: it may hold a key.
            raise ConfigError(
                "the base URL is no http(s):// address, or holds more than host and path",
                code=codes.INVALID_MODEL_SERVER,
                where="base URL",
            )
        if not self.model:
            raise ConfigError("no model is named", code=codes.INVALID_MODEL_SERVER, where="model")

    @property
    def endpoint(self) -> str:
        """URL of the chat completions."""
        base = self.base_url.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}/chat/completions"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: proxies of the environment are for the world outside."""
        return urlsplit(self.base_url).hostname in _LOOPBACK

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.model} at {self.base_url}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """What stands in every request beside the messages; part of the key of an answer.

    ``max_tokens``: of one answer. ``None``: the parameter is not sent, and the server's default holds.
    """

    max_tokens: int = 2048
    temperature: float | None = 0.3
    top_p: float | None = None
    seed: int | None = None

    def as_json(self) -> dict[str, object]:
        """The parameters as they are sent."""
        values = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        return {name: value for name, value in values.items() if value is not None}
