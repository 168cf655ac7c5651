"""Exceptions that workers report, raised here. Types come from a table, never from a worker's word."""

from __future__ import annotations

import builtins
import contextlib

from isohub import errors
from isohub.errors import ArtifactError, EntrypointError, MissingDependencyError, RemoteError
from isohub.wire.messages import Cause, Raised
from isohub.wire.texts import clean

__all__ = ["exception"]

# Those that would end or confuse this process if they were raised here.
_NOT_RAISED = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
_BUILTINS: dict[str, type[Exception]] = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NOT_RAISED)
}
# Those of isohub's own that may be raised in a worker. What became of a worker is not its own word to say: whoever
# catches a BrokenWorkerError goes on to take another one.
_OURS: dict[str, type[errors.IsohubError]] = {
    name: getattr(errors, name)
    for name in errors.__all__
    if not issubclass(getattr(errors, name), errors.WorkerError | errors.RemoteProtocolError)
}
_combined: dict[str, type[RemoteError]] = {}


def exception(raised: Raised, refused: Exception | None = None) -> Exception:
    """Return the exception to raise for what a worker reported.

    Args:
        raised: What it reported.
        refused: The error with which this process itself refused what the worker's code wanted, if that is what
            ended the request: then it is raised, with its class and fields.
    """
    cause = raised.error
    remote_traceback = clean(raised.traceback)
    message = clean(cause.message)
    remote = RemoteError(
        f"\n\n{remote_traceback}", type_name=clean(cause.type_name, 500), remote_traceback=remote_traceback
    )
    error: Exception
    if refused is not None:
        error = refused
        remote.__cause__ = error.__cause__
    elif cause.ours in _OURS:
        error = _ours(cause, message)
    elif cause.exact and cause.builtin in _BUILTINS:
        error = _builtin(_BUILTINS[cause.builtin], cause, message)
    else:
        error = _combined_class(cause.builtin)(
            _ended(cause, message), type_name=remote.type_name, remote_traceback=remote_traceback
        )
    error.__cause__ = remote
    for note in raised.notes:
        # PEP 678 is of Python 3.11; on 3.10 the attribute is there to be read all the same.
        error.__dict__["__notes__"] = [*getattr(error, "__notes__", []), clean(note)]
    return error


def _ended(cause: Cause, message: str) -> str:
    if cause.builtin == "SystemExit":
        return f"the repository's code called sys.exit({message})"
    return message


def _ours(cause: Cause, message: str) -> Exception:
    texts = tuple(clean(text) for text in cause.args or () if isinstance(text, str))
    if cause.ours == "EntrypointError" and texts:
        return EntrypointError(message, entrypoint=texts[0], available=texts[1:])
    if cause.ours == "MissingDependencyError":
        return MissingDependencyError(message, names=texts)
    if cause.ours == "ArtifactError" and len(texts) == 3:
        return ArtifactError(message, entrypoint=texts[0], compiler=texts[1], compiler_message=texts[2])
    return _OURS[cause.ours](message)


def _builtin(kind: type[Exception], cause: Cause, message: str) -> Exception:
    if cause.args is not None:
        args = [clean(argument) if isinstance(argument, str) else argument for argument in cause.args]
        # Where the class does not take such arguments after all, the message is enough.
        with contextlib.suppress(Exception):
            error = kind(*args)
            if clean(str(error)) == message and type(error) is kind:
                return error
    try:
        return kind(message)
    except Exception:  # noqa: BLE001 - such as UnicodeDecodeError, which wants five
        return _combined_class(kind.__name__)(message, type_name=cause.type_name)


def _combined_class(builtin: str) -> type[RemoteError]:
    """Return a `RemoteError` that an `except` of the builtin class catches as well."""
    base = _BUILTINS.get(builtin, Exception)
    if base is Exception:
        return RemoteError
    if builtin not in _combined:
        try:
            kind = type("RemoteError", (RemoteError, base), {"__module__": RemoteError.__module__})
            kind("probe")
        except TypeError:  # a class whose constructor wants more than a message
            kind = RemoteError
        _combined[builtin] = kind
    return _combined[builtin]
