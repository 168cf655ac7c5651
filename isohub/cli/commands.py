"""The commands there are, each imported when it is asked for: `isohub --help` needs their names and one line each."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

__all__ = ["COMMANDS", "Commands"]

# Name: the module in `isohub.cli` that adds it, and the first line of its docstring.
COMMANDS = {
    "list": ("repository", "List the entrypoints of a repository, one a line."),
    "help": ("repository", "Show the docstring of an entrypoint."),
    "load": ("load", "Load from an entrypoint, and describe what came."),
    "compare": ("compare", "Compare versions of a model on the same inputs."),
    "bisect": ("bisect", "Find the first commit whose model differs from a good one."),
    "export": ("export", "Write a model to a file that needs no repository."),
    "inspect": ("inspect", "Show what the file of a model tells of itself."),
    "lock": ("lock", "Lock refs: write down their commits, and the hashes of files."),
    "prefetch": ("lock", "Bring repositories here, for later use without a network."),
    "ps": ("ps", "List the workers of all programs on this machine."),
    "doctor": ("doctor", "Check whether this machine has what isohub needs."),
    "demo": ("demo", "Show two versions of one repository, side by side."),
    "cache": ("cache", "Show what is kept on this machine, check it, and remove from it."),
    "trust": ("trust", "List, add and remove repositories whose code may run."),
}


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # None: not brought yet

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None if there is none of that name."""
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            part = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
            importlib.import_module(f"isohub.cli.{COMMANDS[cmd_name][0]}").add_to(part)
            self.commands.update(get_group(part).commands)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
