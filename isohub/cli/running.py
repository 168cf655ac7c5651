"""What every command has around it: stdout for its answer alone, one message for an error, an exit code."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer

from isohub.errors import IsohubError, RemoteError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Answer", "running"]

_FRAME = re.compile(r'  File ".*", line \d+, in .*')
# Those of a repository's names and docstrings could drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Answer:
    """Where a command's answer goes: this process's stdout.

    Args:
        stream: The stdout.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def text(self, text: str) -> None:
        """Print a text and a line end."""
        self._write(_CONTROL.sub("?", text))

    def json(self, document: object) -> None:
        """Print a JSON document."""
        self._write(json.dumps(document, indent=2))

    def rich(self, *renderables: RenderableType) -> None:
        """Print tables and the like; without colour, and 80 columns wide, unless stdout is a terminal."""
        from rich.console import Console

        console = Console(file=self._stream, highlight=False)
        # Captured, since rich has its own way with a closed pipe.
        with console.capture() as captured:
            console.print(*renderables, sep="\n")
        self._write("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def _write(self, text: str) -> None:
        if isinstance(self._stream, io.TextIOWrapper):
            # A terminal that cannot show a character of a docstring is no reason to fail.
            self._stream.reconfigure(errors="backslashreplace")
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except BrokenPipeError:
            # The reader, `head` say, has all it wanted. What is left in the buffer goes nowhere.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise typer.Exit from None


@contextmanager
def running(*, traceback: bool) -> Iterator[Answer]:
    """Run the body as a command.

    What the repository's code prints goes to stderr, whatever stream it was meant for.

    Args:
        traceback: Whether to let an error out, for Python to show it.
    """
    answer = Answer(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield answer
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        message = None if traceback else _message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(1) from None


def _message(error: Exception) -> str | None:
    """Return what to tell of an error; None if it is a fault of this program, whose traceback is needed."""
    if isinstance(error.__cause__, RemoteError) and not (
        isinstance(error, IsohubError) and not isinstance(error, RemoteError)
    ):
        return _of_the_repository(error, error.__cause__)
    if isinstance(error, IsohubError | OSError):
        return _with_notes(error, str(error))
    return None


def _of_the_repository(error: Exception, remote: RemoteError) -> str:
    lines = remote.remote_traceback.splitlines()
    # In a chain of exceptions the last one is the one that came out.
    last = max((number for number, line in enumerate(lines) if _FRAME.fullmatch(line)), default=None)
    frame: list[str] = []
    if last is not None:
        frame = lines[last : last + 2] if lines[last + 1 : last + 2] and lines[last + 1].startswith("    ") else []
        frame = frame or [lines[last]]
    told = f"{remote.type_name}: {error}" if str(error) else remote.type_name
    whole = "--traceback shows how it came there"
    return _with_notes(error, "\n".join([f"the repository's code raised {told}", *frame, whole]))


def _with_notes(error: Exception, message: str) -> str:
    notes: list[Any] = getattr(error, "__notes__", [])
    return "\n".join([message, *map(str, notes)])
