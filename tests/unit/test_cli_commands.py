"""The table of commands, from which `isohub --help` is written."""

from __future__ import annotations

import typer
from typer.main import get_command

from isohub.cli.commands import COMMANDS
from isohub.cli.main import app


def test_table_says_what_the_commands_say():
    """Each command's line in `isohub --help` is the first line of its own help."""
    group = get_command(app)
    context = typer.Context(group)

    said = {name: group.get_command(context, name).help.splitlines()[0] for name in COMMANDS}

    assert {name: line for name, (_, line) in COMMANDS.items()} == said


def test_names_of_no_command():
    """A name that is no command's is none, whatever else the modules have."""
    group = get_command(app)

    assert group.get_command(typer.Context(group), "commands") is None
