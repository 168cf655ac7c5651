"""How many processors nobody wants at the moment: what may be taken for a moment without slowing others down."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path

__all__ = ["quota", "spare"]

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
            _Seen.spare = math.floor(min(len(os.sched_getaffinity(0)), quota())) - running
        except (OSError, ValueError, IndexError, AttributeError):  # not Linux, or something that plays Linux
            _Seen.spare = -1
    return _Seen.spare


@functools.cache
def quota(root: Path = Path("/")) -> float:
    """Return how many processors' time the control group of this process may take; infinite where it has no limit.

    A container may be shown all processors of its machine, and be stopped for a while when it has taken its share:
    there a wait that takes time takes it from the work.

    Args:
        root: Where `proc` and `sys` are.
    """
    limits = [math.inf]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / controllers  # version 2 has one hierarchy, which has no name
            folder = top / own.lstrip("/")
            # Those above it limit it as well. A container sees its own group as the top one.
            limits += map(_limit, (folder, *(above for above in folder.parents if above.is_relative_to(top)), top))
    return min(limits)


def _limit(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        allowed, period = (group / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        allowed_us = int((group / "cpu.cfs_quota_us").read_text())
        return allowed_us / int((group / "cpu.cfs_period_us").read_text()) if allowed_us > 0 else math.inf
    return math.inf
