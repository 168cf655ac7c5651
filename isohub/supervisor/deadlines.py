"""Until when a call may take: one point in time for all that belongs to it."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Deadline", "deadline", "nearest", "until"]


class Deadline(NamedTuple):
    """A point in time.

    Attributes:
        at: By `time.monotonic`.
        seconds: How long that was from where it was set; for messages.
    """

    at: float
    seconds: float

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 once it has passed."""
        return max(self.at - time.monotonic(), 0.0)


_held: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("isohub_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all calls to workers inside the block, taken together, this many seconds.

    It holds for loads, calls, attributes, backward passes and whatever else asks a worker, in this thread or
    asyncio task. It begins with the block and includes the time that a call waits while another thread has
    the worker. Where `Isolation(timeout_s=...)` or a block around this one ends earlier, that holds.
    Downloads of files go on until they are done; the call that waits for them fails afterwards.

    Args:
        seconds: A finite number above 0.

    Raises:
        TypeError: `seconds` is no number.
        ValueError: It is not finite, or not above 0.
        WorkerTimeoutError: In the block: a worker did not answer in time, and was killed (its attribute `killed`
            is True); or another thread had the worker all the time, which goes on then (`killed` is False).

    Example:
        >>> with isohub.deadline(0.5):
        ...     model(image)
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"isohub.deadline() takes a number of seconds, not {seconds!r}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"isohub.deadline() takes a finite number of seconds above 0, not {seconds!r}")
    with until(nearest(seconds)):
        yield


def nearest(seconds: float | None) -> Deadline | None:
    """Return the deadline of something that begins now and may take `seconds`; None if there is none.

    What holds already, by `deadline` or because this is done for something that has one, may come first.
    """
    held = _held.get()
    if seconds is None:
        return held
    own = Deadline(time.monotonic() + seconds, seconds)
    return own if held is None or own.at < held.at else held


@contextmanager
def until(due: Deadline | None) -> Iterator[None]:
    """Have `due` hold for all that the block asks of workers."""
    token = _held.set(due)
    try:
        yield
    finally:
        _held.reset(token)
