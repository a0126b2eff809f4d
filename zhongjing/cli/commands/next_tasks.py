"""``zhongjing feedback next``: the tasks whose rankings would teach a reward model the most."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.commands.chat import trained_system
from zhongjing.cli.console import Console
from zhongjing.cli.construction import Out
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import Format, OutputFormat
from zhongjing.cli.place import StoreOptions
from zhongjing.cli.spread import spread
from zhongjing.codes.model import MODEL_NOT_FOUND
from zhongjing.errors import DataError

if TYPE_CHECKING:
    from zhongjing.feedback.selection import Score

EPILOG = """
\b
Examples:
  zhongjing pull tiny/rm ./rm-a && zhongjing pull other/rm ./rm-b
  zhongjing feedback next s3://a/tasks s3://a/next --reward-models ./rm-a,./rm-b --count 500 --local

The reward models differ in their seed, or in the half of the rankings that they learnt from. The result is a
task set like the first, the tasks of the most worth first. A run that was interrupted goes on with the same
command.
"""


@guarded
@spread("at")
def next_tasks(
    *,
    tasks: Annotated[str, typer.Argument(metavar="TASKS", help="Folder of the task set to choose from.")],
    out: Out,
    reward_models: Annotated[
        str, typer.Option("--reward-models", metavar="A,B,...", help="Folders that `pull` made, two or more.")
    ],
    at: StoreOptions,
    count: Annotated[int, typer.Option("--count", help="Tasks wanted.", min=1)] = 1000,
    ranked: Annotated[
        list[str] | None,
        typer.Option("--ranked", metavar="TASKS", help="Leave out the tasks of this set; repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1; the GPU unless given, where there is one.")
    ] = None,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Choose the tasks on which reward models disagree."""
    from zhongjing.construct.runner import Progress
    from zhongjing.feedback.selection import Pool, check_models, choose, score_pool
    from zhongjing.feedback.tasks import read_task_set, read_tasks

    construction.check_out(out)
    out, tasks = out.rstrip("/"), tasks.rstrip("/")
    folders = [Path(name.strip()) for name in reward_models.split(",") if name.strip()]
    models = [_fingerprint(folder) for folder in folders]
    check_models(models)
    console = Console(json_mode=output == Format.JSON)
    with at.opened_here(create=True) as store:
        done: set[str] = set()
        for other in ranked or ():
            done |= {task.id for task in read_tasks(store, other, read_task_set(store, other))}
        pool = Pool(tasks, read_task_set(store, tasks), done)
        size = sum(part.tasks for part in pool.task_set.parts)
        for place, (folder, model) in enumerate(zip(folders, models, strict=True)):
            with construction.shown(console) as listen:

                def told(part: float, left: float | None, *, place: int = place) -> None:
                    done = (place + part) / len(folders)
                    seconds = (
                        left if left is None or part >= 1 else left * len(folders) * (1 - done) / (1 - part)
                    )
                    listen(Progress(done, int(size * part), seconds))

                score_pool(store, pool, out, model, partial(_load, folder, device), told)
        chosen = choose(store, pool, out, models, count)
    number = sum(chosen.prompts.values())
    if console.json_mode:
        console.result({"uri": out, **chosen.model_dump(mode="json")})
    else:
        console.say(f"{number:,} of {size:,} tasks, those of the most worth first: {out}")


def _fingerprint(folder: Path) -> str:
    from zhongjing.model.adapters import ADAPTER_WEIGHTS
    from zhongjing.model.scorer import fingerprint

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            "this is no folder of a reward model",
            code=MODEL_NOT_FOUND,
            where=str(folder),
            remedy="fetch one: `zhongjing pull NAME/rm FOLDER --local`",
        )
    return fingerprint(folder)


def _load(folder: Path, device: str | None) -> Score:
    import torch

    from zhongjing.model.scorer import Scorer

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if place == "cpu" else torch.bfloat16
    return Scorer(
        folder, device=torch.device(place), dtype=dtype, system_prompt=trained_system(folder)
    ).scores
