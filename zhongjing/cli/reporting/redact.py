"""Takes out of a text what must not leave the machine, and leaves the rest as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote

from zhongjing.cli.reporting import shapes
from zhongjing.cli.reporting.forms import ANYWHERE, fold, forms, pattern_of
from zhongjing.cli.reporting.secrets import Secret
from zhongjing.pipeline.escapes import without_escapes

CUT_MARGIN = 8 * 2**10
"""Characters that are dropped at the end of a cut text: the cut may have gone through a secret."""

# Accounts that many machines have; as a folder's name such a word says nothing of a person.
_NOBODY = {
    *("root", "ray", "user", "users", "admin", "ubuntu", "debian", "centos", "ec2-user", "app", "nobody"),
    *(
        "jovyan",
        "runner",
        "default",
        "zhongjing",
        "train",
        "python",
        "home",
        "tmp",
        "usr",
        "var",
        "lib",
        "data",
    ),
}
_ANY_HOST = {"localhost", "localhost.localdomain"}

_BEGIN_KEY = re.compile(r"-----BEGIN[^-\r\n]{0,40}PRIVATE KEY[^-\r\n]{0,10}-----")
_END_KEY = re.compile(r"-----END[^-\r\n]{0,40}PRIVATE KEY[^-\r\n]{0,10}-----")
_KEY_LINE = re.compile(
    r"(?:.*[ \t|])?[A-Za-z0-9+/=\\]{16,}\s*|\s*[A-Za-z0-9+/=]*\s*|.*(?:Proc-Type|DEK-Info): .*\s*"
)
_KEY_MASK = "<redacted:private key>"


@dataclass(frozen=True)
class Identity:
    """Whose machine it is.

    Attributes:
        homes: home folders of the user; they become ``~``.
        users: the user's names; in paths they become ``<user>``.
        hosts: the machine's names; they become ``<host>``.
    """

    homes: Sequence[str] = ()
    users: Sequence[str] = ()
    hosts: Sequence[str] = ()


@dataclass
class Redactor:
    """Knows what is secret on this machine, and takes it out of texts. Twice is the same as once.

    Args:
        known: secrets to look for, in every form.
        identity: of the user and the machine.
    """

    known: Iterable[Secret] = ()
    identity: Identity = field(default_factory=Identity)

    def __post_init__(self) -> None:
        self._masks: dict[str, str] = {}
        anywhere: set[str] = set()
        for secret in self.known:
            mask = f"<redacted:{re.sub(r'[^A-Za-z0-9_.-]', '', secret.name)[:80]}>"
            for form in forms(secret.value):
                self._masks.setdefault(form, mask)
                if len(secret.value) >= ANYWHERE:
                    anywhere.add(form)
        self._alone = frozenset(self._masks.keys() - anywhere)
        self._lower = {form: form.lower() for form in self._masks}
        self._rules = [*shapes.CREDENTIALS, *shapes.ADDRESSES]
        self._places = _place_rules(self.identity)
        self._hosts = _host_rule(self.identity.hosts)

    def known_only(self, text: str) -> str:
        """Without the known secrets: for texts that are not made by people, such as the names of metrics."""
        lower = text.lower()
        anywhere = frozenset(form for form, low in self._lower.items() if low in lower)
        if not anywhere:
            return text
        masks = self._masks
        pattern = _pattern(anywhere - self._alone, anywhere & self._alone)
        return pattern.sub(lambda match: masks.get(fold(match[0]), match[0]), text)

    def text(self, text: str) -> str:
        """Without secrets, e-mail addresses and names of this user and machine: for configuration."""
        text, _ = drop_keys(text, inside=False)
        text = self.known_only(text)
        for rule in self._rules:
            text = rule(text)
        for pattern, replacement in self._places:
            text = pattern.sub(replacement, text)
        return self._hosts.sub(_host, text) if self._hosts is not None else text

    def log(self, text: str) -> str:
        """As :meth:`text`, and without what lines of a log may quote of records: whole lines, any number."""
        text = self.text(without_escapes(text))
        for rule in shapes.PEOPLE:
            text = rule(text)
        return text

    def name(self, text: str) -> str:
        """A file's name or relative path, as it may stand in an archive."""
        clean = re.sub(r"[<>:\"\\|?*\x00-\x1f]+", "_", self.text(text))
        return "/".join(part for part in clean.split("/") if part not in ("", ".", ".."))


