"""Calls that a worker's code makes of modules with hooks, made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from isohub.errors import RemoteProtocolError
from isohub.shm.tensors import dtype_named
from isohub.wire.messages import Callback, Raised, Returned, TorchState, Verb

__all__ = ["Callbacks"]


class Callbacks:
    """What such calls of one worker raised, so that it is the same exception that comes out in the end."""

    def __init__(self) -> None:
        self._thrown: dict[int, Exception] = {}

    def make(self, callback: Callback, arguments: Any, call: Callable[..., Any]) -> tuple[Verb, Any, int]:
        """Make a call.

        Args:
            callback: What the worker asks for.
            arguments: What it is to be called with, `(args, kwargs)`.
            call: Calls the module: `call(handle, path, args, kwargs)`.

        Returns:
            How the worker has to go on: the verb, the result, and the number of what was raised.

        Raises:
            RemoteProtocolError: The callback makes no sense.
            BaseException: An interruption, which is not for the worker.
        """
        match arguments:
            case (tuple(args), dict(kwargs)) if all(isinstance(name, str) for name in kwargs):
                pass
            case _:
                raise RemoteProtocolError("a callback without arguments")
        try:
            with _modes(callback.state):
                return "resume", call(callback.handle, callback.path, args, kwargs), 0
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a hook raises goes its way through the repository's code
            return "throw", None, self.threw(error)

    def threw(self, error: Exception) -> int:
        """Remember what a call raised, and return its number."""
        number = len(self._thrown) + 1
        self._thrown[number] = error
        return number

    def find(self, answer: Returned | Raised) -> Exception | None:
        """Return the exception of here by which a request ended; None if it ended otherwise."""
        return self._thrown.get(answer.error.thrown) if isinstance(answer, Raised) else None

    def settle(self, answer: Returned | Raised) -> Exception | None:
        """Likewise, for the last answer of an exchange; everything that was raised is forgotten."""
        found = self.find(answer)
        self.forget()
        return found

    def forget(self) -> None:
        """Forget everything that was raised, and with it the frames of the calls."""
        self._thrown.clear()


@contextmanager
def _modes(state: TorchState) -> Iterator[None]:
    """Take on the modes that hold in the worker's code."""
    autocast = None if state.autocast is None else dtype_named(state.autocast)
    with torch.inference_mode(state.inference), torch.set_grad_enabled(state.grad):
        if autocast is None and not torch.is_autocast_enabled("cpu"):
            yield
            return
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            yield
