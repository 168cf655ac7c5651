"""Arguments and options that several commands have, and how their texts are read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Entrypoint", "Json", "Repository", "Source", "SourceName", "Traceback", "source_of"]


class SourceName(str, Enum):
    """Where a plain `owner/name` lies."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEE = "gitee"
    BITBUCKET = "bitbucket"
    CODEBERG = "codeberg"
    LOCAL = "local"


Repository = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        show_default=False,
        help="owner/name[:ref], git+file:///path[@ref], or a folder: "
        "a text that is an existing directory is taken for one, unless --source says otherwise.",
    ),
]
Entrypoint = Annotated[
    str, typer.Argument(metavar="ENTRY", show_default=False, help="Name of an entrypoint in hubconf.py.")
]
Source = Annotated[
    SourceName | None,
    typer.Option(
        "--source",
        case_sensitive=False,
        show_default=False,
        help='Where REPO lies; "local" makes it the path of a folder. Without it: local if REPO is an existing '
        "directory, else github.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
Traceback = Annotated[
    bool,
    typer.Option(
        "--traceback",
        envvar="ISOHUB_DEBUG",
        help="Show the whole traceback of an error, that of the worker included.",
    ),
]


def source_of(repo: str, source: SourceName | None) -> str:
    """Return what `isohub.Repo` is to be told as `source`."""
    if source is not None:
        return source.value
    try:
        return "local" if Path(repo).is_dir() else "github"
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return "github"
