"""`isohub`: the program, its commands and how it ends.

Exit codes: 0 it worked; 1 isohub or the repository's code raised; 2 the command line cannot be read;
130 Ctrl-C; 143 and 129 it was asked to end by SIGTERM or SIGHUP.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from isohub.cli.commands import Commands

__all__ = ["app", "main"]

# Plain help texts: those of rich cost as much time again as all the rest of --help. And a traceback, where
# one is shown, is Python's own, with the worker's in it.
app = typer.Typer(
    name="isohub",
    cls=Commands,
    help="Load models from hub repositories, each ref in a worker process of its own.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from isohub import __version__

        print(f"isohub {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program with the arguments of this process, and exit."""
    # As an exception, so that temporary folders are removed and workers closed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        app(prog_name="isohub")
    except KeyboardInterrupt:  # outside of a command, which sees to it itself
        sys.exit(130)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
