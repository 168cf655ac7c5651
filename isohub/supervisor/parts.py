"""The parts of a build, which the worker timed, as steps of a load."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from isohub import trace
from isohub.errors import RemoteProtocolError

__all__ = ["tell"]

_MOST = 3  # one of each kind
# Both clocks are the kernel's one, and read a moment apart.
_SLACK_S = 0.001


def tell(took: Sequence[tuple[str, float]], begun: float) -> None:
    """Tell of the parts as steps that ended just now, one after the other.

    Args:
        took: Their names, and the seconds that the worker says they took.
        begun: When it was asked, by `time.monotonic`.

    Raises:
        RemoteProtocolError: They cannot have taken that long.
    """
    now = time.monotonic()
    seconds = [each for _, each in took]
    if len(took) > _MOST or not all(math.isfinite(each) and each >= 0 for each in seconds):
        raise RemoteProtocolError("parts of a build that no build has")
    if sum(seconds) > now - begun + _SLACK_S:
        raise RemoteProtocolError(f"parts of a build that took {sum(seconds):.6g} s of {now - begun:.6g} s")
    start = now - sum(seconds)
    for name, each in took:
        trace.tell(f"worker.{name}", start, each)
        start += each
