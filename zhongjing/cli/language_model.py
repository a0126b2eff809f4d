"""What the commands share that ask a language model: options, plan, run, and what is told afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import Order
from zhongjing.cli.display.text import table
from zhongjing.cli.errors import FAILED, OK
from zhongjing.cli.made import made_of, submit_made
from zhongjing.cli.place import PlaceOptions
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError, LanguageModelError
from zhongjing.pipeline.headline import duration

if TYPE_CHECKING:
    from zhongjing.construct.catalog import StepSettings
    from zhongjing.construct.llm.limits import Limits
    from zhongjing.construct.llm.server import KeySource, Server
    from zhongjing.construct.manifest import SourceManifest
    from zhongjing.construct.plan import AskingPlan, ConstructionPlan
    from zhongjing.storage.objects import ObjectStore

KEY_VARIABLE = "OPENAI_API_KEY"
_MOST_COUNTS = 16  # labels of a step that are shown; the manifest has all


@dataclass(frozen=True)
class Steps:
    """Steps by name, and their settings that are not the model's, as the catalogue has them."""

    names: tuple[str, ...]
    drugs: str | None = None
    kg: str | None = None
    rules: frozenset[str] | None = None

    @property
    def ask(self) -> bool:
        """Whether they cannot do without a model."""
        return self.names != ("check",)


@dataclass(frozen=True)
class ModelOptions:
    """Which language model is asked, how, and how much: options of a command (see ``spread``)."""

    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model, as its server names it.")
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="Its server, e.g. https://api.openai.com/v1."),
    ] = None
    key_variable: Annotated[
        str,
        typer.Option("--key-variable", metavar="NAME", help="Environment variable that holds the API key."),
    ] = KEY_VARIABLE
    no_key: Annotated[bool, typer.Option("--no-key", help="The server wants no key; none is sent.")] = False
    concurrency: Annotated[
        int, typer.Option("--concurrency", help="Questions under way at a time.", min=1)
    ] = 8
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", help="At most so many.", min=0.01)
    ] = None
    tokens_per_minute: Annotated[
        float | None, typer.Option("--tokens-per-minute", help="At most so many.", min=1)
    ] = None
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Most money that OUT may cost, resumed runs included.", min=0),
    ] = None
    price_in: Annotated[
        float | None,
        typer.Option("--price-in", help="For a million tokens of questions; known for some models.", min=0),
    ] = None
    price_out: Annotated[
        float | None, typer.Option("--price-out", help="For a million tokens of answers.", min=0)
    ] = None
    currency: Annotated[str, typer.Option("--currency", help="Of the prices and the budget.")] = "USD"
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of sampling; below 0: the server's default.")
    ] = 0.3
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Of one answer.", min=1)] = 2048
    tries: Annotated[
        int, typer.Option("--tries", help="Answers asked for a record before it is quarantined.", min=1)
    ] = 3
    max_unusable: Annotated[
        float,
        typer.Option(
            "--max-unusable", help="Fraction of the records that may get no usable answer.", min=0, max=1
        ),
    ] = 0.2
    accept_identifiable: Annotated[
        bool,
        typer.Option("--accept-identifiable", help="Send text that was not de-identified (patients' data!)."),
    ] = False
    ledger: Annotated[
        str | None,
        typer.Option("--ledger", metavar="URI", help="Where answers are kept; s3://<bucket of OUT>/ledger."),
    ] = None

    def settings(self, steps: Steps, *, reads_key: bool) -> StepSettings:
        """What the steps are built from.

        Args:
            steps: by name, with their settings that are not the model's.
            reads_key: whether this machine asks, and needs the key.

        Raises:
            ConfigError: address, limits or prices cannot be used.
            LanguageModelError: the API key is missing.
        """
        from zhongjing.construct.catalog import StepSettings
        from zhongjing.construct.llm.server import Sampling, Server

        if (self.model is None) != (self.base_url is None) or (self.model is None and steps.ask):
            raise ConfigError(
                "a language model is asked, and it is not said which, or where",
                code=INVALID_OPTION,
                remedy="give --model and --base-url",
            )
        named = Server(self.base_url, self.model) if self.base_url and self.model else None
        temperature = None if self.temperature is None or self.temperature < 0 else self.temperature
        return StepSettings(
            steps=steps.names,
            model=self.model,
            base_url=self.base_url,
            key=self._key(named) if named is not None and reads_key else None,
            sampling=Sampling(max_tokens=self.max_tokens, temperature=temperature),
            limits=self._limits(named),
            tries=self.tries,
            most_unusable=self.max_unusable,
            accept_identifiable=self.accept_identifiable,
            ledger=self.ledger,
            drugs=steps.drugs,
            kg=steps.kg,
            rules=steps.rules,
        )

    def _key(self, server: Server) -> KeySource | None:
        from zhongjing.construct.llm.server import KeySource

        if self.no_key:
            return None
        source = KeySource(environment=self.key_variable)
        try:
            source.read()
        except LanguageModelError as error:
            if server.is_local and self.key_variable == KEY_VARIABLE:
                return None
            raise LanguageModelError(
                error.message,
                code=error.code,
                where=error.where,
                remedy=f"export {self.key_variable}; --key-variable names another variable, "
                "and --no-key is for a server that wants none",
            ) from None
        return source

    def _limits(self, server: Server | None) -> Limits:
        from zhongjing.construct.llm.limits import Limits, Prices
        from zhongjing.construct.llm.prices import published

        prices = None if server is None else published(server)
        if self.price_in is not None or self.price_out is not None:
            prices = Prices(self.price_in or 0.0, self.price_out or 0.0, self.currency)
        return Limits(self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.budget, prices)


