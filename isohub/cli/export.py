"""`isohub export`: a model as a file that needs neither the repository nor isohub."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from isohub.cli.arguments import Arg, Kwarg, read_arguments
from isohub.cli.options import Entrypoint, Json, Repository, Source, Traceback, source_of
from isohub.cli.running import running
from isohub.options import Isolation

__all__ = ["add_to"]


class _Format(str, Enum):
    TORCHSCRIPT = "torchscript"
    EXPORT = "export"
    SAFETENSORS = "safetensors"


_BY_SUFFIX = {
    ".pt": _Format.TORCHSCRIPT,
    ".ts": _Format.TORCHSCRIPT,
    ".torchscript": _Format.TORCHSCRIPT,
    ".pt2": _Format.EXPORT,
    ".safetensors": _Format.SAFETENSORS,
}
_RETURNS = {_Format.TORCHSCRIPT: "torchscript", _Format.EXPORT: "export", _Format.SAFETENSORS: "state_dict"}
_INPUT = re.compile(r"(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export")(_export)


def _export(
    repo: Repository,
    entry: Entrypoint,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="The file to write.")
    ],
    format_: Annotated[
        _Format | None,
        typer.Option(
            "--format",
            show_default=False,
            help="What to write; safetensors are the weights alone. Without it, FILE's suffix says so: .pt, .ts and "
            ".torchscript, .pt2, .safetensors.",
        ),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE[:DTYPE]",
            show_default=False,
            help="An example input, such as 2x3x224x224 or 2x16:int64; once for each positional input. With it "
            "TorchScript is traced instead of scripted; an exported program needs it.",
        ),
    ] = None,
    arg: Arg = None,
    kwarg: Kwarg = None,
    source: Source = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Write a model to a file that needs no repository.

    Nor does it need isohub. It says where it comes from, which isohub inspect shows. The repository's code runs
    in a worker process; TorchScript and exported programs are for repositories that are trusted in so many words.
    """
    chosen = format_ or _BY_SUFFIX.get(output.suffix.lower())
    if chosen is None:
        raise typer.BadParameter(
            f"{output.suffix or 'No suffix'!r} does not say what to write; --format does.", param_hint="--output"
        )
    args, kwargs = read_arguments(arg, kwarg)
    inputs = [_shape(text) for text in input_ or []]
    if chosen is _Format.SAFETENSORS and inputs:
        raise typer.BadParameter("Weights alone need none.", param_hint="--input")
    if chosen is _Format.EXPORT and not inputs:
        raise typer.BadParameter("An exported program needs one.", param_hint="--input")
    with running(traceback=traceback) as answer:
        from isohub.supervisor import early

        early.start()  # it imports torch while we do
        from isohub.api import Repo
        from isohub.model.artifacts import example
        from isohub.model.saving import save

        with Repo(
            repo,
            source=source_of(repo, source),
            isolate=Isolation(),
            returns=_RETURNS[chosen],  # type: ignore[arg-type]
            example_inputs=tuple(example(shape, dtype) for shape, dtype in inputs) or None,
            verbose=not json,
        ) as opened:
            artifact = opened.load(entry, *args, **kwargs)
            save(artifact, output)
        nbytes = output.stat().st_size
        if json:
            answer.json({"file": str(output), "format": chosen.value, "nbytes": nbytes, **artifact.isohub.fields()})
        else:
            answer.text(f"{output}: {chosen.value} of {entry} of {opened.ref}, {nbytes:,} bytes")


def _shape(text: str) -> tuple[list[int], str]:
    read = _INPUT.fullmatch(text)
    if read is None:
        raise typer.BadParameter(
            f"{text!r} is not SHAPE[:DTYPE], such as 2x3x224x224 or 2x16:int64.", param_hint="--input"
        )
    return [int(size) for size in read["shape"].split("x")], read["dtype"] or "float32"
