"""A short wait without sleeping, for answers that come soon.

To wake a processor that sleeps takes a virtual machine 35 to 70 us, and all that runs on it next finds its caches
cold: a call of 600 kB took 650 us with sleeps between and 400 without. Whoever looks again and again instead takes a
processor from others, so it is done only for a moment, only where one of the last waits was short, only while there
are processors that nobody else wants, and each look lets whoever wants this one go first.
"""

from __future__ import annotations

import os
import select
import time

from isohub.shm import processors

__all__ = ["Spin"]

# For so long at most: in a loop of calls, what a program does between two of them. With 0.2 ms half of the gain is
# lost, with 5 ms there is no more.
SPIN_S = 2e-3
# A wait of up to this is a short one.
SHORT_S = 2e-3
# After so many long ones in a row none is hoped for any more.
_LONG_ONES = 8
# Whether processors are free is asked again after this; to ask takes some 6 us.
_FRESH_S = 5e-3


class Spin:
    """Waits of one end of a channel."""

    def __init__(self) -> None:
        self._hope = 0

    def wait(self, readable: select.poll) -> float:
        """Look for a moment whether something comes, if it is worth it; return when the wait began."""
        began = time.perf_counter()
        if self._hope and processors.spare(began, _FRESH_S) >= 0:
            while not readable.poll(0) and time.perf_counter() - began < SPIN_S:
                os.sched_yield()
        return began

    def waited(self, began: float) -> None:
        """Know that what was waited for has come."""
        if time.perf_counter() - began < SHORT_S:
            self._hope = _LONG_ONES
        elif self._hope:
            self._hope -= 1
