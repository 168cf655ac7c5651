"""Options that `compare` and `bisect` share: inputs, tolerances, how the model is made; and their progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "AbsoluteTolerance",
    "BatchSize",
    "FailOn",
    "Input",
    "Mode",
    "Preprocess",
    "Random",
    "RelativeTolerance",
    "Seed",
    "progress_bar",
]


class Mode(str, Enum):
    """The mode in which modules are compared."""

    EVAL = "eval"
    TRAIN = "train"
    LOADED = "loaded"


Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]FILE[#KEY]",
        show_default=False,
        help="An input: x.pt, x.npy, x.npz, x.safetensors, an image, or a folder of these that goes through one after "
        "the other. With a name it is a keyword argument; #KEY takes one member of a file. May be given again.",
    ),
]
Random = Annotated[
    list[str] | None,
    typer.Option(
        "--random",
        metavar="[NAME=]DTYPE[SHAPE]",
        show_default=False,
        help='An input of random numbers: "float32[8,3,224,224]", "int64[2,16]<30000". May be given again.',
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="From which random numbers start, the models' own too.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images of a folder at once.")]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="NAME",
        show_default=False,
        help="A function of hubconf.py that each version puts its inputs through first.",
    ),
]
RelativeTolerance = Annotated[
    float, typer.Option("--rtol", metavar="X", min=0, help="How far apart still counts as the same, relative.")
]
AbsoluteTolerance = Annotated[float, typer.Option("--atol", metavar="X", min=0, help="The same, absolute.")]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="EXPR",
        show_default=False,
        help='When to fail: "max_abs > 1e-4 or top1_agreement < 0.99". An unknown name lists all that there are.',
    ),
]


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show on stderr how far it is, if that is a terminal, while the body runs."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
