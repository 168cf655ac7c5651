"""`isohub trust`: list, add and remove the repositories and commits whose code may run."""

from __future__ import annotations

from typing import Annotated

import typer

from isohub.cli.options import Json, Traceback
from isohub.cli.running import Answer, running

__all__ = ["add_to"]

_Which = Annotated[
    list[str],
    typer.Argument(
        metavar="REPO...",
        show_default=False,
        help="owner/name on GitHub, host/owner/name, or a git URL; with @<commit> for that commit alone.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="List, add and remove repositories whose code may run.", no_args_is_help=True)
    group.command("ls")(_ls)
    group.command("add")(_add)
    group.command("rm")(_rm)
    app.add_typer(group, name="trust")


def _ls(*, json: Json = False, traceback: Traceback = False) -> None:
    """List what is trusted, one a line, and by what.

    torch.hub's own owners count always; a repository that an old torch.hub has fetched counts as well, and
    is not shown.
    """
    with running(traceback=traceback) as answer:
        from isohub.hub import trust, trust_list
        from isohub.hub.cache import hub_dir

        rows = [(str(entry), "torch.hub") for entry in trust.built_in()]
        rows += [(str(entry), trust.ENV_TRUST) for entry in trust.from_environment()]
        rows += [(str(entry), "list") for entry in trust_list.entries(hub_dir())]
        if json:
            trusted = [{"trusted": trusted, "by": by} for trusted, by in rows]
            answer.json({"hub_dir": str(hub_dir()), "trusted": trusted})
        else:
            width = max(len(trusted) for trusted, _ in rows)
            answer.text("\n".join(f"{trusted:<{width}}  {by}" for trusted, by in rows))


def _add(repos: _Which, *, json: Json = False, traceback: Traceback = False) -> None:
    """Trust repositories, or single commits: their code runs without a question."""
    with running(traceback=traceback) as answer:
        from isohub.hub import trust_list
        from isohub.hub.cache import hub_dir
        from isohub.hub.trust_list import Entry

        entries = [Entry.parse(text) for text in repos]  # all of them, before the first is written
        added = [str(entry) for entry in entries if trust_list.add(entry, hub_dir())]
        there = [str(entry) for entry in entries if str(entry) not in added]
        if json:
            answer.json({"added": added, "already_there": there})
        else:
            _tell(answer, added, "is trusted from now on")
            _tell(answer, there, "was trusted already")


def _rm(repos: _Which, *, json: Json = False, traceback: Traceback = False) -> None:
    """Trust repositories, or single commits, no more; with a repository all of its commits."""
    with running(traceback=traceback) as answer:
        from isohub.hub import trust, trust_list
        from isohub.hub.cache import hub_dir
        from isohub.hub.trust_list import Entry

        entries = [Entry.parse(text) for text in repos]
        removed: list[str] = []
        missing: list[str] = []
        for entry in entries:
            gone = [str(one) for one in trust_list.remove(entry, hub_dir())]
            removed += gone
            missing += [] if gone else [str(entry)]
        others = [*trust.built_in(), *trust.from_environment(), *trust_list.entries(hub_dir())]
        still = {str(one): str(by) for one in entries for by in others if by.includes(one)}
        if json:
            answer.json({"removed": removed, "not_there": missing, "still_trusted_by": still})
        else:
            _tell(answer, removed, "is taken off the list")
            _tell(answer, missing, "was not in the list")
            for name, by in still.items():
                answer.text(f"{name} is trusted still, by {by}")
        if missing:
            raise typer.Exit(1)


def _tell(answer: Answer, names: list[str], what: str) -> None:
    for name in names:
        answer.text(f"{name} {what}")
