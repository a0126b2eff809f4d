"""What is generated is what ``make generated`` would write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.generate import generated

ROOT = Path(__file__).parents[3]
FILES = generated(ROOT)


@pytest.mark.parametrize("name", FILES)
def test_a_generated_file_equals_what_it_is_made_from(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name], "run: make generated"
