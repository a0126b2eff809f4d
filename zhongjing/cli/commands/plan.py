"""``zhongjing plan``: what each stage takes, before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli.commands.config import load
from zhongjing.cli.console import Console
from zhongjing.cli.display.text import table
from zhongjing.cli.errors import FAILED, OK, guarded
from zhongjing.cli.example import with_example_files
from zhongjing.cli.options import (
    Format,
    KubeContext,
    Local,
    Namespace,
    OutputFormat,
    Overrides,
    Release,
    Workdir,
)
from zhongjing.cli.target import Target, choose, find
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.model import MODEL_NOT_FOUND
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, MissingInputError
from zhongjing.planning.hardware import size_text
from zhongjing.storage.manifest import StageManifest

if TYPE_CHECKING:
    from zhongjing.pipeline.session import Session
    from zhongjing.planning.shape import Shape
    from zhongjing.planning.source_tokens import Listed
    from zhongjing.planning.stage_plan import StageEstimate, Terms

LAST = 20
"""Results that ``--history`` lists."""

_MANIFEST = re.compile(rf"/({'|'.join(Stage)})/[0-9a-z]+/manifest\.json$")
_STORE_SECONDS = 1.0  # to wait for a store whose config.json would tell the base's sizes

EPILOG = """
\b
Examples:
  zhongjing plan --recipe zhongjing-13b --gpus 4xA100-80G
  zhongjing plan my.yaml --gpus 8xH100 --gpu-hour 2.5 --tokens 400000000
  zhongjing plan -f my.yaml --set spec.stages.sft.microBatchSize=1 -o json
  zhongjing plan --history --local             what the last runs took, and by how much the plan erred

