"""`isohub list` and `isohub help`: what a repository has to offer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from isohub.cli.options import Entrypoint, Json, Repository, Source, Traceback, source_of
from isohub.cli.running import running

if TYPE_CHECKING:
    import typer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("list")(_list)
    app.command("help")(_help)


def _list(repo: Repository, *, source: Source = None, json: Json = False, traceback: Traceback = False) -> None:
    """List the entrypoints of a repository, one a line.

    hubconf.py is imported in a worker process; what it prints goes to stderr.
    """
    with running(traceback=traceback) as answer:
        from isohub.supervisor import early

        early.start()  # it imports torch while we do
        from isohub.api import Repo

        with Repo(repo, source=source_of(repo, source), verbose=not json) as opened:
            names = opened.list()
        if json:
            answer.json({"repo": str(opened.ref), "commit": opened.commit, "entrypoints": names})
        elif names:
            answer.text("\n".join(names))


def _help(
    repo: Repository, entry: Entrypoint, *, source: Source = None, json: Json = False, traceback: Traceback = False
) -> None:
    """Show the docstring of an entrypoint."""
    with running(traceback=traceback) as answer:
        from isohub.supervisor import early

        early.start()  # it imports torch while we do
        from isohub.api import Repo

        with Repo(repo, source=source_of(repo, source), verbose=not json) as opened:
            docstring = opened.help(entry)
        text = inspect.cleandoc(docstring or "") or None
        if json:
            answer.json({"repo": str(opened.ref), "commit": opened.commit, "entrypoint": entry, "help": text})
        else:
            answer.text(text or f"{entry} has no docstring.")
