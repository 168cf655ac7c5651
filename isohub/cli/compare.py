"""`isohub compare`: versions of a model on the same inputs, and a gate for pull requests."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from isohub.cli.arguments import Arg, Kwarg, read_arguments
from isohub.cli.comparing import (
    AbsoluteTolerance,
    BatchSize,
    FailOn,
    Input,
    Mode,
    Preprocess,
    Random,
    RelativeTolerance,
    Seed,
    progress_bar,
)
from isohub.cli.options import Entrypoint, Json, Repository, Source, Traceback, source_of
from isohub.cli.running import running

__all__ = ["add_to"]


class _Check(str, Enum):
    OUTPUTS = "outputs"
    STATE = "state"
    STRUCTURE = "structure"
    LAYERS = "layers"
    SPEED = "speed"
    CODE = "code"
    GRADIENTS = "gradients"


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compare")(_compare)


def _compare(
    repo: Repository,
    entry: Entrypoint,
    *,
    ref: Annotated[
        list[str],
        typer.Option(
            "--ref",
            metavar="REF",
            show_default=False,
            help="A version: a branch, tag or commit of REPO, a whole repo text (owner/fork:main), or a folder "
            "(., ./x, /x), as it stands. Give two or more; one alone if REPO is a folder, to compare with that.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="REF", show_default=False, help="The one to compare with; the first, if not given."),
    ] = None,
    input: Input = None,
    random: Random = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    preprocess: Preprocess = None,
    arg: Arg = None,
    kwarg: Kwarg = None,
    check: Annotated[
        list[_Check] | None,
        typer.Option(help="Compare this alone; may be given again. Without it: all but gradients.", show_default=False),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="The mode to switch modules to; loaded leaves them.")] = Mode.EVAL,
    rtol: RelativeTolerance = 0.0,
    atol: AbsoluteTolerance = 0.0,
    fail_on: FailOn = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="Write a report, one page, to this file.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a comment for a pull request.")] = False,
    source: Source = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compare versions of a model on the same inputs.

    Each is loaded in a worker process of its own; they run at the same time. Exits with 1 if --fail-on holds, or if
    a version does not work.
    """
    args, kwargs = read_arguments(arg, kwarg)
    with running(traceback=traceback) as answer, progress_bar() as progress:
        from isohub.supervisor import early

        early.start()  # it imports torch while we do
        from isohub.comparison.expression import Expression
        from isohub.comparison.files import read_inputs
        from isohub.comparison.run import CHECKS, compare

        if fail_on is not None:
            Expression(fail_on)  # before anything is loaded
        found = compare(
            repo,
            entry,
            ref,
            read_inputs(input or [], random or [], batch_size=batch_size, seed=seed),
            args=args,
            kwargs=kwargs,
            baseline=baseline,
            checks=[one.value for one in check] if check else CHECKS[:-1],
            rtol=rtol,
            atol=atol,
            seed=seed,
            preprocess=preprocess,
            mode=mode.value,
            source=source_of(repo, source),
            progress=progress,
            command=shlex.join(["isohub", *sys.argv[1:]]),
        )
        reasons = found.failures(fail_on or "broken")
        if html is not None:
            found.save_html(html)
    if json:
        answer.json({**found.to_dict(), "fail_on": fail_on, "failures": reasons})
    elif markdown:
        answer.text(found.to_markdown().rstrip("\n"))
    else:
        answer.rich(found)
    if reasons:
        for reason in reasons:
            print(f"failed: {reason}", file=sys.stderr)
        raise typer.Exit(1)
