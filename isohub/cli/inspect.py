"""`isohub inspect`: what a file of a model tells of itself. It is not loaded, and nothing in it runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isohub.cli.options import Json, Traceback
from isohub.cli.running import running

if TYPE_CHECKING:
    from isohub.telemetry.inspection import Inspection

__all__ = ["add_to"]

# Of long lists and texts, as much as one can take in; --json has all.
_MOST_TENSORS = 10
_MOST_CHARACTERS = 300


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect")(_inspect)


def _inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The file.")],
    *,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what the file of a model tells of itself.

    Where it comes from, if isohub wrote it; its tensors, or what loading it would import. It reads TorchScript,
    exported programs (.pt2), safetensors, and what torch.save writes, whoever made them. The file is not loaded:
    nothing in it is unpickled, and nothing in it runs.
    """
    with running(traceback=traceback) as answer:
        from isohub.telemetry.inspection import inspect_file

        found = inspect_file(file)
        if json:
            answer.json({"file": str(file), **asdict(found)})
        else:
            answer.text("\n".join(_lines(file, found)))


def _lines(file: Path, found: Inspection) -> list[str]:
    rows = [("file", str(file)), ("format", found.title), ("size", f"{found.nbytes:,} bytes")]
    if found.torch is not None:
        rows.append(("written by", f"torch {found.torch}"))
    lines = _table(rows)
    lines += ["", *(_table(list(found.metadata.items())) or ["It has no metadata of isohub's."])]
    if found.extra:
        lines += ["", "Also in it:", *_table(list(found.extra.items()))]
    if found.tensors is not None:
        lines += ["", f"{len(found.tensors)} tensors"]
        shown = found.tensors[:_MOST_TENSORS]
        lines += _table([(entry.name, f"{entry.dtype} {entry.shape}") for entry in shown])
        if len(shown) < len(found.tensors):
            lines.append("...")
    if found.imports is not None:
        lines += ["", "Loading it with torch.load(weights_only=False) would import:"]
        lines += [f"  {_line(name)}" for name in found.imports] or ["  nothing"]
    return lines


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = min(max((len(_line(name)) for name, _ in rows), default=0), 60)
    return [f"{_line(name):{width}}  {_line(text)}" for name, text in rows]


def _line(text: str) -> str:
    """Return a text of the file as one line: it must not look like lines of ours."""
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
