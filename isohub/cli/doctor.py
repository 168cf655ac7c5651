"""`isohub doctor`: whether this machine has what isohub needs, and what to do where it has not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from isohub.cli.options import Json, Traceback
from isohub.cli.running import running

if TYPE_CHECKING:
    from isohub.cli.checks import Finding

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor")(_doctor)


def _doctor(*, json: Json = False, traceback: Traceback = False) -> None:
    """Check whether this machine has what isohub needs.

    The kernel, its limits, torch, the cache, git, and whether a worker starts and answers, and in what time.
    Each is ok, warning (something will not work, or not well) or failed (nothing will), with what to do.

    It ends with 1 if something failed.
    """
    with running(traceback=traceback) as answer:
        from isohub.cli.checks import findings

        found = list(findings())
        if json:
            answer.json({"findings": [asdict(one) for one in found]})
        else:
            answer.rich(_table(found), "", *(f"{one.check}: {one.advice}" for one in found if one.advice))
        if any(one.state == "failed" for one in found):
            raise typer.Exit(1)


def _table(found: list[Finding]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("check", "state", "found"):
        table.add_column(name, no_wrap=name != "found", overflow="fold")
    styles = {"ok": "green", "warning": "yellow", "failed": "red"}
    for one in found:
        table.add_row(one.check, Text(one.state, styles[one.state]), Text(one.found))
    return table
