"""torch's modes in the parent's calling thread, taken on for one exchange.

A mode is only touched where the parent's differs from the ordinary, so that what the repository itself
switched (a default dtype at import, gradients off for good) goes on holding in its own process.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from isohub.shm.tensors import bytes_of, dtype_named, name_of_dtype
from isohub.wire.messages import TorchState

__all__ = ["Modes"]


class _NoGrad:
    """`torch.no_grad()` for one request, of which one is under way at a time; it takes a tenth of the time."""

    _before = True

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self._before)


_ORDINARY = nullcontext()
_NO_GRAD = _NoGrad()


class Modes:
    """The modes of this worker, and the state of its default generator as the parent knows it."""

    def __init__(self) -> None:
        self._parents_dtype = "float32"
        self._known: bytes | None = None

    def of(self, state: TorchState | None, *, nested: bool = False) -> AbstractContextManager[object]:
        """Take on the parent's modes; return a context that holds those which end with the request.

        Args:
            state: The parent's.
            nested: Whether a request of before is under way, so that modes of its code hold now.
        """
        if state is None:
            return _ORDINARY
        if state.default_dtype != self._parents_dtype:
            torch.set_default_dtype(dtype_named(state.default_dtype))
            self._parents_dtype = state.default_dtype
        self.take_generator(state.rng)
        if nested:
            return self._exactly(state)
        if not state.inference and state.autocast is None:
            return _ORDINARY if state.grad else _NO_GRAD
        stack = ExitStack()
        if state.inference:
            stack.enter_context(torch.inference_mode())
        elif not state.grad:
            stack.enter_context(torch.no_grad())
        if state.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=dtype_named(state.autocast)))
        return stack

    def _exactly(self, state: TorchState) -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(state.inference))
        stack.enter_context(torch.set_grad_enabled(state.grad))
        autocast = None if state.autocast is None else dtype_named(state.autocast)
        if autocast is not None or torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", dtype=autocast, enabled=autocast is not None))
        return stack

    def take_generator(self, rng: bytes | None) -> None:
        """Take over the state of the parent's generator, if it has moved."""
        if rng is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(rng), dtype=torch.uint8))
            self._known = rng

    def current(self) -> TorchState:
        """Return the modes of this worker now, for a call that the parent makes."""
        autocast = torch.is_autocast_enabled("cpu")
        return TorchState(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            default_dtype=name_of_dtype(torch.get_default_dtype()) or "float32",
            autocast=name_of_dtype(torch.get_autocast_dtype("cpu")) if autocast else None,
            rng=self.moved(),
        )

    def moved(self) -> bytes | None:
        """Return the generator's state if the parent does not know it; else None."""
        if self._known is None:
            return None  # before the first request
        now = bytes_of(torch.default_generator.get_state())
        if now == self._known:
            return None
        self._known = now
        return now
