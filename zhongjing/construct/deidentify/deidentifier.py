"""De-identification as a step of data construction."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zhongjing.codes.document import MISSING_FIELD
from zhongjing.construct.deidentify.engine import Finder, Span
from zhongjing.construct.deidentify.lexicon import Lexicon, load_lexicon
from zhongjing.construct.deidentify.likelihood import model_digest
from zhongjing.construct.deidentify.policy import Identifier, Policy, load_policy
from zhongjing.construct.deidentify.surrogates import Surrogates
from zhongjing.construct.step import Outcome
from zhongjing.data.records import Ranking, Record, TextRecord, record_texts
from zhongjing.errors import ConfigError

_BETWEEN = "\n\x1e\n"  # texts of a record are searched as one: a name said once is known in all of them
MIN_SALT = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """What was replaced. ``text`` is the original, ``None`` unless it was asked for.

    ``part`` counts the texts of the record as :func:`record_texts` gives them; ``start`` and ``end`` are
    characters of that text.
    """

    entity: Identifier
    part: int
    start: int
    end: int
    replacement: str
    text: str | None = None


class Deidentifier:
    """Replaces identifiers as the policy says; a record is one dialogue.

    Args:
        policy: what each class becomes; that which is shipped, if none is given.
        salt: a secret of at least 16 characters, for a policy with made-up values.
        lexicon: what names are made of; for measurements.

    Raises:
        ConfigError: the policy needs a salt.
    """

    name = "deidentify"
    version = 2

    def __init__(
        self, policy: Policy | None = None, *, salt: str | None = None, lexicon: Lexicon | None = None
    ) -> None:
        self._policy = policy or load_policy()
        if self._policy.needs_salt and len(salt or "") < MIN_SALT:
            raise ConfigError(
                "the policy makes up values and needs a salt",
                code=MISSING_FIELD,
                where="salt",
                remedy=f"give a secret of at least {MIN_SALT} characters, or write action: placeholder",
            )
        self._salt = salt or ""
        self._lexicon = lexicon or load_lexicon()
        self._finder: Finder | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The engine is made anew in each process.
        return {**self.__dict__, "_finder": None}

    def parameters(self) -> dict[str, object]:
        """Policy, and digests of salt, lexicon and name model."""
        lists = (self._lexicon.surnames, self._lexicon.compound, self._lexicon.given, self._lexicon.common)
        listed = "\n".join(" ".join(sorted(each)) for each in lists)
        return {
            "policy": self._policy.model_dump(mode="json"),
            "salt": hashlib.sha256(self._salt.encode()).hexdigest() if self._salt else None,
            "lexicon": hashlib.sha256(listed.encode()).hexdigest(),
            "names": model_digest(),
        }

    def apply(self, record: Record) -> Outcome:
        """The record without identifiers. ``counts``: replacements by class; ``touched``: records."""
        texts = list(record_texts(record))
        findings = list(self._findings(texts))
        if not findings:
            return Outcome((record,))
        counts = Counter(finding.entity.value for finding in findings)
        parts = [list(text) for text in texts]
        for finding in reversed(findings):
            parts[finding.part][finding.start : finding.end] = [finding.replacement]
        changed = _with_texts(record, ["".join(part) for part in parts])
        return Outcome((changed,), {"touched": 1, **dict(sorted(counts.items()))})

    def review(self, record: Record, *, with_text: bool = False) -> tuple[Finding, ...]:
        """What :meth:`apply` replaces, in order; the original text only on request."""
        findings = self._findings(list(record_texts(record)))
        return tuple(each if with_text else replace(each, text=None) for each in findings)

    def _findings(self, texts: Sequence[str]) -> Iterator[Finding]:
        if self._finder is None:
            kept = [name for name, rule in self._policy.classes.items() if rule.action != "keep"]
            self._finder = Finder(self._lexicon, kept)
        joined = _BETWEEN.join(texts)
        spans = self._finder.find(joined)
        if not spans:
            return
        # A dialogue is named by its own texts, so that what it becomes does not depend on where it is kept.
        dialogue = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()
        found = [(span.entity, joined[span.start : span.end]) for span in spans]
        surrogates = Surrogates(self._policy, found, f"{self._salt}\0{dialogue}")
        for part, start, span in _placed(texts, spans):
            text = joined[span.start : span.end]
            replacement = surrogates.replace(span.entity, text)
            yield Finding(span.entity, part, start, start + len(text), replacement, text)


def _placed(texts: Sequence[str], spans: Sequence[Span]) -> Iterator[tuple[int, int, Span]]:
    """Text and place in it for each span of the joined texts."""
    part = offset = 0
    for span in spans:
        while span.start >= offset + len(texts[part]) + len(_BETWEEN):
            offset += len(texts[part]) + len(_BETWEEN)
            part += 1
        yield part, span.start - offset, span


def _with_texts(record: Record, texts: list[str]) -> Record:
    """The record with other texts, as many as :func:`record_texts` gives."""
    if isinstance(record, TextRecord):
        return replace(record, text=texts[0])
    old = record.prompt if isinstance(record, Ranking) else record.turns
    turns = tuple(replace(turn, content=text) for turn, text in zip(old, texts, strict=False))
    if isinstance(record, Ranking):
        return replace(record, prompt=turns, answers=tuple(texts[len(turns) :]))
    return replace(record, turns=turns)
