"""How many processors nobody wants at the moment: what may be taken for a moment without slowing others down."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["spare"]

# Its fourth word begins with how many threads run or want to.
_LOAD = Path("/proc/loadavg")


class _Seen:
    """What was seen last."""

    at = float("-inf")
    spare = -1


def spare(now: float, fresh_s: float = 0.0) -> int:
    """Return how many processors are left over when each thread that wants one has one; below 0 if there are too few.

    Args:
        now: `time.perf_counter()`.
        fresh_s: How old the answer may be, in seconds; to look takes some 6 us.
    """
    if now - _Seen.at > fresh_s:
        _Seen.at = now
        try:
            running = int(_LOAD.read_text().split(" ")[3].partition("/")[0])
            _Seen.spare = len(os.sched_getaffinity(0)) - running
        except (OSError, ValueError, IndexError, AttributeError):  # not Linux, or something that plays Linux
            _Seen.spare = -1
    return _Seen.spare