class LogStream:
    """Takes secrets out of a log that arrives in pieces of whole lines; remembers key blocks in between."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._inside = False

    def feed(self, text: str, *, cut: bool = False) -> str:
        """The next lines, redacted.

        Args:
            text: whole lines, or with ``cut`` the beginning of a line whose rest is left out.
            cut: see ``text``.
        """
        if self._inside or "PRIVATE KEY" in text:
            text, self._inside = drop_keys(text, inside=self._inside)
        text = self._redactor.log(text)
        return f"{text[:-CUT_MARGIN]}<the rest of the line is cut>\n" if cut else text


def drop_keys(text: str, *, inside: bool) -> tuple[str, bool]:
    """Masks blocks of private keys.

    Args:
        text: with or without line breaks; a block may also stand in one line, with escaped ones.
        inside: whether ``text`` begins within a block.

    Returns:
        The text, and whether it ends within a block.
    """
    if not inside and "PRIVATE KEY" not in text:
        return text, False
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        rest = line
        while rest:
            if inside:
                end = _END_KEY.search(rest)
                if end is not None:
                    rest, inside = rest[end.end() :], False
                    kept.append(_KEY_MASK)
                elif _KEY_LINE.fullmatch(rest):
                    rest = ""
                else:  # its end was never written
                    inside = False
                    kept.append(f"{_KEY_MASK}\n")
            else:
                begin = _BEGIN_KEY.search(rest)
                if begin is None:
                    kept.append(rest)
                    break
                kept.append(rest[: begin.start()])
                rest, inside = rest[begin.end() :], True
                if not _END_KEY.search(rest):
                    rest = ""  # the rest of this line is the key's, whatever it looks like
    if inside:
        kept.append(f"{_KEY_MASK}\n" if text.endswith("\n") else _KEY_MASK)
    return "".join(kept), inside


@lru_cache(maxsize=256)
def _pattern(anywhere: frozenset[str], alone: frozenset[str]) -> re.Pattern[str]:
    """What is masked already comes first, so that no secret is found within a mask."""
    parts = [shapes.MASK]
    parts += [
        pattern_of(form) if form in anywhere else rf"(?<![A-Za-z0-9]){pattern_of(form)}(?![A-Za-z0-9])"
        for form in sorted(anywhere | alone, key=lambda form: (-len(form), form))
    ]
    return re.compile("|".join(parts))


def _place_rules(identity: Identity) -> list[tuple[re.Pattern[str], str]]:
    rules: list[tuple[str, str]] = []
    homes = {home.rstrip("/") for home in identity.homes}
    for home in sorted(homes - {""}, key=lambda home: (-len(home), home)):
        for form in sorted({home, quote(home, safe=""), home.replace("/", "\\/")}):
            rules.append((rf"(?<![A-Za-z0-9_.~-]){re.escape(form)}(?![A-Za-z0-9_-])", "~"))
    # Of other users and machines: "/home/somebody", "/Users/somebody".
    rules.append(
        (r"(?<![A-Za-z0-9_.-])(\\?/(?:home|Users)\\?/)(?!<user>)[^\s/\\\"'<>:,;()\[\]]+", r"\1<user>"),
    )
    rules.append((r"(?i)(%2F(?:home|Users)%2F)(?!<user>)[A-Za-z0-9._-]+", r"\1<user>"))
    for user in sorted({user for user in identity.users if user.lower() not in _NOBODY}):
        name = rf"{re.escape(user)}(?![A-Za-z0-9_-])"
        rules.append((rf"((?:[/\\~]|%2[Ff])){name}", r"\1<user>"))
        rules.append((rf"(?<![A-Za-z0-9_-]){re.escape(user)}(?=@)", "<user>"))
        label = r"(?i:\b(?:user|username|user_name|logname|owner)[\"']?[ \t]?[:=][ \t]?[\"']?)"
        rules.append((rf"({label}){name}", r"\1<user>"))
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _host_rule(hosts: Iterable[str]) -> re.Pattern[str] | None:
    names = sorted(
        {host for host in hosts if len(host) > 1 and host.lower() not in _ANY_HOST},
        key=lambda host: (-len(host), host),
    )
    listed = "|".join(re.escape(name) for name in names)
    return re.compile(rf"{shapes.MASK}|(?<![A-Za-z0-9_-])(?:{listed})(?![A-Za-z0-9_-])") if names else None


def _host(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith("<") else "<host>"
