"""`isohub load`: load once, and tell what came, what it takes and how long each step took."""

from __future__ import annotations

import json as json_files
import threading
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isohub import trace
from isohub.cli.arguments import Arg, Kwarg, read_arguments
from isohub.cli.options import Entrypoint, Json, Repository, Source, Traceback, source_of
from isohub.cli.running import running
from isohub.options import Isolation

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add_to"]


class _Returns(str, Enum):
    MODULE = "module"
    STATE_DICT = "state_dict"


class _Steps:
    """Collects the steps of the body of a `with`, as pairs of depth and step, in the order of their starts."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, trace.Step]] = []
        self._depth = 0
        self._thread = threading.get_ident()

    def __enter__(self) -> list[tuple[int, trace.Step]]:
        trace.add_listener(self._listen)
        return self._taken

    def __exit__(self, *_: object) -> None:
        trace.remove_listener(self._listen)

    def _listen(self, step: trace.Step) -> None:
        if threading.get_ident() != self._thread:
            return
        if step.state == "started":
            self._taken.append((self._depth, step))
            self._depth += 1
        else:
            self._depth -= 1


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("load")(_load)


def _load(
    repo: Repository,
    entry: Entrypoint,
    *,
    arg: Arg = None,
    kwarg: Kwarg = None,
    source: Source = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", show_default=False, help="Threads of torch in the worker.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", show_default=False, help="How long the entrypoint may take."),
    ] = None,
    returns: Annotated[
        _Returns, typer.Option(help="What to take: what the entrypoint returns, or its state dict alone.")
    ] = _Returns.MODULE,
    trace_to: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            show_default=False,
            help="Write the steps, with their times, to a file that ui.perfetto.dev and chrome://tracing draw.",
        ),
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Load from an entrypoint, and describe what came.

    It is loaded in a worker process, which ends with the command; what it prints goes to stderr.
    """
    args, kwargs = read_arguments(arg, kwarg)
    try:
        isolation = Isolation(threads=threads, timeout_s=timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--threads / --timeout") from None
    with running(traceback=traceback) as answer:
        with _Steps() as steps:
            with trace.step("cli.import"):
                from isohub.supervisor import early

                early.start()  # it imports torch while we do
                from isohub.api import Repo, workers
                from isohub.model.summary import summarize
                from isohub.supervisor.memory import memory_of
            with Repo(
                repo,
                source=source_of(repo, source),
                isolate=isolation,
                returns=returns.value,
                verbose=not json,
            ) as opened:
                result = opened.load(entry, *args, **kwargs)
                worker = workers()[-1]
                memory = memory_of(worker.pid)
                report = {
                    "repo": str(opened.ref),
                    "ref": opened.checkout.ref_name,
                    "commit": opened.commit,
                    "entrypoint": entry,
                    **asdict(summarize(result)),
                    "worker": {"pid": worker.pid, **asdict(memory)},
                }
        begun = min(step.start_s for _, step in steps)
        report["steps"] = [
            {
                "name": step.name,
                "depth": depth,
                "start_s": round(step.start_s - begun, 6),
                "duration_s": round(step.duration_s, 6),
            }
            for depth, step in steps
        ]
        if trace_to is not None:
            trace_to.write_text(json_files.dumps(_events(steps, begun)))
        if json:
            answer.json(report)
        else:
            answer.rich(f"{entry} of {worker.label}\n", _facts(report), "", _times(report))


def _events(steps: list[tuple[int, trace.Step]], begun: float) -> dict[str, Any]:
    """Return the steps in Chrome's trace event format; the forkserver and the worker in lines of their own."""
    lines = {"supervisor.forkserver": (2, "forkserver"), "worker": (3, "worker")}
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": line, "args": {"name": name}}
        for line, name in [(1, "program"), *lines.values()]
    ]
    for _, step in steps:
        line, _ = lines.get(step.name) or lines.get(step.name.split(".", 1)[0]) or (1, "")
        events.append(
            {
                "name": step.name,
                "ph": "X",
                "pid": 1,
                "tid": line,
                "ts": round((step.start_s - begun) * 1e6, 1),
                "dur": round(step.duration_s * 1e6, 1),
                "args": {key: str(value) for key, value in step.fields.items()},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _facts(report: dict[str, Any]) -> Table:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    worker = report["worker"]
    parameters = "none"
    if report["parameters"] is not None:
        parameters = f"{report['parameters']:,} ({report['trainable']:,} trainable)"
    memory = "unknown"
    if worker["private_bytes"] is not None:
        memory = f"{decimal(worker['private_bytes'])} private, {decimal(worker['proportional_bytes'])} proportional"
    for name, value in (
        ("type", report["type"]),
        ("parameters", parameters),
        ("dtypes", ", ".join(report["dtypes"]) or "none"),
        ("weights", f"{decimal(report['weights_bytes'])} in {report['tensors']} tensors"),
        ("worker", f"pid {worker['pid']}"),
        ("worker memory", memory),
        ("commit", report["commit"] or "none, a working tree"),
    ):
        table.add_row(name, value)
    return table


def _times(report: dict[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("step", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("ms", justify="right")
    for step in report["steps"]:
        table.add_row(f"{'  ' * step['depth']}{step['name']}", f"{step['duration_s'] * 1e3:.1f}")
    return table
