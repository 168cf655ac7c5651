"""`isohub demo`: two versions of one repository in one program, measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from isohub.cli.options import Json, Traceback
from isohub.cli.running import running

if TYPE_CHECKING:
    import typer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo")(_demo)


def _demo(*, json: Json = False, traceback: Traceback = False) -> None:
    """Show two versions of one repository, side by side.

    They are loaded with isohub and then, in a throw-away process, with torch.hub, and measured alike.

    It needs git, and no network. Nothing of it is kept.
    """
    with running(traceback=traceback) as answer:
        from rich.console import Console

        # Gone when the answer comes, and not there at all unless somebody looks.
        with Console(stderr=True).status("Importing torch") as status:
            from isohub.demo.show import measure, render

            figures = measure(status.update)
        if json:
            answer.json(asdict(figures))
        else:
            answer.rich(*render(figures))
