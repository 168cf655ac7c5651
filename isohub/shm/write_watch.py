"""A client of the watcher: which ranges of this process's memory it protects, and what it has noted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import weakref
from typing import Literal, NamedTuple

from isohub.shm.pages import Replacement, map_base, replace_unless, unmap
from isohub.shm.watcher import (
    ALIVE_AT,
    DEAD_BIT,
    DONE,
    HOLD,
    LEAVE,
    NO,
    PART,
    PROTECT,
    REQUEST,
    WRITTEN,
    YES,
    open_userfaultfd,
)

__all__ = ["NOTES_BYTES", "Notes", "Part", "WriteWatch"]

# Sparse: a page for each end of each worker.
NOTES_BYTES = 16 << 20
# It answers within microseconds, unless somebody has stopped it.
_ANSWER_S = 30.0


class Part(NamedTuple):
    """A range of memory that is watched as one.

    Attributes:
        address: Where it is; a whole page.
        nbytes: How long; whole pages.
        note: The place in the notes that says whether it was written to.
        counter: The place in the notes where such writes are counted.
    """

    address: int
    nbytes: int
    note: int
    counter: int


class Notes:
    """What the watcher notes, to be read.

    Args:
        fd: Its memory; stays the caller's.

    Attributes:
        written: By place, not 0 where somebody wrote.
        counts: By a quarter of the place, how often such a note was made.
    """

    def __init__(self, fd: int) -> None:
        address = map_base(fd, NOTES_BYTES)
        whole = (ctypes.c_char * NOTES_BYTES).from_address(address)
        weakref.finalize(whole, unmap, address, NOTES_BYTES).atexit = False
        self.written = memoryview(whole).cast("B")
        self.counts = self.written.cast("I")

    @property
    def alive(self) -> bool:
        """Whether the watcher lives: else nobody can tell whether something was written to."""
        return not self.counts[ALIVE_AT // 4] & DEAD_BIT


class WriteWatch:
    """This process's side of the watcher. Safe for threads.

    Args:
        sock: To the watcher. Owned from now on; `close` closes it.
        notes: What it notes.

    Raises:
        OSError: The system has no userfaultfd, or the watcher does not answer.
    """

    def __init__(self, sock: socket.socket, notes: Notes) -> None:
        self.notes = notes
        self._sock = sock
        self._lock = threading.Lock()
        sock.settimeout(_ANSWER_S)
        try:
            fd = open_userfaultfd()
            try:
                # Not kept here: while it is open anywhere, a write waits for an answer, also from a dead watcher.
                socket.send_fds(sock, [YES], [fd])
            finally:
                os.close(fd)
            if sock.recv(1) != YES:
                raise OSError("the watcher refuses")
        except BaseException:
            sock.close()
            raise

    def protect(self, parts: list[Part]) -> None:
        """From now on, note whoever writes to these ranges, which lie next to each other.

        Raises:
            OSError: The watcher is gone, or refuses.
        """
        address, end = parts[0].address, parts[-1].address + parts[-1].nbytes
        if self._ask(PROTECT, address, end - address, b"".join(PART.pack(*part) for part in parts)) != YES:
            raise OSError("the watcher cannot protect this memory")

    def hold(self, part: Part) -> Literal["untouched", "written", "gone"]:
        """From now on, make whoever writes there wait; return what has been until now.

        It ends with `done`. Who cannot wait any longer is let through, and noted.
        """
        answer = self._ask(HOLD, part.address, part.nbytes)
        return "untouched" if answer == YES else "written" if answer == WRITTEN else "gone"

    def replace(self, part: Part, replacement: Replacement) -> bool:
        """Replace a range that is held, unless somebody was let through meanwhile; return whether it was.

        Raises:
            OSError: It cannot be replaced.
        """
        return replace_unless(self.notes.written, part.note, replacement)

    def done(self, part: Part) -> None:
        """Forget a range that was replaced by memory that needs no watching, and let those go on who wait."""
        self._ask(DONE, part.address, part.nbytes)

    def leave(self, address: int, nbytes: int) -> None:
        """Forget ranges that are as they were before."""
        self._ask(LEAVE, address, nbytes)

    def close(self) -> None:
        """Have nothing watched any more. May be called again."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _ask(self, kind: bytes, address: int, nbytes: int, data: bytes = b"") -> bytes:
        with self._lock:
            try:
                self._sock.send(REQUEST.pack(kind, address, nbytes) + data)
                return self._sock.recv(1) or NO
            except OSError:
                self._sock.close()  # a late answer would be taken for another one; the watcher notes the end
                return NO
