"""`isohub ps`: the workers of all programs on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isohub.cli import quantities
from isohub.cli.options import Json, Traceback
from isohub.cli.running import running

if TYPE_CHECKING:
    import typer

    from isohub.supervisor.processes import WorkerProcess

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("ps")(_ps)


def _ps(*, json: Json = False, traceback: Traceback = False) -> None:
    """List the workers of all programs on this machine.

    What a worker does and has done is told by itself. Within a program, isohub.workers() knows more.
    """
    with running(traceback=traceback) as answer:
        from isohub.supervisor.processes import worker_processes

        found = worker_processes()
        if json:
            answer.json({"workers": [_document(one) for one in found]})
        elif found:
            answer.rich(_table(found))
        else:
            answer.text("no workers")


def _document(one: WorkerProcess) -> dict[str, Any]:
    document = asdict(one)
    memory = document.pop("memory")
    return {**document, **memory}


def _table(found: list[WorkerProcess]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # What most workers do not have takes no room.
    has_equal = any(one.memory.equal_weights_bytes for one in found)
    sizes = ("private", "shared", *(("equal weights",) if has_equal else ()))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("pid", "program", "worker", "state", "calls", "handles", "last call", "uptime", *sizes):
        right = name in ("pid", "program", "calls", "handles", *sizes)
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "worker", overflow="fold")
    for one in found:
        last = "" if one.last_call_s is None else quantities.lasting(one.last_call_s)
        memory = one.memory
        figures = (memory.private_bytes, memory.shared_bytes, memory.equal_weights_bytes)[: len(sizes)]
        cells = (
            *(str(one.pid), str(one.program_pid or ""), one.label, one.state, str(one.calls), str(one.handles)),
            *(last, quantities.lasting(one.uptime_s)),
            *("" if nbytes is None else quantities.size(nbytes) for nbytes in figures),
        )
        table.add_row(*(Text(cell) for cell in cells))  # as it is: a name may look like rich's markup
    return table
