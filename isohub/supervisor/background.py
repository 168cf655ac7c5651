"""One thread that reads the workers' output, and starts what the garbage collector must not do itself."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

__all__ = ["Background", "Watched"]


class Watched(Protocol):
    """What the thread reads.

    Attributes:
        fd: What there is to read.
    """

    fd: int

    def drain(self) -> bool:
        """Take what is there; return False once there will be no more."""


class Background:
    """The thread. It runs while there is anything to watch, and owns a pipe by which it is woken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_r = self._wake_w = -1
        self._tasks: deque[tuple[float, Callable[[], None]]] = deque()
        self._stopping = False

    def watch(self, *outputs: Watched) -> None:
        """Read these outputs from now on."""
        with self._lock:
            if self._thread is None:
                self._start()
            for output in outputs:
                self._selector.register(output.fd, selectors.EVENT_READ, output)
        self._wake()

    def forget(self, *outputs: Watched) -> None:
        """Read these outputs no more; their descriptors may be closed then."""
        with self._lock:
            for output in outputs:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(output.fd)

    def soon(self, task: Callable[[], None], after_s: float = 0.0) -> None:
        """Run `task`, which must not wait, in the thread.

        May be called inside the garbage collector: it takes no lock.

        Args:
            task: What to run; nobody does if the thread is stopped before.
            after_s: Not earlier than so many seconds from now.
        """
        self._tasks.append((time.monotonic() + after_s, task))
        self._wake()

    def stop(self) -> None:
        """End the thread and close its pipe. May be called again."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping = True
        if thread is None:
            return
        self._wake()
        if thread is not threading.current_thread():
            thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Close what this object owns, without the thread: in a fork there is none."""
        self._thread = None
        self._selector.close()
        for fd in (self._wake_r, self._wake_w):
            if fd >= 0:
                os.close(fd)
        self._wake_r = self._wake_w = -1
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._tasks.clear()

    def _start(self) -> None:
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="isohub-background", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; -1: there is no thread
            os.write(self._wake_w, b"x")

    def _run(self) -> None:
        selector, wake_r = self._selector, self._wake_r
        later: list[tuple[float, Callable[[], None]]] = []
        while not self._stopping:
            timeout_s = max(min(due for due, _ in later) - time.monotonic(), 0.0) if later else None
            for key, _ in selector.select(timeout_s):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_r, 4096)
                elif not key.data.drain():
                    with self._lock:
                        now = selector.get_map().get(key.fd)
                        if now is not None and now.data is key.data:  # not another's of the same number
                            selector.unregister(key.fd)
            while self._tasks:
                later.append(self._tasks.popleft())
            until = time.monotonic()
            ready, later = [task for due, task in later if due <= until], [one for one in later if one[0] > until]
            for task in ready:
                task()
