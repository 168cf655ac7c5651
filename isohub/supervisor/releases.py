"""Handles that died here, told to a worker that nobody asks anything."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from isohub.errors import IsohubError
from isohub.wire.lifecycle import State

if TYPE_CHECKING:
    from isohub.supervisor.background import Background
    from isohub.supervisor.worker import Worker

__all__ = ["Releases"]


class Releases:
    """Sends the releases of one worker, in a short thread of their own.

    A worker that takes its time, in a `__del__` say, holds up nobody else so.

    Attributes:
        is_telling: Whether they are being sent at the moment.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._is_due = False
        self._thread: threading.Thread | None = None
        self.is_telling = False

    def soon(self, background: Background) -> None:
        """Have them sent, unless they are just going to be. May be called by the garbage collector."""
        if not self._is_due:
            background.soon(self._start)

    def join(self) -> None:
        """Wait until the last of them is sent."""
        with contextlib.suppress(RuntimeError):  # it is this thread, or was never started
            if self._thread is not None:
                self._thread.join()

    def _start(self) -> None:
        if self._is_due or not self._worker.alive:
            return
        self._is_due = True
        self._thread = threading.Thread(target=self._send, name="isohub-release", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending, and the worker with it
            self._thread.start()

    def _send(self) -> None:
        self._is_due = False  # what dies from now on is not taken along for sure
        worker = self._worker
        # Not while somebody is asking it anything: that takes them along.
        if worker._turn.try_take():
            try:
                if worker._state is State.IDLE and worker._end is None and os.getpid() == worker._owner_pid:
                    self.is_telling = True
                    with contextlib.suppress(IsohubError):
                        worker.request("release")
            finally:
                self.is_telling = False
                worker._turn.give()
