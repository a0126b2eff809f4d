"""Command lines that messages name, made in one place: for the pipeline, place and document at hand.

A text that is written where none of these is known (a catalogue's remedy, a job's error, a status) has its
commands between backticks, with NAME, STAGE and FILE for what is open. Where the text is shown,
:meth:`Commands.complete` makes them commands that can be given as they stand.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

# Commands that take --local, --workdir, -n, --context and --release; inspect takes the first two.
_PLACED = (
    "submit",
    "status",
    "logs",
    "stop",
    "resume",
    "pull",
    "curves",
    "plan",
    "dashboard",
    "data quarantine",
    "report",
    "doctor",
)
_LOCAL_ONLY = ("data inspect",)
_MARKED = re.compile(r"`((?:zhongjing|kubectl|helm) [^`]+)`")
_PLACE = re.compile(
    r"(?<!\S)(--local|(?:--workdir|--namespace|-n|--context|--release)[ =]('[^']*'|\S+))(?!\S)"
)
_OPEN = re.compile(r"\b(NAME|STAGE|FILE)\b")
# What these commands find out themselves.
_MAY_LACK = re.compile(r"^(zhongjing (?:status|logs|stop|resume|report))(?: NAME)?(.*?)(?: --stage STAGE)?$")
_EVERYWHERE = re.compile(r"(?<!\S)(-n|--namespace|--all-namespaces|-A|--raw|--kubeconfig)\b")


@cache
def program() -> str:
    """How this environment's ``zhongjing`` is called: by name where the shell finds it, else by its path."""
    script = Path(sys.executable).parent / "zhongjing"
    found = shutil.which("zhongjing")
    if found is not None and Path(found).parent == script.parent:
        return "zhongjing"
    if not script.is_file():
        return shlex.join([sys.executable, "-m", "zhongjing"])
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))


class Commands:
    """Command lines that speak to one place.

    Args:
        place: the options that name it, as they are given: ``--local --workdir runs``, ``-n train``, nothing;
            None: it is not known, and what a text says of it stays.
        document: the options that name the document at hand and what was changed of it (``-f my.yaml``);
            none: the one that the pipeline has counts (``submit --pipeline``).
        name: what ``zhongjing`` is called; None: as in this process's environment.
    """

    def __init__(
        self, place: str | Sequence[str] | None = (), document: Sequence[str] = (), *, name: str | None = None
    ) -> None:
        self._known = place is not None
        self.place = shlex.split(place) if isinstance(place, str) else list(place or ())
        self._document = list(document)
        self._name = name

    def line(self, command: str, *words: str) -> str:
        """A command line: ``line("logs", "tiny", "--stage", "rm")``."""
        given = [*words]
        if command == "submit" and self._document and "--pipeline" in given:
            at = given.index("--pipeline")
            given[at : at + 2] = self._document
        return " ".join(
            [self._name or program(), command, *([shlex.join(given)] if given else []), *self._flags(command)]
        )

    def complete(
        self, text: str, pipeline: str | None = None, stage: str | None = None, *, keep: bool = False
    ) -> str:
        """A text with its commands made whole.

        Args:
            text: commands stand between backticks.
            pipeline: what NAME is; None: it stays.
            stage: what STAGE is; None: it stays.
            keep: keep the backticks, for a text that is completed again where it is shown.
        """
        file = self._document[1] if self._document[:1] == ["-f"] else None
        known = {"NAME": pipeline, "STAGE": stage, "FILE": file and shlex.quote(file)}

        def whole(match: re.Match[str]) -> str:
            told = _OPEN.sub(lambda found: known[found[1]] or found[1], match[1])
            told = _MAY_LACK.sub(r"\1\2", told)
            words = told.partition(" ")
            made = self._ours(words[2]) if words[0] == "zhongjing" else self._theirs(words[0], words[2])
            return f"`{made}`" if keep else made

        return _MARKED.sub(whole, text)

    def _ours(self, rest: str) -> str:
        verb = next((each for each in (*_PLACED, *_LOCAL_ONLY) if f"{rest} ".startswith(f"{each} ")), None)
        if verb is None or not self._known or (verb in _LOCAL_ONLY and "--local" not in self.place):
            return f"{self._name or program()} {rest}"
        words = shlex.split(_PLACE.sub("", rest.removeprefix(verb)))
        return self.line(verb, *words)

    def _theirs(self, tool: str, rest: str) -> str:
        given = dict(zip(self.place, self.place[1:], strict=False))
        if "-n" not in given or _EVERYWHERE.search(rest):
            return f"{tool} {rest}"
        context = "--kube-context" if tool == "helm" else "--context"
        place = ["-n", given["-n"], *([context, given["--context"]] if "--context" in given else [])]
        return f"{tool} {shlex.join(place)} {rest}"

    def _flags(self, command: str) -> list[str]:
        if command in _PLACED or (command in _LOCAL_ONLY and "--local" in self.place):
            return [shlex.join(self.place)] if self.place else []
        return []