def carry_out(
    console: Console, order: Order, asked: ModelOptions, at: PlaceOptions, steps: Steps, *, plan: bool
) -> int:
    """Plans a construction, or carries it out; returns the exit code.

    Args:
        console: where it is told.
        order: source and place.
        asked: which language model is asked, if one is.
        at: where it is done.
        steps: by name, with their settings that are not the model's.
        plan: say what it takes, and write nothing.
    """
    from zhongjing.construct.catalog import build_steps

    construction.check_out(order.out)
    cluster = at.cluster
    settings = asked.settings(steps, reads_key=not plan and cluster is None)
    if cluster is not None and not plan:
        made = made_of(settings, None if asked.no_key else asked.key_variable)
        code, manifest = submit_made(console, order, made, cluster, wait=not at.no_wait)
        if manifest is not None:
            construction.tell_result(console, manifest, order.out, review=False)
            console.say_lines(noted_lines(manifest))
        return code
    wanted = 1 if settings.asks else order.workers
    order = replace(order, processes=settings.processes(order.processes or wanted))
    if plan:
        declared = order.declared
        places = (order.place if declared is None else declared.uri, settings.kg, settings.drugs)
        stored = any(place is not None and place.startswith("s3://") for place in places)
        with at.opened(create=False) if stored else nullcontext() as store:
            return tell_plan(console, order, settings, store)
    with at.opened(create=True) as store:
        built = build_steps(settings, order.out, store, processes=order.workers)
        manifest = construction.make(console, store, order, built, patience=settings.patience)
    construction.tell_result(console, manifest, order.out, review=False)
    if not console.json_mode:
        console.say_lines(noted_lines(manifest))
    return OK


def tell_plan(console: Console, order: Order, settings: StepSettings, store: ObjectStore | None) -> int:
    """Says what a construction will take; 1 where the source would be refused."""
    from zhongjing.construct.catalog import build_steps
    from zhongjing.construct.plan import plan

    steps = build_steps(settings, order.out, store)
    found = plan(store, order.source(store), steps, processes=order.workers)
    if console.json_mode:
        console.result(found.model_dump(mode="json"))
    else:
        console.say_lines([*construction.plan_lines(found), *asking_lines(found, settings)])
    return OK if found.refused is None else FAILED


