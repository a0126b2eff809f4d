"""What is written where: escape sequences only where a terminal shows them."""

from __future__ import annotations

import io

import pytest

from zhongjing.cli.console import Console

PAINTED = "\x1b[36m(worker pid=7)\x1b[0m \x1b]8;;http://x\x07发烧\x1b]8;;\x07 50\x1b[K %"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_escapes_never_go_into_pipes(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (Screen(), Screen()) if terminal else (io.StringIO(), io.StringIO())
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    console = Console()
    console.say(PAINTED)
    console.raw(PAINTED + "\n")
    console.warn(PAINTED)
    expected = PAINTED if terminal else "(worker pid=7) 发烧 50 %"
    assert out.getvalue().splitlines() == [expected] * 2
    assert err.getvalue().splitlines() == [expected]