Exit codes: 0 every stage fits (or nothing is known that it could fail to fit), 1 one does not, 2 bad input.
"""

_EXPLANATION = """\
Peak memory of one worker: whole weights; ZeRO-2's share of gradients (accumulated and current), masters and
moments; the largest phase of a step: activations of a full micro-batch with the loss, or the backward pass
with its buckets, or the optimizer's step, or in PPO the KV cache of a rollout. A ranking is one sample: where
its answers together are longer than the budget, its micro-batch takes more than this.
host: the process, a few tensors on their way; with offload the optimizer. scratch: base, checkpoint, result.
store: checkpoints.keep checkpoints, the best weights and the result.
tokens: --tokens, else 4 bytes of local sources each (--sources: of those in the store too), times epochs;
unknown of sources that a hub has or that are not there yet. PPO makes its tokens, so its hours are not known.
This is arithmetic: on CPUs within 10 % of what was measured with bases of 50 million parameters and more (of
smaller ones most is the process, which Ray makes larger), on GPUs not measured."""


@guarded
def plan(
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Document (YAML or JSON).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="Document that ships; tiny unless given.")
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="COUNTxNAME-MEMORY", help="What there is: 4xA100-80G.")
    ] = None,
    gpu_hour: Annotated[float | None, typer.Option("--gpu-hour", min=0, help="Price of a GPU hour.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens of one pass over a stage's data.")
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Ask the store how large sources are, for their tokens.")
    ] = False,
    tokens_per_second: Annotated[
        float | None,
        typer.Option("--tokens-per-second", min=0.001, help="Measured, of one worker; else 40% of the peak."),
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="Instead: what the last stages took, beside what was planned."),
    ] = False,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Document: a file, or a recipe's name. With --history: of one pipeline; else of all.",
        ),
    ] = None,
    local: Local = False,
    workdir: Workdir = None,
    output: OutputFormat = Format.TEXT,
    namespace: Namespace = None,
    context: KubeContext = None,
    release: Release = None,
) -> int:
    """Say what each stage takes of memory, disk, store and time, and whether it fits."""
    if history:
        target = choose(local=local, workdir=workdir, namespace=namespace, context=context, release=release)
        return _history(target, name, Console(json_mode=output is Format.JSON))
    if sum(each is not None for each in (name, file, recipe)) > 1:
        raise ConfigError(
            "more than one document is given", code=INVALID_OPTION, remedy="give a FILE, --file or --recipe"
        )
    from zhongjing.planning.hardware import parse_gpus
    from zhongjing.planning.stage_plan import Terms, plan_pipeline

    document = resolve(load(str(file) if file is not None else recipe or name or "tiny"), overrides or ())
    here = _this_machine() if local else Terms()
    terms = Terms(
        gpus=parse_gpus(gpus) if gpus else here.gpus,
        machine=here.machine,
        tokens_per_second=tokens_per_second,
        gpu_hour=gpu_hour,
        tokens=dict.fromkeys(document.spec.stages.trained(), tokens)
        if tokens
        else _tokens_of(document, sources=sources),
    )
    estimates = plan_pipeline(document, shapes_of(document), terms)
    fits = all(each.fits is not False for each in estimates)
    console = Console(json_mode=output is Format.JSON)
    if output is Format.JSON:
        console.result(
            {
                "pipeline": document.name,
                "fits": fits,
                "stages": [each.as_object() for each in estimates],
            }
        )
    else:
        console.say_lines(plan_lines(estimates))
        on_cpus = [each.stage.value for each in estimates if not each.memory.on_gpu]
        if gpus and on_cpus:
            console.say(
                f"note: the document asks for CPUs ({', '.join(on_cpus)}: resources.gpus is 0): "
                f"--gpus {gpus} does not count"
            )
    return OK if fits else FAILED


def _tokens_of(document: TrainingPipeline, *, sources: bool) -> dict[Stage, int]:
    """Tokens by what sources take; examples are generated to be measured."""
    from zhongjing.planning.source_tokens import tokens_of_sources

    with TemporaryDirectory(prefix="zhongjing-plan-") as folder:
        written = with_example_files(document, Path(folder))
        return tokens_of_sources(written, _listing(document) if sources else lambda _: ())


def _this_machine() -> Terms:
    """What there is here, as submit asks for it."""
    from zhongjing.backends.local import machine
    from zhongjing.planning.hardware import gpus_of
    from zhongjing.planning.stage_plan import Terms

    count, size = machine.gpus(), machine.gpu_memory()
    return Terms(gpus=gpus_of(count, size) if count and size else None, machine=machine.memory())


def shapes_of(document: TrainingPipeline) -> Callable[[Stage], Shape]:
    """The shape of the model that a stage stands on: the base, or what its ``from`` names.

    What it gives raises MissingInputError where neither a config.json nor the published name tells it.
    """
    from zhongjing.pipeline import graph
    from zhongjing.pipeline.fit import reader
    from zhongjing.pipeline.graph import start_of
    from zhongjing.planning.base_shape import shape_of, shape_of_base
    from zhongjing.planning.shape import of_name

    def read(uri: str) -> bytes | None:
        if of_name(uri.removesuffix("/config.json")) is not None:
            return None  # the store may be reached from the cluster alone
        from zhongjing.storage.objects import open_store

        hasty = document.spec.storage.model_copy(update={"deadline_seconds": _STORE_SECONDS})
        return reader(open_store(hasty))(uri)

    @cache
    def shape(reference: str) -> Shape:
        base = document.spec.base
        found = shape_of_base(base, read) if reference == graph.BASE else shape_of(reference, read)
        if found is None:
            named = "the base" if reference == graph.BASE else reference
            raise MissingInputError(
                f"the sizes of {named} are not known here",
                code=MODEL_NOT_FOUND,
                where="spec.base" if reference == graph.BASE else reference,
                remedy="name a folder with the model's config.json, or an s3:// URI that can be read here",
            )
        return found

    return lambda stage: shape(start_of(document, stage)[1].reference)


def _listing(document: TrainingPipeline) -> Listed:
    """Lists the store's objects; its errors are those of the command."""
    from zhongjing.storage.objects import open_store

    store = open_store(document.spec.storage)
    return lambda uri: [(info.uri, info.size) for info in store.glob(uri)]


