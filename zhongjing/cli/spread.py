"""Options that several commands share, written once: a dataclass whose fields become options of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def spread(parameter: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Has a command take the fields of one of its parameters, a dataclass, as options of its own.

    Typer reads the signature: it sees the fields, and the command gets the dataclass.

    Args:
        parameter: name of the parameter.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(command, include_extras=True)
        kind = hints[parameter]
        held = typing.get_type_hints(kind, include_extras=True)
        fields = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=held[field.name]
            )
            for field in dataclasses.fields(kind)
        ]
        own = [
            each.replace(annotation=hints[each.name])
            for each in inspect.signature(command).parameters.values()
            if each.name != parameter
        ]

        @functools.wraps(command)
        def run(**options: Any) -> Any:
            taken = {field.name: options.pop(field.name) for field in fields}
            return command(**options, **{parameter: kind(**taken)})

        all_of_them = [*own, *fields]
        signature = inspect.Signature(all_of_them, return_annotation=hints.get("return"))
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in all_of_them}
        del run.__wrapped__
        return run

    return decorate
