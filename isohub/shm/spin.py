"""A short wait without sleeping, for answers that come soon.

To wake a processor that sleeps takes a virtual machine 35 to 70 us, much longer than all the rest of a small call.
Whoever looks again and again instead takes a processor from others, so it is done only for a moment, only where
the wait before was short, and only while there are processors that nobody else wants.
"""

from __future__ import annotations

import select
import time

from isohub.shm import processors

__all__ = ["Spin"]

# For so long at most: somewhat longer than it takes to sleep and be woken.
SPIN_S = 200e-6
# A wait of up to this is a short one; it was measured with the time to be woken in it.
SHORT_S = 300e-6
# Whether processors are free is asked again after this; to ask takes some 6 us.
_FRESH_S = 5e-3


class Spin:
    """Waits of one end of a channel."""

    def __init__(self) -> None:
        self._was_short = False

    def wait(self, readable: select.poll) -> float:
        """Look for a moment whether something comes, if it is worth it; return when the wait began."""
        began = time.perf_counter()
        if self._was_short and processors.spare(began, _FRESH_S) >= 0:
            while not readable.poll(0) and time.perf_counter() - began < SPIN_S:
                pass
        return began

    def waited(self, began: float) -> None:
        """Know that what was waited for has come."""
        self._was_short = time.perf_counter() - began < SHORT_S
