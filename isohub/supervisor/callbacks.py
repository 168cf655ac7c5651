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

# Modules with hooks are nested as modules are, some ten deep; each level takes a dozen of Python's 1,000 frames.
MAX_DEPTH = 32
# How many errors of hooks are remembered in one exchange.
_MAX_THROWN = 1000


class Callbacks:
    """What such calls of one worker raised, so that it is the same exception that comes out in the end."""

    def __init__(self) -> None:
        self._thrown: dict[int, Exception] = {}
        self._count = 0
        self._depth = 0

    def make(self, callback: Callback, arguments: Any, find: Callable[[int, str], Any]) -> tuple[Verb, Any, int]:
        """Make a call.

        Args:
            callback: What the worker asks for.
            arguments: What it is to be called with, `(args, kwargs)`.
            find: Returns what stands for the module of a handle and path here.

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
        module = find(callback.handle, callback.path)
        autocast = None if callback.state.autocast is None else dtype_named(callback.state.autocast)
        if self._depth >= MAX_DEPTH:
            raise RemoteProtocolError(f"calls of modules with hooks within each other, {self._depth} deep")
        # Up to here a lie is this worker's. One that a hook meets may be that of another worker, which the hook called;
        # if it is this one's, it has been killed for it.
        self._depth += 1
        try:
            with _modes(callback.state, autocast):
                return "resume", module(*args, **kwargs), 0
        except Exception as error:  # noqa: BLE001 - whatever a hook raises goes its way through the repository's code
            return "throw", None, self.threw(error)
        finally:
            self._depth -= 1

    def threw(self, error: Exception) -> int:
        """Remember what a call raised, and return its number."""
        self._count += 1
        self._thrown[self._count] = error
        if len(self._thrown) > _MAX_THROWN:  # code that goes on and on: its request can end in a late one only
            del self._thrown[next(iter(self._thrown))]
        return self._count

    def forget(self) -> None:
        """Forget everything that was raised: its tracebacks hold on to the models whose worker has ended."""
        self._thrown.clear()

    def find(self, answer: Returned | Raised) -> list[Exception]:
        """Return the exception of here by which a request ended, alone in a list; none if it ended otherwise."""
        found = self._thrown.get(answer.error.thrown) if isinstance(answer, Raised) else None
        return [] if found is None else [found]

    def settle(self, answer: Returned | Raised) -> list[Exception]:
        """Likewise, for the last answer of an exchange; everything that was raised is forgotten."""
        found = self.find(answer)
        self.forget()
        return found


@contextmanager
def _modes(state: TorchState, autocast: torch.dtype | None) -> Iterator[None]:
    """Take on the modes that hold in the worker's code."""
    with torch.inference_mode(state.inference), torch.set_grad_enabled(state.grad):
        if autocast is None and not torch.is_autocast_enabled("cpu"):
            yield
            return
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            yield
