"""torch's modes in the calling thread, and one stream of random numbers for parent and worker."""

from __future__ import annotations

import struct
from typing import Any

import torch

from isohub.errors import RemoteProtocolError
from isohub.shm.tensors import bytes_of, name_of_dtype
from isohub.wire.messages import TorchState

__all__ = ["Generator", "Recorded", "check_generator_state", "state_now"]

# Where a generator's state says which of its 624 numbers comes next: how many are left, and the place of the next.
# torch looks at each of the two alone, and would then read numbers from behind the end.
_PLACE = struct.Struct("=8xi4xQ")
_NUMBERS = 624


class Generator:
    """What one worker knows of the state of this process's default generator.

    The state goes along only when the worker lacks it, and comes back only when the worker moved it, so
    that a call of a model in eval mode carries none.
    """

    def __init__(self) -> None:
        self._known: bytes | None = None
        self._last: tuple[Any, TorchState] = None, TorchState()  # modes, and what says them

    def current(self) -> TorchState:
        """Return the modes to take on for a request made now, in this thread."""
        now = _generator_state()
        rng = None if now == self._known else now
        self._known = now
        modes = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        )
        if rng is None and modes == self._last[0]:
            return self._last[1]
        grad, inference, default, autocast = modes
        cast_to = None if autocast is None else name_of_dtype(autocast)
        said = TorchState(grad, inference, name_of_dtype(default) or "float32", cast_to, rng)
        if rng is None:
            self._last = modes, said
        return said

    def unsend(self) -> None:
        """Know that the modes last returned did not go to the worker."""
        self._known = None

    def answered(self, rng: bytes | None) -> None:
        """Take over the state to which the worker moved.

        Raises:
            RemoteProtocolError: It is no such state.
        """
        if rng is None:
            return
        assert self._known is not None, "a request always sets it"
        if len(rng) != len(self._known):
            raise RemoteProtocolError(f"a generator state of {len(rng)} bytes")
        check_generator_state(rng)
        # Another thread may have drawn numbers meanwhile; those must not be drawn again.
        untouched = _generator_state() == self._known
        self._known = rng
        if untouched:
            try:
                torch.set_rng_state(torch.frombuffer(bytearray(rng), dtype=torch.uint8))
            except RuntimeError as error:
                raise RemoteProtocolError(f"a generator state that torch refuses: {error}") from None


class Recorded:
    """In the place of `Generator`, for what is done again: the modes of then, and nothing moves here.

    Args:
        state: The modes.
    """

    def __init__(self, state: TorchState) -> None:
        self._state = state

    def current(self) -> TorchState:
        """Return the modes of then."""
        return self._state

    def unsend(self) -> None:
        """Do nothing: every request has the whole state along."""

    def answered(self, _: bytes | None) -> None:
        """Leave the generator here where it is."""


def check_generator_state(state: bytes) -> None:
    """Refuse a state, of the right length, by which a generator would read what is not its own.

    Raises:
        RemoteProtocolError: It is such a state.
    """
    left, place = _PLACE.unpack_from(state)
    if not 0 < left <= _NUMBERS or left + place > _NUMBERS + 1:
        raise RemoteProtocolError(f"a generator state with {left} numbers left from number {place} on")


def state_now() -> TorchState:
    """Return the modes of this thread, and the state of the generator, to do the same again later."""
    return Generator().current()


def _generator_state() -> bytes:
    # As bytes: comparing two tensors of 5 kB takes torch longer than all the rest here.
    return bytes_of(torch.default_generator.get_state())
