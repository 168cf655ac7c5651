"""What a worker is called in `ps`, `top` and `py-spy`, with what it does at the moment, as PostgreSQL's processes tell.

::

    isohub-worker owner/name:v1@1a2b3c4: idle calls=12 handles=3 last=1732267213
                  └── label ──────────┘  └── told anew with each request ───────┘

Its short name is `isohub-worker`. What `ps` shows beside it is the memory in which the kernel keeps the command
line: that of the forkserver, which a fork inherits and nobody needs any more, so it is written over. The program
that reads it (`isohub ps`) believes nothing of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from pathlib import Path

__all__ = ["FORKSERVER", "WORKER", "Title", "command_line", "name_process"]

# The kernel takes 15 bytes.
FORKSERVER, WORKER = "isohub-forkserv", "isohub-worker"
_PR_SET_NAME = 15
# Room for the counts; what is left of the memory is for the label.
_TAIL_BYTES = 80
_LEAST_BYTES = 2 * _TAIL_BYTES
# Places in /proc/self/stat, counted from the state, which follows the name.
_ARG_START, _ARG_END = 45, 46


def name_process(name: str) -> None:
    """Give this process (its main thread) its short name."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


class Title:
    """The title of this process. Where its memory cannot be found or is too small, nothing is shown."""

    def __init__(self) -> None:
        self._area = command_line()
        self._tail = 0
        self._calls = 0

    def name(self, label: str) -> None:
        """Show which repository this is, and that the worker is idle."""
        if self._area is None:
            return
        head = f"{WORKER} {label}".encode(errors="replace")[: len(self._area) - _TAIL_BYTES] + b": "
        self._area[:] = head.ljust(len(self._area), b"\0")
        self._tail = len(head)
        self._area[self._tail : self._tail + 4] = b"idle"

    def busy(self) -> None:
        """Show that a request is under way."""
        if self._tail and self._area is not None:
            self._area[self._tail : self._tail + 4] = b"busy"

    def idle(self, handles: int, *, called: bool) -> None:
        """Show that a request was answered, and how many objects the parent has handles of.

        Args:
            handles: That number.
            called: Whether the request counts: those by which the parent tidies up are nobody's call.
        """
        if self._tail and self._area is not None:
            self._calls += called
            now = int(time.time())
            text = b"idle calls=%d handles=%d last=%d" % (self._calls, handles, now)
            # One byte stays 0, or the kernel would take the environment for more of the command line.
            self._area[self._tail : self._tail + _TAIL_BYTES - 3] = text.ljust(_TAIL_BYTES - 3, b"\0")


@functools.cache
def command_line() -> memoryview | None:
    """Return the memory of the command line, found once: a fork has it in the same place."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if start and end - start >= _LEAST_BYTES:
            return memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")
    return None
