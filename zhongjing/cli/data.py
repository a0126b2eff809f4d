"""``zhongjing data``: looks at corpora, and writes the example ones. The data layer is imported when used."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Look at corpora; write example ones.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("example")
def example() -> None:
    pass
