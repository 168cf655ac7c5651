"""Exceptions of the repository's code, told to the parent in plain words and numbers."""

from __future__ import annotations

import builtins
import math
import traceback
from pathlib import Path
from urllib.error import URLError

from isohub import errors
from isohub.wire.messages import Cause, Refused
from isohub.worker import limits
from isohub.worker.callbacks import ThrownError

__all__ = ["cause", "notes", "refusal", "refused", "traceback_text"]

# Enough for any real message; a 100 MB one would not fit the frame.
_MAX_TEXT = 100_000
_NUMBER = "_isohub_refusal"


def cause(error: BaseException) -> Cause:
    """Return what the parent needs to raise the same."""
    kind = type(error)
    builtin = next(base for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base)
    ours = kind.__name__ if getattr(errors, kind.__name__, None) is kind else ""
    args = _arguments(error)
    if isinstance(error, errors.EntrypointError):
        args = [error.entrypoint, *error.available]
    if isinstance(error, errors.MissingDependencyError):
        args = list(error.names)
    if isinstance(error, errors.ArtifactError):
        args = [error.entrypoint, error.compiler, _cut(error.compiler_message)]
    return Cause(
        type_name=f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__name__,
        builtin=builtin.__name__,
        exact=builtin is kind,
        message=_text(error),
        args=args,
        ours=ours,
        thrown=error.number if isinstance(error, ThrownError) else 0,
    )


def traceback_text(error: BaseException) -> str:
    """Return the traceback with its chain of causes, from the repository's first frame on."""
    try:
        told = traceback.TracebackException(type(error), error, error.__traceback__)
        # The frames of isohub's own above the repository's say nothing to the user.
        own = str(Path(__file__).parents[1]) + "/"
        stack = list(told.stack)
        while len(stack) > 1 and stack[0].filename.startswith(own):
            del stack[0]
        told.stack = traceback.StackSummary.from_list(stack)
        return _cut("".join(told.format()))
    except Exception:  # noqa: BLE001 - an exception whose own parts raise must still arrive
        return f"{type(error).__name__}: (its traceback cannot be shown)"


def refused(answer: Refused) -> Exception:
    """Return what to raise for something that cannot be had; `refusal` knows it again."""
    kinds: dict[str, type[Exception]] = {"URLError": URLError, "RuntimeError": RuntimeError}
    error = kinds.get(answer.kind, ValueError)(answer.message)
    error.__dict__[_NUMBER] = answer.number
    return error


def refusal(error: BaseException) -> int:
    """Return the number of the refusal that an exception is; 0 if it is none."""
    # Not by what a class of the repository's may have in its place.
    number = BaseException.__getattribute__(error, "__dict__").get(_NUMBER)
    return number if type(number) is int else 0


def notes(error: BaseException) -> list[str]:
    """Return notes for the user: those on the exception, what isolation changes, and which limit was met."""
    found = [note for note in getattr(error, "__notes__", []) if isinstance(note, str)]
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if isinstance(name, str) and not Path(name).is_absolute():
        found.append(
            f"{name!r} is relative, and the worker runs in a folder of its own: pass an absolute path, or a "
            "pathlib.Path, which isohub makes absolute."
        )
    return [_cut(note) for note in [*found, *limits.notes(error)]]


def _text(error: BaseException) -> str:
    try:
        return _cut(str(error))
    except Exception:  # noqa: BLE001 - as above
        return "(its message cannot be shown: str() of the exception raised)"


def _arguments(error: BaseException) -> list[None | bool | int | float | str] | None:
    """Return the arguments if all of them are plain; the parent then builds the builtin of them."""
    plain = (type(None), bool, int, float, str)
    args: list[None | bool | int | float | str] = []
    for argument in error.args:
        if type(argument) not in plain or (type(argument) is int and argument.bit_length() > 62):
            return None
        if type(argument) is float and not math.isfinite(argument):
            return None
        args.append(_cut(argument) if isinstance(argument, str) else argument)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        # OSError keeps the file name out of `args`.
        args = [*args[:2], error.filename if isinstance(error.filename, str) else str(error.filename)]
    return args


def _cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + f"... ({len(text)} characters)"
