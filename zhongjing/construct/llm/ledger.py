"""Answers that were paid for, in S3, each under the key of its question, before it is used.

::

    <root>/answers/<2 hex>/<key>.json                what was answered: raw, with usage, date and model
    <root>/accounts/<account>/<session>-<slot>.json  what a slot has spent, and what it is asking
                             /<session>.json         what a process has spent that has ended in order

A key covers the prompt (version and text), the model, the parameters and the input. To resume is to look the
key up. The first answer under a key stays: who comes second uses it as well, so all runs read the same.

A slot asks one question at a time. Before it asks, it says which; so after a kill at most one question a slot
is open, its cost counts as spent, and asking it again counts as repeated.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from zhongjing.construct.llm.client import Completion, Message
from zhongjing.construct.llm.limits import Tokens
from zhongjing.construct.llm.prompt import Prompt
from zhongjing.errors import ConflictError
from zhongjing.storage.documents import damaged, parse_json, parse_record, record_bytes
from zhongjing.storage.manifest import Record
from zhongjing.storage.objects import ObjectStore


def work_key(
    prompt: Prompt,
    model: str,
    parameters: Mapping[str, object],
    messages: Sequence[Message],
    attempt: int = 1,
) -> str:
    """The key of a question: 64 hex digits.

    ``messages`` hold the input, and a try that had a fault. ``attempt`` counts tries from 1: a model that
    makes the same mistake twice is asked the same thing twice.
    """
    covered = {
        "prompt": {"name": prompt.name, "version": prompt.version, "digest": prompt.digest},
        "model": model,
        "parameters": dict(parameters),
        "messages": [dict(message) for message in messages],
        "attempt": attempt,
    }
    text = json.dumps(covered, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class StoredAnswer(Record):
    """An answer as the server gave it. ``sha256`` is that of ``text`` in UTF-8."""

    version: Literal[1] = 1
    key: str
    prompt: str = Field(description="name and version, e.g. normalize-1")
    prompt_digest: str
    text: str
    finish_reason: str
    model: str = Field(description="as the server named it")
    date: str = Field(description="UTC, ISO 8601")
    form: str = Field(description="how it was asked for: schema, object or text")
    prompt_tokens: int
    completion_tokens: int
    counted: bool = Field(description="whether the server told the tokens; else they are a bound")
    sha256: str

    @property
    def tokens(self) -> Tokens:
        """What the answer took."""
        return Tokens(self.prompt_tokens, self.completion_tokens)


class SlotRecord(Record):
    """What one slot of one process has spent, and what it is asking."""

    version: Literal[1] = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = Field(default=0, description="questions asked and answered")
    repeated: int = Field(
        default=0, description="of all it asked, those that a killed process had asked before"
    )
    failed: dict[str, int] = Field(default_factory=dict, description="tries that came to nothing, by reason")
    asked: str | None = Field(default=None, description="key of the question under way")
    reserved_prompt_tokens: int = 0
    reserved_completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Total:
    """What an account has spent, over all processes and kills.

    ``requests``: questions asked and answered. ``repeated``: of all that were asked, those that a killed
    process had asked before. ``failed``: tries that came to nothing, by reason. ``used``: tokens of answers.
    ``lost``: what questions that a kill left open may have cost at most, beside that.
    """

    requests: int
    repeated: int
    failed: Mapping[str, int]
    used: Tokens
    lost: Tokens


class Ledger:
    """The stored answers below ``root``; shared by all work that may use one. Safe in several threads."""

    def __init__(self, store: ObjectStore, root: str) -> None:
        self._store = store
        self._root = root.rstrip("/")

    def uri(self, key: str) -> str:
        """Where the answer of that key is."""
        return f"{self._root}/answers/{key[:2]}/{key}.json"

    def find(self, key: str) -> StoredAnswer | None:
        """The stored answer, if there is one.

        Raises:
            StorageError: it is damaged; it is not asked for again unless the object is removed.
        """
        uri = self.uri(key)
        answer = self._store.find_record(uri, StoredAnswer)
        if answer is None:
            return None
        if answer.key != key or answer.sha256 != _sha256(answer.text):
            raise damaged("the object is damaged: the answer is not what its checksum says", uri)
        return answer

    def keep(self, key: str, prompt: Prompt, completion: Completion) -> StoredAnswer:
        """Stores an answer; returns the one to use, which is an earlier one if there is one."""
        answer = StoredAnswer(
            key=key,
            prompt=prompt.label,
            prompt_digest=prompt.digest,
            text=completion.text,
            finish_reason=completion.finish_reason,
            model=completion.model,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            form=completion.form.name.lower(),
            prompt_tokens=completion.usage.prompt,
            completion_tokens=completion.usage.completion,
            counted=completion.counted,
            sha256=_sha256(completion.text),
        )
        try:
            self._store.put(self.uri(key), record_bytes(answer), if_none_match=True)
        except ConflictError:
            # Another process was first, or the answer to an earlier try of this very write was lost.
            return self.find(key) or answer
        return answer

    def account(self, name: str) -> Account:
        """The account of a piece of work, with what earlier processes left in it."""
        return Account(self, self._store, f"{self._root}/accounts/{name}")


class Account:
    """What a piece of work has spent, over all processes and kills. One instance a process.

    Attributes:
        before: tokens of earlier processes; questions that a kill left open count with all they could take.
        lost: keys of those questions, unless their answer is stored.
        requests, repeated: of earlier processes and this one.
    """

    def __init__(self, ledger: Ledger, store: ObjectStore, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._session = uuid.uuid4().hex[:12]
        self._slots: dict[int, SlotRecord] = {}
        self.before = Tokens()
        self.lost: set[str] = set()
        self._requests = 0
        self._repeated = 0
        self._failed: Counter[str] = Counter()
        self._open = Tokens()
        infos = list(store.list(folder))
        names = {info.uri.rpartition("/")[2].removesuffix(".json") for info in infos}
        for info in infos:
            session, dash, _ = info.uri.rpartition("/")[2].removesuffix(".json").partition("-")
            if dash and session in names:
                continue  # a slot that its session's total has in it
            slot = parse_record(parse_json(store.get(info.uri), info.uri), SlotRecord, info.uri)
            self._take_over(slot, ledger)

    def _take_over(self, slot: SlotRecord, ledger: Ledger) -> None:
        self.before += Tokens(slot.prompt_tokens, slot.completion_tokens)
        self._requests += slot.requests
        self._repeated += slot.repeated
        self._failed.update(slot.failed)
        if slot.asked is None:
            return
        answer = ledger.find(slot.asked)
        if answer is None:
            self.lost.add(slot.asked)
            reserved = Tokens(slot.reserved_prompt_tokens, slot.reserved_completion_tokens)
            self.before += reserved
            self._open += reserved
        else:
            self.before += answer.tokens
            self._requests += 1

    @property
    def requests(self) -> int:
        """Questions asked and answered."""
        return self._requests + sum(slot.requests for slot in self._slots.values())

    @property
    def repeated(self) -> int:
        """Questions that were asked although a killed process had asked them: at most one a slot and kill."""
        return self._repeated + sum(slot.repeated for slot in self._slots.values())

    @property
    def total(self) -> Total:
        """All of it, this process included."""
        slots = self._slots.values()
        failed = Counter(self._failed)
        for slot in slots:
            failed.update(slot.failed)
        used = sum((Tokens(each.prompt_tokens, each.completion_tokens) for each in slots), Tokens())
        return Total(
            self.requests,
            self.repeated,
            dict(sorted(failed.items())),
            self.before - self._open + used,
            self._open,
        )

    def asking(self, slot: int, key: str, most: Tokens) -> None:
        """Notes, before it is sent, what a slot asks and what that can take."""
        record = self._slots.get(slot, SlotRecord())
        self._write(
            slot,
            record.model_copy(
                update={
                    "asked": key,
                    "repeated": record.repeated + (key in self.lost),
                    "reserved_prompt_tokens": most.prompt,
                    "reserved_completion_tokens": most.completion,
                }
            ),
        )
        self.lost.discard(key)

    def answered(self, slot: int, used: Tokens, failed: Mapping[str, int] | None = None) -> None:
        """Notes what the slot's question took; stored with its next one, or by :meth:`close`.

        Args:
            slot: that asked it.
            used: tokens.
            failed: tries that came to nothing before the answer, by reason.
        """
        record = self._slots[slot]
        self._slots[slot] = record.model_copy(
            update={
                "asked": None,
                "requests": record.requests + (used != Tokens()),
                "failed": dict(Counter(record.failed) + Counter(failed or {})),
                "prompt_tokens": record.prompt_tokens + used.prompt,
                "completion_tokens": record.completion_tokens + used.completion,
                "reserved_prompt_tokens": 0,
                "reserved_completion_tokens": 0,
            }
        )

    def close(self) -> None:
        """Stores the session's total in place of its slots; nothing is being asked any more."""
        if not self._slots:
            return
        slots = self._slots.values()
        failed: Counter[str] = Counter()
        for slot in slots:
            failed.update(slot.failed)
        total = SlotRecord(
            prompt_tokens=sum(slot.prompt_tokens for slot in slots),
            completion_tokens=sum(slot.completion_tokens for slot in slots),
            requests=sum(slot.requests for slot in slots),
            repeated=sum(slot.repeated for slot in slots),
            failed=dict(failed),
        )
        self._store.put(f"{self._folder}/{self._session}.json", record_bytes(total))
        self._store.delete([self._uri(slot) for slot in self._slots])

    def _write(self, slot: int, record: SlotRecord) -> None:
        self._slots[slot] = record
        self._store.put(self._uri(slot), record_bytes(record))

    def _uri(self, slot: int) -> str:
        return f"{self._folder}/{self._session}-{slot:03d}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
