"""Data construction on a cluster: a pipeline of one source that is made, and of no other stage.

It is submitted, watched, resumed and shown as every other pipeline.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from zhongjing.cli.console import Console
from zhongjing.cli.construction import Order
from zhongjing.cli.errors import OK
from zhongjing.cli.target import ClusterTarget
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.resolve import UserDocument
from zhongjing.config.sources import Source
from zhongjing.errors import ConfigError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.construct.catalog import StepSettings
    from zhongjing.construct.manifest import SourceManifest

_SOURCE = "made"


def submit_made(
    console: Console, order: Order, made: dict[str, Any], target: ClusterTarget, *, wait: bool
) -> tuple[int, SourceManifest | None]:
    """Has a release make a source.

    Args:
        console: where it is told.
        order: source and place.
        made: how it is made, as a document says it, without ``from``.
        target: the release.
        wait: until it is made.

    Returns:
        The exit code; and what was made, if it was and may be read.

    Raises:
        ConfigError: something is on this machine alone.
        BackendError: the release cannot be reached.
    """
    from zhongjing.cli.submission import Order as Submitted
    from zhongjing.cli.submission import submission
    from zhongjing.construct.manifest import find_manifest

    user = document_of(order, _source_of(order, target), made)
    code = submission(Submitted(user=user), target, console).run(wait=wait, wait_for_input=False)
    if not wait or code != OK or console.json_mode:
        return code, None
    try:
        with target.open() as session:
            return code, find_manifest(session.store, order.out)
    except ZhongjingError as error:  # who may submit need not be allowed to read the store
        console.say(f"note: the manifest at {order.out} cannot be read from here: {error.message}")
        return code, None


def _source_of(order: Order, target: ClusterTarget) -> Source:
    if order.declared is not None or order.kind is not None:
        return order.source(None)
    refuse_local({"IN": order.place})
    with target.open() as session:
        return order.source(session.store)


def document_of(order: Order, source: Source, made: dict[str, Any]) -> UserDocument:
    """The pipeline that makes a source.

    Args:
        order: where it goes.
        source: the raw records.
        made: how it is made, without ``from``.

    Raises:
        ConfigError: something is on this machine alone.
    """
    written = source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    written.pop("made", None)
    refuse_local({"IN": source.place, **{f"--{name}": made.get(name) for name in ("policy", "drugs", "kg")}})
    written |= {"name": _SOURCE, "uri": order.out, "made": {"from": source.place, **made}}
    name = f"data-{'-'.join(made['steps'])}-{hashlib.sha256(order.out.encode()).hexdigest()[:8]}"
    data = {
        "metadata": {"name": name},
        # Nothing is trained: the base stands for none.
        "spec": {"base": {"tiny": {}}, "sources": [written], "stages": {"construct": _stage(order)}},
    }
    return UserDocument(data, "the command", {})


def _stage(order: Order) -> dict[str, Any]:
    return {} if order.processes is None else {"tasks": order.processes}


def refuse_local(places: dict[str, str | None]) -> None:
    """Raises ConfigError where one of these, by what names it, is a file of this machine."""
    for name, place in places.items():
        if place is not None and not place.startswith("s3://"):
            raise ConfigError(
                "a cluster does not see the files of this machine, and raw records are not uploaded",
                code=INVALID_OPTION,
                where=f"{name} {place}",
                remedy="give an s3:// URI, or add --local",
            )


def made_of(settings: StepSettings, key_variable: str | None) -> dict[str, Any]:
    """How a source is made, as a document says it, without ``from``.

    Args:
        settings: of the steps.
        key_variable: of the Ray nodes, with the API key; None: the server wants none.

    Raises:
        ConfigError: a setting that a document does not have.
    """
    for name, value in {"--rule": settings.rules, "--ledger": settings.ledger}.items():
        if value is not None:
            raise ConfigError(
                f"{name} is not for clusters", code=INVALID_OPTION, remedy=f"leave {name} out, or add --local"
            )
    made: dict[str, Any] = {"steps": list(settings.steps)}
    given = {"policy": settings.policy, "drugs": settings.drugs, "kg": settings.kg}
    made |= {name: value for name, value in given.items() if value is not None}
    if settings.accept_identifiable:
        made["acceptIdentifiable"] = True
    if settings.model is None:
        return made
    limits, prices = settings.limits, settings.limits.prices
    author = {
        "model": settings.model,
        "baseUrl": settings.base_url,
        "keyVariable": key_variable,
        "temperature": settings.sampling.temperature,
        "maxTokens": settings.sampling.max_tokens,
        "tries": settings.tries,
        "maxUnusableFraction": settings.most_unusable,
        "concurrency": limits.concurrency,
    }
    optional = {
        "requestsPerMinute": limits.requests_per_minute,
        "tokensPerMinute": limits.tokens_per_minute,
        "budget": limits.budget,
        "prices": None
        if prices is None
        else {"prompt": prices.prompt, "completion": prices.completion, "currency": prices.currency},
    }
    made["author"] = author | {name: value for name, value in optional.items() if value is not None}
    return made
