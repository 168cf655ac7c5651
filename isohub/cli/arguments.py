"""The arguments of an entrypoint on the command line: how they are written, and how their texts are read."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Arg", "Kwarg", "keywords_of", "read_arguments"]

_VALUE = (
    "It is read as JSON where it parses as JSON (3, 0.5, true, null, [1, 2], '\"3\"' for the text), else taken as text"
)

Arg = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="VALUE", show_default=False, help=f"A positional argument. {_VALUE}."),
]
Kwarg = Annotated[
    list[str] | None,
    typer.Option("--kwarg", metavar="KEY=VALUE", show_default=False, help="A keyword argument; VALUE as for --arg."),
]


def read_arguments(args: list[str] | None, kwargs: list[str] | None) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments that the texts stand for.

    Raises:
        typer.BadParameter: A text cannot be read.
    """
    return [_value(text, "--arg") for text in args or []], keywords_of(kwargs or [])


def keywords_of(texts: list[str]) -> dict[str, Any]:
    """Return what texts of the form KEY=VALUE stand for.

    Raises:
        typer.BadParameter: One cannot be read.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--kwarg")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice.", param_hint="--kwarg")
        found[key] = _value(value, "--kwarg")
    return found


def _value(text: str, option: str) -> Any:
    if text in ("True", "False", "None"):
        # As a text "False" would count as true, and nobody would see why.
        in_json = {"True": "true", "False": "false", "None": "null"}[text]
        raise typer.BadParameter(f"{text} in JSON is {in_json}; for the text write '\"{text}\"'.", param_hint=option)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
