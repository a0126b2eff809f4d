"""``zhongjing data split``: a test set drawn from a source, and what is left of it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import In, KeepText, Order, Plan, Processes, SourceFile
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import Format, OutputFormat, SourceKind
from zhongjing.cli.place import StoreOptions
from zhongjing.cli.spread import spread

EPILOG = """
\b
Examples:
  zhongjing data split s3://corpus/unique s3://corpus/cmtmedqa --count 1000 --least-turns 2 --endpoint URL
  zhongjing data split huatuo.json s3://zhongjing/huatuo --count 6000 --local
  zhongjing data split safety.jsonl s3://zhongjing/safety --count 200 --local

OUT/test holds so many different questions, OUT/rest what is left. What else of a corpus stands in OUT/test
is taken out with `data dedup ... --against OUT/test`.
"""


@guarded
@spread("at")
def split(
    *,
    source: In,
    out: Annotated[str, typer.Argument(metavar="OUT", help="s3:// folder for test and rest.")],
    at: StoreOptions,
    count: Annotated[int, typer.Option("--count", help="So many different questions.", min=1)],
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.", min=0)] = 0,
    least_turns: Annotated[
        int, typer.Option("--least-turns", help="Draw only dialogues with so many questions or more.", min=1)
    ] = 1,
    file: SourceFile = None,
    kind: SourceKind = None,
    plan: Plan = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Draw a test set from a source, by a hash of its questions."""
    from zhongjing.construct.draw import DrawStep, draw
    from zhongjing.construct.runner import in_processes

    out = out.rstrip("/")
    construction.check_out(out)
    console = Console(json_mode=output == Format.JSON)
    order = Order(source, out, file, kind, keep_text, processes)
    opened = at.opened_here
    if plan:
        step = DrawStep("rest", seed, 0.0, least_turns)
        construction.tell_plan(console, order, [step], partial(opened, create=False))
        return
    with opened(create=True) as store, construction.shown(console) as listen:
        test, rest = draw(
            store,
            order.source(store),
            out,
            count,
            seed=seed,
            least_turns=least_turns,
            work=in_processes(order.workers),
            listen=listen,
        )
    if console.json_mode:
        made = {"test": test, "rest": rest}
        console.result(
            {name: {"uri": f"{out}/{name}", "written": each.written} for name, each in made.items()}
        )
        return
    lines = [f"{test.written:,} records for the test, {rest.written:,} are left", "", "in a document:"]
    lines += [
        f"  - {{name: NAME-test, uri: {out}/test/, kind: {test.kind}, split: test}}",
        f"  - {{name: NAME, uri: {out}/rest/, kind: {rest.kind}}}",
    ]
    console.say_lines(lines)
