"""torch's modes in the calling thread, and one stream of random numbers for parent and worker."""

from __future__ import annotations

import torch

from isohub.errors import RemoteProtocolError
from isohub.shm.tensors import name_of_dtype
from isohub.wire.messages import TorchState

__all__ = ["Generator"]


class Generator:
    """What one worker knows of the state of this process's default generator.

    The state goes along only when the worker lacks it, and comes back only when the worker moved it, so
    that a call of a model in eval mode carries none.
    """

    def __init__(self) -> None:
        self._known: torch.Tensor | None = None

    def current(self) -> TorchState:
        """Return the modes to take on for a request made now, in this thread."""
        now = torch.get_rng_state()
        rng = None
        if self._known is None or not torch.equal(now, self._known):
            rng = now.numpy().tobytes()
            self._known = now
        autocast = torch.is_autocast_enabled("cpu")
        return TorchState(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            name_of_dtype(torch.get_default_dtype()) or "float32",
            name_of_dtype(torch.get_autocast_dtype("cpu")) if autocast else None,
            rng,
        )

    def answered(self, rng: bytes | None) -> None:
        """Take over the state to which the worker moved.

        Raises:
            RemoteProtocolError: It is no such state.
        """
        if rng is None:
            return
        assert self._known is not None, "a request always sets it"
        if len(rng) != self._known.numel():
            raise RemoteProtocolError(f"a generator state of {len(rng)} bytes")
        # Another thread may have drawn numbers meanwhile; those must not be drawn again.
        untouched = torch.equal(torch.get_rng_state(), self._known)
        self._known = torch.frombuffer(bytearray(rng), dtype=torch.uint8)
        if untouched:
            try:
                torch.set_rng_state(self._known)
            except RuntimeError as error:
                raise RemoteProtocolError(f"a generator state that torch refuses: {error}") from None
