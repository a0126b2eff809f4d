"""Which texts are secret on this machine, so that they can be looked for: values, never only their names.

Values come from the environment of this process and of the workdir's supervisor (its jobs inherit it), from
the workdir's own keys, and from the files in which well-known tools keep theirs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SHORTEST = 4  # characters; shorter values stand in every text by chance
FILE_BYTES = 256 * 2**10

# Names whose values are secret. TOKENIZERS_PARALLELISM is none: the word has to end there.
_STRONG = re.compile(
    r"(?:TOKEN|(?:SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY(?:_?ID)?|SECRET_?KEY"
    r"|PRIVATE_?KEY|CLIENT_?KEY_?DATA|(?:^|_)(?:PASS|PWD|PAT|AUTH|COOKIE))S?)(?=_|$)",
    re.IGNORECASE,
)
# Such names are often harmless (SORT_KEY, MAX_TOKENS), so only long values count.
_WEAK = re.compile(r"(?:^|_)(?:KEY|TOKENS|SIGNATURE|DSN|LICENSE)S?$", re.IGNORECASE)
_WEAK_LENGTH = 16
# Keys of documents have all manner of names: tokenCache, eosToken, google-auth.
_KEY = re.compile(
    r"(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!stop_)(?<!end_)TOKEN"
    r"|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEYS?|ACCESS_?KEY(?:_?ID)?|SECRET_?KEY"
    r"|PRIVATE_?KEY|CLIENT_?KEY_?DATA|COOKIE|AUTHORIZATION)$",
    re.IGNORECASE,
)
_PLACES = re.compile(r"_(?:PATH|FILE|FILES|DIR|FOLDER|HOME|URI|URL|ENDPOINT|HOST|PORT|TYPE|MODE)$", re.I)
_NO_SECRETS = {"PWD", "OLDPWD", "SSH_AUTH_SOCK", "GPG_AGENT_INFO", "RAY_AUTH_MODE"}

# Everything else that begins with AWS_ is taken for secret: names of roles and numbers of accounts too.
_AWS_SETTINGS = {
    "AWS_ALLOW_HTTP",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_OUTPUT",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_EXECUTION_ENV",
    "AWS_MAX_ATTEMPTS",
    "AWS_PAGER",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_RETRY_MODE",
    "AWS_SDK_LOAD_CONFIG",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
}
# Values that say yes or no, whatever the variable's name promises.
_WORDS = {"true", "false", "yes", "none", "null", "auto", "default", "enabled", "disabled", "required"}

# YAML, JSON, INI and shell alike, several in a line or cut off.
_ASSIGNMENT = re.compile(
    r"""(?:^|(?<=[\s"'{,]))([\w.-]+)["']?[ \t]*[:=][ \t]*["']?([^\s"',}]+)""", re.MULTILINE
)
_NETRC = re.compile(r"\bpassword\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that must not leave the machine, and the name that stands in its place."""

    name: str
    value: str


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret (a place where one lies is none)."""
    if name in _NO_SECRETS or name in _AWS_SETTINGS or _PLACES.search(name):
        return False
    return name.startswith("AWS_") or _STRONG.search(_snake(name)) is not None


def is_secret_key(name: str) -> bool:
    """Whether a key of a JSON document holds a secret."""
    return name not in _AWS_SETTINGS and _KEY.search(_snake(name)) is not None


def find_secrets(workdir: Path | None, environments: Iterable[Mapping[str, str]]) -> list[Secret]:
    """All secrets that can be found, each value once; later finds of the same value are left out.

    Args:
        workdir: of the local runs, if there is one.
        environments: of this process and of whatever else runs for the workdir.
    """
    found: dict[str, Secret] = {}
    for secret in _candidates(workdir, environments):
        value = secret.value.strip()
        if len(value) >= SHORTEST and value.lower() not in _WORDS:
            found.setdefault(value, Secret(secret.name, value))
    return list(found.values())


def too_short(environments: Iterable[Mapping[str, str]]) -> list[str]:
    """Names of secret variables whose values are too short to be looked for."""
    return sorted(
        {
            secret.name
            for environment in environments
            for secret in _of_environment(environment)
            if 0 < len(secret.value.strip()) < SHORTEST
        }
    )


def _candidates(workdir: Path | None, environments: Iterable[Mapping[str, str]]) -> Iterator[Secret]:
    for environment in environments:
        yield from _of_environment(environment)
        yield from _of_tools(environment)
    if workdir is not None:
        yield from _of_workdir(workdir)


def _of_environment(environment: Mapping[str, str]) -> Iterator[Secret]:
    for name, value in sorted(environment.items()):
        if is_secret_name(name) or (_WEAK.search(name) and len(value) >= _WEAK_LENGTH):
            if value.startswith("/") and Path(value).is_file():
                yield from _of_file(name, Path(value))
            else:
                yield Secret(name, value)
        elif _STRONG.search(name) and _PLACES.search(name) and value.startswith("/"):
            yield from _of_file(name, Path(value))
        if "://" in value and "@" in value:
            yield from _of_url(name, value)


def _of_url(name: str, value: str) -> Iterator[Secret]:
    try:
        password = urlsplit(value).password
    except ValueError:
        return
    if password:
        yield Secret(name, password)
        yield Secret(name, unquote(password))


def _of_tools(environment: Mapping[str, str]) -> Iterator[Secret]:
    home = Path(environment.get("HOME") or "/nonexistent")
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(environment.get("HF_HOME") or cache / "huggingface")
    yield from _of_file("HF_TOKEN", hub / "token")
    yield from _of_file("RAY_AUTH_TOKEN", home / ".ray" / "auth_token")
    for place in (
        Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials"),
        hub / "stored_tokens",
        home / ".netrc",
        home / ".kube" / "config",
    ):
        yield from _of_settings(place)


def _of_workdir(workdir: Path) -> Iterator[Secret]:
    yield from _of_file("RAY_AUTH_TOKEN", workdir / "ray-token")
    for place in (workdir / "environment.json", workdir / "s3" / "s3.json"):
        try:
            yield from _of_json(json.loads(_read(place)))
        except ValueError:  # damaged, perhaps the very reason of the report
            yield from _of_settings(place)


def _of_json(value: Any) -> Iterator[Secret]:
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str) and (is_secret_name(str(name)) or is_secret_key(str(name))):
                yield Secret(str(name), item)
            else:
                yield from _of_json(item)
    elif isinstance(value, list):
        for item in value:
            yield from _of_json(item)


def _of_file(name: str, file: Path) -> Iterator[Secret]:
    """A file that holds one secret, one a line, or settings with secrets among them."""
    lines = _read(file).split("\n")
    if sum(1 for line in lines if line.strip()) == 1 or not any(_ASSIGNMENT.search(line) for line in lines):
        for line in lines:
            yield Secret(name, line)
    yield from _of_settings(file)


def _of_settings(file: Path) -> Iterator[Secret]:
    text = _read(file)
    for name, value in _ASSIGNMENT.findall(text):
        if is_secret_name(name):
            yield Secret(name, value)
    for value in _NETRC.findall(text):
        yield Secret("password", value)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _snake(name: str) -> str:
    """``secretAccessKey`` as ``secret_Access_Key``, so that one pattern fits both."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[.-]", "_", name)


def user_names(environment: Mapping[str, str] | None = None) -> list[str]:
    """Names of the user of this process."""
    names = {(environment or os.environ).get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    try:
        import pwd

        names.add(pwd.getpwuid(os.getuid()).pw_name)
    except (ImportError, KeyError):
        pass
    return sorted(name for name in names if name)
