"""What makes records of published items that are no text or dialogue by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.data.records import RejectedError

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Talk:
    """A dialogue to be: questions and answers by turns, a question first."""

    turns: tuple[str, ...]
    department: str | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """What an item becomes. ``counts``: what was done or left out, by label; never with text of the item."""

    texts: tuple[str, ...] = ()
    talks: tuple[Talk, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Converter(Protocol):
    """One published layout. Pure, small, and pickled into other processes."""

    @property
    def kind(self) -> Kind:
        """Of the records that it makes: text or dialogue."""
        ...

    @property
    def members(self) -> bool:
        """Whether a file is one object whose values are the items, by their identifiers."""
        ...

    def parameters(self) -> dict[str, object]:
        """What decides the outcome beside the item and the seed."""
        ...

    def convert(self, item: Item, choice: Choice) -> Converted:
        """Makes records of an item.

        Raises:
            RejectedError: the item is not of the layout, or contradicts itself.
        """
        ...


def text_of(item: Item, key: str, what: str) -> str:
    """A text of an item.

    Raises:
        RejectedError: there is none under the key; ``what`` says so.
    """
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RejectedError(what)
    return value


def list_of(item: Item, key: str, what: str) -> list[Any]:
    """A list of an item; raises as :func:`text_of` does."""
    value = item.get(key)
    if not isinstance(value, list):
        raise RejectedError(what)
    return value


def joined(words: Sequence[str], mark: str = "、") -> str:
    """The words, each once, in their order."""
    return mark.join(dict.fromkeys(words))