def plan_lines(estimates: list[StageEstimate]) -> list[str]:
    """The plan for people: a table, the roles of each peak, what does not fit and what would help."""
    rows = []
    for each in estimates:
        verdict = {True: "fits", False: "does not fit", None: "no limit known"}[each.fits]
        rows.append(
            [
                each.stage.value,
                str(each.workers),
                f"{size_text(each.memory.peak)} {'GPU' if each.memory.on_gpu else 'CPU'}",
                size_text(each.limit) if each.limit is not None else "?",
                size_text(each.memory.host),
                size_text(each.scratch),
                size_text(each.stored),
                f"{each.tokens:,}" if each.tokens is not None else "?",
                f"{each.hours:.1f}" if each.hours is not None else "?",
                f"{each.money:.0f}" if each.money is not None else "?",
                verdict,
            ]
        )
    header = ["stage", "workers", "peak", "of", "host", "scratch", "store", "tokens", "hours", "money", ""]
    lines = [*table(header, rows), ""]
    for each in estimates:
        roles = ", ".join(f"{role} {size_text(size)}" for role, size in each.memory.device.items() if size)
        lines.append(f"{each.stage.value}: {roles}")
        lines += [f"  {problem}" for problem in each.problems]
        for remedy in each.remedies:
            more = each.memory.on_gpu and remedy.get("workers", 0) > each.workers
            lines.append(f"  would fit with {_flow(remedy)}{' on as many GPUs' if more else ''}")
        if each.problems and not each.remedies:
            lines.append("  no single field makes it fit; a smaller base or larger GPUs would")
    return [*lines, "", *_EXPLANATION.splitlines()]


def _history(target: Target, name: str | None, console: Console) -> int:
    """Lists plan, peak and error of the last results, of one pipeline or of all.

    Raises:
        BackendError, StorageError: the target or its store cannot be reached.
        ConfigError: there is no such pipeline.
    """
    with target.open() as session:
        names = [find(session, name).pipeline] if name is not None else session.pipelines()
        found = [each for pipeline in names for each in _manifests(session, pipeline)]
    found = sorted(found, key=lambda each: each.finished_at)[-LAST:]
    if console.json_mode:
        console.result({"runs": [_history_object(each) for each in found]})
        return OK
    if not found:
        console.warn("no stage has been measured here yet")
        return OK
    console.say_lines(
        table(
            ["finished", "pipeline", "stage", "workers", "memory", "plan", "peak", "error"],
            [_history_row(each) for each in found],
            right=(3, 5, 6, 7),
        )
    )
    return OK


def _manifests(session: Session, pipeline: str) -> list[StageManifest]:
    """Results of a pipeline that were measured, also those that are no longer in use."""
    store, home = session.store, session.layout(pipeline).home
    uris = [info.uri for info in store.list(home) if _MANIFEST.search(info.uri)]
    found = (store.find_record(uri, StageManifest) for uri in uris)
    return [each for each in found if each is not None and each.memory is not None]


def _history_row(manifest: StageManifest) -> list[str]:
    memory = manifest.memory
    assert memory is not None, "only results that were measured are listed"
    return [
        manifest.finished_at[:19].replace("T", " "),
        manifest.pipeline,
        manifest.stage.value,
        str(manifest.lineage.workers),
        memory.device,
        size_text(memory.plan) if memory.plan is not None else "-",
        size_text(memory.peak),
        f"{100 * memory.error:+.1f} %" if memory.error is not None else "-",
    ]


def _history_object(manifest: StageManifest) -> dict[str, Any]:
    memory = manifest.memory
    assert memory is not None, "only results that were measured are listed"
    return {
        "pipeline": manifest.pipeline,
        "stage": manifest.stage.value,
        "key": manifest.key,
        "finishedAt": manifest.finished_at,
        "workers": manifest.lineage.workers,
        **memory.model_dump(mode="json"),
        "errorPercent": round(100 * memory.error, 2) if memory.error is not None else None,
    }


def _flow(remedy: Mapping[str, Any]) -> str:
    """Fields as YAML in one line, to be pasted into the stage."""
    import yaml

    return yaml.safe_dump(dict(remedy), default_flow_style=True, width=1000).strip()
