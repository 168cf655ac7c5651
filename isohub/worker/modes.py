"""torch's modes in the parent's calling thread, taken on for one exchange.

A mode is only touched where the parent's differs from the ordinary, so that what the repository itself
switched (a default dtype at import, gradients off for good) goes on holding in its own process.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from isohub.shm.tensors import bytes_of, dtype_named
from isohub.wire.messages import TorchState

__all__ = ["Modes"]


_ORDINARY = nullcontext()


class Modes:
    """The modes of this worker, and the state of its default generator as the parent knows it."""

    def __init__(self) -> None:
        self._parents_dtype = "float32"
        self._known: bytes | None = None

    def of(self, state: TorchState | None) -> AbstractContextManager[object]:
        """Take on the parent's modes; return a context that holds those which end with the request."""
        if state is None:
            return _ORDINARY
        if state.default_dtype != self._parents_dtype:
            torch.set_default_dtype(dtype_named(state.default_dtype))
            self._parents_dtype = state.default_dtype
        if state.rng is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(state.rng), dtype=torch.uint8))
            self._known = state.rng
        if not state.inference and state.autocast is None:
            return _ORDINARY if state.grad else torch.no_grad()
        stack = ExitStack()
        if state.inference:
            stack.enter_context(torch.inference_mode())
        elif not state.grad:
            stack.enter_context(torch.no_grad())
        if state.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=dtype_named(state.autocast)))
        return stack

    def moved(self) -> bytes | None:
        """Return the generator's state if the parent does not know it; else None."""
        if self._known is None:
            return None  # before the first request
        now = bytes_of(torch.get_rng_state())
        if now == self._known:
            return None
        self._known = now
        return now
