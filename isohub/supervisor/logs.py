"""What workers print: to this process's own stdout and stderr, and kept for error messages."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
from collections import deque

from isohub.wire.texts import clean

__all__ = ["Output"]

# A bounded ring: a worker that floods its stderr costs no memory.
# As many as faulthandler writes of one thread, and some before.
_TAIL_LINES = 150
_TAIL_LINE_CHARACTERS = 2000
_READ_BYTES = 64 << 10
# A read at a time is bounded too, or a flood would keep the reading thread for ever.
_READS_AT_ONCE = 64


class Output:
    """One output pipe of a worker.

    It is read by the background thread while the worker works or idles, and by the calling thread before
    an answer is handed on, so that what a call printed stands before what its caller prints next. The
    texts go to `sys.stdout` or `sys.stderr` as they are at that moment, which in a notebook is the cell.

    Args:
        fd: The read end. It stays the owner's.
        name: `"stdout"` or `"stderr"`.
    """

    def __init__(self, fd: int, name: str) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.muted = False
        self._name = name
        self._lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._rest = ""
        self._ended = False

    def tail(self) -> tuple[str, ...]:
        """Return the last lines that are kept, oldest first, as they may stand in an error."""
        with self._lock:
            lines = [*self._lines, self._rest] if self._rest else list(self._lines)
        return tuple(map(clean, lines))

    def end(self) -> None:
        """Read no more, since the descriptor is going to be closed, and its number may be somebody else's then."""
        with self._lock:
            self._ended = True

    def drain(self) -> bool:
        """Pass on what is in the pipe; return False once it has ended."""
        with self._lock:
            for _ in range(_READS_AT_ONCE):
                if self._ended:
                    return False
                try:
                    data = os.read(self.fd, _READ_BYTES)
                except BlockingIOError:
                    return True
                except OSError:
                    data = b""
                self._ended = not data
                self._take(self._decoder.decode(data, final=self._ended))
            return True

    def _take(self, text: str) -> None:
        if not text:
            return
        *lines, self._rest = (self._rest + text).split("\n")
        self._lines.extend(line[:_TAIL_LINE_CHARACTERS] for line in lines[-_TAIL_LINES:])
        self._rest = self._rest[-_TAIL_LINE_CHARACTERS:]
        if not self.muted:
            # The user may have replaced or closed the stream; a worker's print must not raise here.
            with contextlib.suppress(Exception):
                stream = getattr(sys, self._name)
                stream.write(text)
                stream.flush()
