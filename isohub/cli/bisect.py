"""`isohub bisect`: the first commit that changed a model."""

from __future__ import annotations

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


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bisect")(_bisect)


def _bisect(
    repo: Repository,
    entry: Entrypoint,
    *,
    good: Annotated[str, typer.Option(metavar="REF", show_default=False, help="A ref whose model is as it should be.")],
    bad: Annotated[str, typer.Option(metavar="REF", show_default=False, help="A ref whose model is not.")],
    input: Input = None,
    random: Random = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    preprocess: Preprocess = None,
    arg: Arg = None,
    kwarg: Kwarg = None,
    mode: Annotated[Mode, typer.Option(help="The mode to switch modules to; loaded leaves them.")] = Mode.EVAL,
    rtol: RelativeTolerance = 0.0,
    atol: AbsoluteTolerance = 0.0,
    fail_on: FailOn = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Commits to try at once; else as cores allow."),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Whether to take over what earlier runs found.")
    ] = True,
    source: Source = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Find the first commit whose model differs from a good one.

    By git's own bisection, with merges. A commit is bad if --fail-on holds, or without it if its outputs differ by
    more than the tolerance. Those that do not load are skipped.
    """
    args, kwargs = read_arguments(arg, kwarg)
    with running(traceback=traceback) as answer, progress_bar() as progress:
        from isohub.supervisor import early

        early.start()  # it imports torch while we do
        from isohub.comparison.bisect import bisect
        from isohub.comparison.files import read_inputs

        found = bisect(
            repo,
            entry,
            good,
            bad,
            read_inputs(input or [], random or [], batch_size=batch_size, seed=seed),
            fail_on=fail_on,
            args=args,
            kwargs=kwargs,
            rtol=rtol,
            atol=atol,
            seed=seed,
            preprocess=preprocess,
            mode=mode.value,
            jobs=jobs,
            use_cache=cache,
            source=source_of(repo, source),
            progress=progress,
        )
    if json:
        answer.json(found.to_dict())
    else:
        answer.rich(found)
    if found.first_bad is None:
        raise typer.Exit(1)
