"""The page of the chart's values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.chart_page import VALUES_FILE, chart_page

ROOT = Path(__file__).parents[3]

VALUES = """\
# About all of it,
# in two lines.

# -- Who.
name: ""

store:
  # How large:
  # a | bar.
  size: 1Ti
  modes: [a, "b"]
  # What it has.
  inner:
    # Deep.
    none: {}
    list:
      # Not of a key.
      - {x: 1}
    some: null
"""


def test_every_value_stands_with_its_default_and_comment() -> None:
    page = chart_page(VALUES).splitlines()

    assert "About all of it, in two lines." in page
    start = page.index("## name")
    assert page[start:] == [
        "## name",
        "",
        "Who.",
        "",
        'Default: `""`',
        "",
        "## store",
        "",
        "| value | default | |",
        "| --- | --- | --- |",
        '| `store.size` | `"1Ti"` | How large: a \\| bar. |',
        '| `store.modes` | `["a", "b"]` |  |',
        "| `store.inner` |  | What it has. |",
        "| `store.inner.none` | `{}` | Deep. |",
        '| `store.inner.list` | `[{"x": 1}]` |  |',
        "| `store.inner.some` | `null` |  |",
    ]


def test_no_comment_of_the_values_is_lost() -> None:
    text = (ROOT / VALUES_FILE).read_text(encoding="utf-8")
    page = " ".join(chart_page(text).replace("\\|", "|").split())
    for line in text.splitlines():
        if line.strip().startswith("#"):
            words = line.strip().removeprefix("#").strip().removeprefix("-- ")
            assert words in page, line


@pytest.mark.parametrize(
    "path", ["workers.scratch.reserve", "networkPolicy.hosts", "s3.bundled.persistence.size"]
)
def test_the_page_has_the_values_that_messages_name(path: str) -> None:
    values = yaml.safe_load((ROOT / VALUES_FILE).read_text(encoding="utf-8"))
    for key in path.split("."):
        values = values[key]
    assert f"| `{path}` |" in chart_page((ROOT / VALUES_FILE).read_text(encoding="utf-8"))
