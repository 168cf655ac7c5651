"""Waiting for what has no event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["until"]


def until(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Return as soon as `condition` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that in {timeout_s} s"
        pause.wait(0.005)