def asking_lines(found: ConstructionPlan, settings: StepSettings) -> Iterator[str]:
    """What will be asked, for people."""
    about = "" if found.exact else "about "
    for each in found.asking:
        yield ""
        rows = [
            (each.step, f"{about}{each.records:,} of {found.records:,} records, by {each.model}"),
            ("requests", f"about {each.requests:,}"),
            ("tokens", f"about {each.prompt_tokens:,} in, {each.completion_tokens:,} out"),
            ("cost", _cost(each, settings)),
            ("time", f"about {duration(each.hours * 3600)}, {_pace(settings.limits)}"),
        ]
        yield from (f"{name:<12}{text}" for name, text in rows)
    if found.paid is not None:
        paid = found.paid
        cost = "" if paid.cost is None else f", {paid.cost:,.4f} {paid.currency}"
        told = f"{paid.requests:,} requests, {paid.prompt_tokens:,} tokens in, {paid.completion_tokens:,} out"
        yield from ("", f"paid        {told}{cost}: of these nothing is asked again")
    if found.refused is not None:
        yield from ("", f"refused: {found.refused}")


def _cost(each: AskingPlan, settings: StepSettings) -> str:
    from zhongjing.construct.llm.prices import AS_OF, published
    from zhongjing.construct.llm.server import Server

    if each.cost is None:
        return "not known: no prices of this model are; give --price-in and --price-out"
    told = f"about {each.cost:,.2f} {each.currency}"
    if settings.base_url and published(Server(settings.base_url, each.model)) is settings.limits.prices:
        told += f", by the prices of {AS_OF}"
    if settings.limits.budget is not None and each.cost > settings.limits.budget:
        told += f"; the budget of {settings.limits.budget:,.2f} does not reach"
    return told


def _pace(limits: Limits) -> str:
    parts = [f"{limits.concurrency} at a time"]
    if limits.requests_per_minute is not None:
        parts.append(f"{limits.requests_per_minute:g} requests a minute")
    if limits.tokens_per_minute is not None:
        parts.append(f"{limits.tokens_per_minute:g} tokens a minute")
    return ", ".join(parts)


def noted_lines(manifest: SourceManifest) -> Iterator[str]:
    """What the steps did and noted, for people."""
    for step in manifest.steps:
        counts = sorted(manifest.counts.get(step.name, {}).items(), key=lambda item: (-item[1], item[0]))
        rows = [(label, f"{number:,}") for label, number in counts[:_MOST_COUNTS]]
        if len(counts) > _MOST_COUNTS:
            rows.append((f"{len(counts) - _MOST_COUNTS} more", "in the manifest"))
        yield from ("", *table((step.name, "count"), rows or [("nothing", "0")], right=(1,)))
    told: set[str] = set()
    for notes in manifest.notes.values():
        account = notes.get("account")
        if account is not None and account not in told:
            told.add(account)
            yield ""
            yield from (f"{name:<12}{text}" for name, text in _account_rows(notes))
    graph = next((notes["graph"] for notes in manifest.notes.values() if "graph" in notes), None)
    if graph is not None and graph["problems"]:
        yield from ("", *graph_lines(graph))


def _account_rows(notes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "asked", f"{notes['model']} at {notes['baseUrl']}"
    yield (
        "requests",
        f"{notes['requests']:,} answered; {notes['repeatedAfterKills']:,} of them again after kills",
    )
    if notes["retries"]:
        yield "retries", ", ".join(f"{reason}: {number:,}" for reason, number in notes["retries"].items())
    lost = notes["lostTokensAtMost"]
    more = f"; at most {lost:,} more for questions that a kill left open" if lost else ""
    yield "tokens", f"{notes['promptTokens']:,} in, {notes['completionTokens']:,} out{more}"
    cost = "not known: no prices were given"
    yield "cost", cost if notes["cost"] is None else f"{notes['cost']:,.4f} {notes['currency']}"


def graph_lines(graph: Mapping[str, Any]) -> Iterator[str]:
    """What is odd in a knowledge graph, for people; no rule judges by it."""
    counts = ", ".join(f"{kind}: {number:,}" for kind, number in graph["problems"].items())
    yield f"the graph has problems, by which nothing is judged ({counts})"
    for kind, examples in graph["examples"].items():
        yield from (f"  {kind}: {example}" for example in examples)
