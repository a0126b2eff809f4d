"""Names of drugs in a text: those of a list, and words with the ending of a substance's name.

The list is the user's (one name a line, e.g. ``drug.txt`` of QASystemOnMedicalKG); it is searched with
Aho-Corasick. Endings follow the stems of international nonproprietary names in Chinese (西林 -cillin, 沙星
-oxacin, 他汀 -statin); they find substances that no list has.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ahocorasick

from zhongjing.codes import data as codes
from zhongjing.construct.llm.doses import notation
from zhongjing.errors import DataError
from zhongjing.storage.listing import expand

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

# Parts of names: the character before them tells most names apart (阿莫西林, 氨苄西林).
_STEMS = (
    "西林|沙星|霉素|环素|培南|洛芬|昔布|伐他汀|地平|普利|沙坦|拉唑|替丁|洛尔|"
    "列汀|列净|列酮|米松|尼松|奈德|唑仑|西泮|芬酸|氨酚|康唑|硝唑|洛韦|他韦|"
    "雷他定|利嗪|特罗|鲁司特|法林|匹林|格雷|立酮|西汀|必利|噻嗪|单抗|替尼"
)
# Names that are used without anything before them.
_ALONE = "舍曲林|呋塞米|他汀|胰岛素|肝素|双胍|可的松"
_CEPHALOSPORINS = "克肟|克洛|拉定|呋辛|曲松|氨苄|地尼|丙烯|哌酮|他啶|唑林|噻肟|羟氨苄|泊肟|西丁"
_SUBSTANCE = re.compile(f".?(?:{_STEMS})|{_ALONE}|头孢(?:{_CEPHALOSPORINS})?")
_SHORTEST = 2


@dataclass(frozen=True, slots=True)
class Mention:
    """A name and where it begins in a text in ``notation``."""

    start: int
    name: str


@dataclass(frozen=True)
class DrugNames:
    """A list of names; ``names`` are sorted and in ``notation``, each once."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> DrugNames:
        """The list of some names; those of one character are left out, for they are parts of words."""
        clean = {notation(name.strip()) for name in names}
        return cls(tuple(sorted(name for name in clean if len(name) >= _SHORTEST)))

    @classmethod
    def load(cls, place: str | Path, store: ObjectStore | None = None) -> DrugNames:
        """A file with a name a line, UTF-8.

        Args:
            place: a path, or an s3:// URI.
            store: needed for s3://.

        Raises:
            DataError: it cannot be read, or has no name.
        """
        path = str(place)
        try:
            if path.startswith("s3://"):
                assert store is not None, "s3:// needs a store"
                data = store.get(path)
            else:
                data = Path(expand(path)).read_bytes()
            names = cls.of(data.decode("utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the list of drugs cannot be read ({type(error).__name__})",
                code=codes.UNREADABLE_SOURCE,
                where=path,
                remedy="name a UTF-8 file with one name a line",
            ) from error
        if not names.names:
            raise DataError("the list of drugs has no name", code=codes.EMPTY_SOURCE, where=path)
        return names

    @property
    def digest(self) -> str:
        """sha256 of the names, for keys."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def find(self, text: str) -> list[Mention]:
        """The names in a text in ``notation``, by position: the longest at each place, none in another."""
        if not self.names:
            return []
        found: list[Mention] = []
        for end, name in _automaton(self.names).iter_long(text):
            found.append(Mention(end - len(name) + 1, name))
        return found

    def added(self, text: str, original: str) -> set[str]:
        """Names in ``text`` that do not stand in ``original``; both as written."""
        text, original = notation(text), notation(original)
        return {mention.name for mention in self.find(text) if mention.name not in original} | {
            name for name in substances(text) if name not in original
        }


def substances(text: str) -> set[str]:
    """What in a text in ``notation`` is, by its ending, the name of a substance or the end of one."""
    return set(_SUBSTANCE.findall(text))


@functools.lru_cache(maxsize=4)
def _automaton(names: tuple[str, ...]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for name in names:
        automaton.add_word(name, name)
    automaton.make_automaton()
    return automaton
