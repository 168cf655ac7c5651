"""Workers in reserve: forked, and not yet given a repository.

::

    isohub.warm(2)     forkserver ──fork──> worker that waits ─┐
    next load  <──────────────────────────── taken ────────────┘   and another is forked, when the load has its worker

What a worker is given (files, environment, limits, threads) it is told when it is prepared, so that one in reserve
does for any load. Nothing is kept by itself: somebody has to ask for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

from isohub.errors import WorkerStartError
from isohub.supervisor.background import Background
from isohub.supervisor.launch import ForkServer, Process

__all__ = ["MAX_WORKERS", "VARIABLE", "IdleWorkers", "count_asked_for"]

VARIABLE = "ISOHUB_IDLE_WORKERS"
# More than any program loads at a time; each takes some megabytes.
MAX_WORKERS = 64
# Most loads of small models are done by then.
REFILL_AFTER_S = 0.1
# Where workers die while they wait, something ends them again and again: so many are replaced between two loads.
_MAX_DEATHS = 3


def count_asked_for() -> int:
    """Return how many workers the environment asks to keep in reserve.

    Raises:
        ValueError: The variable is set to something that is no such number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return 0
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else -1
    if not 0 <= count <= MAX_WORKERS:
        raise ValueError(f"{VARIABLE}={text!r} is no number of workers: set it to one from 0 to {MAX_WORKERS}")
    return count


class IdleWorkers:
    """Where workers come from: those in reserve, and else a fork. Safe for threads.

    Args:
        forkserver: What forks them.
        background: The thread that notices when one of them ends.
    """

    def __init__(self, forkserver: ForkServer, background: Background) -> None:
        self._forkserver = forkserver
        self._background = background
        self._lock = threading.RLock()
        self._waiting: list[_Waiting] = []
        self._deaths = 0
        self.wanted = 0

    @property
    def pids(self) -> list[int]:
        """Process ids of those that wait, as far as they are there yet."""
        with self._lock:
            return [one.process.pid for one in self._waiting if one.process.pid]

    def launch(self, deadline: float) -> Process:
        """Return a worker that nobody has used: one in reserve if there is, else a new one.

        Args:
            deadline: By `time.monotonic`.

        Raises:
            WorkerStartError: None comes in time, or the forkserver dies.
        """
        self._deaths = 0
        while (process := self._pop()) is not None:
            with contextlib.suppress(OSError, EOFError):  # it has ended meanwhile: the next one, or a new one
                process.arrive(deadline)
                if not process.ended:
                    return process
            process.close()
        process = self._forkserver.begin()
        try:
            process.arrive(deadline)
        except BaseException as error:
            process.close()
            if isinstance(error, OSError | EOFError):
                raise self._forkserver.silent(error) from error
            raise
        return process

    def keep(self, count: int) -> None:
        """Have so many in reserve from now on; those that are too many end.

        Raises:
            WorkerStartError: The forkserver cannot be asked for them.
        """
        with self._lock:
            self.wanted = count
            self._deaths = 0
            spare, self._waiting = self._waiting[count:], self._waiting[:count]
        self._end(spare)
        self.refill()

    def refill(self) -> None:
        """Ask for as many as are missing; does not wait for them.

        Raises:
            WorkerStartError: The forkserver cannot be asked.
        """
        while True:
            with self._lock:
                if len(self._waiting) >= self.wanted:
                    return
                waiting = _Waiting(self._forkserver.begin(), self)
                self._waiting.append(waiting)
                self._background.watch(waiting)

    def refill_soon(self) -> None:
        """Refill in the background, a little later: a fork would slow down the load that took one."""
        if len(self._waiting) < self.wanted:
            self._background.soon(self._refill_quietly, REFILL_AFTER_S)

    def wait(self, deadline: float) -> None:
        """Wait until all that are in reserve can be given a repository at once.

        Raises:
            WorkerStartError: They do not come in time.
        """
        for waiting in list(self._waiting):
            poll = select.poll()
            poll.register(waiting.process.channel, select.POLLIN)  # its greeting, or its end
            if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3):
                raise self._forkserver.silent(TimeoutError("no answer in time; it may still be importing torch"))
            waiting.arrive(deadline)

    def close(self) -> None:
        """End those in reserve; none is kept from now on. May be called again."""
        with self._lock:
            self.wanted = 0
            spare, self._waiting = self._waiting, []
        self._end(spare)

    def forget(self) -> None:
        """Close our descriptors without ending anything: in a fork of the process that has them."""
        for waiting in self._waiting:
            waiting.process.close()

    def gone(self, waiting: _Waiting) -> None:
        """Replace one that has ended, unless too many do, or the forkserver has ended with it."""
        with self._lock:
            if waiting not in self._waiting:
                return
            self._waiting.remove(waiting)
            self._deaths += 1
            again = self._deaths <= _MAX_DEATHS and self._forkserver.pid is not None
        self._background.forget(waiting)  # before its descriptors are somebody else's
        waiting.process.close()
        if again:
            self._refill_quietly()

    def _refill_quietly(self) -> None:
        with contextlib.suppress(WorkerStartError):  # the next load will say so
            self.refill()

    def _pop(self) -> Process | None:
        with self._lock:
            waiting = self._waiting.pop(0) if self._waiting else None
        if waiting is None:
            return None
        self._background.forget(waiting)
        waiting.leave()
        return waiting.process

    def _end(self, spare: list[_Waiting]) -> None:
        for waiting in spare:
            self._background.forget(waiting)
            waiting.leave()
            waiting.process.close()


class _Waiting:
    """One in reserve, as the background thread watches it: the status pipe says its id, and then its end."""

    def __init__(self, process: Process, owner: IdleWorkers) -> None:
        self.process = process
        self.fd = process.status
        self._owner = owner
        self._lock = threading.Lock()
        self._watched = True

    def drain(self) -> bool:
        """Take what the status pipe says; return False once it has ended, or is somebody else's to watch."""
        with self._lock:
            if not self._watched:
                return False
            if not self.process.pid:
                with contextlib.suppress(OSError, EOFError):
                    self.process.arrive(time.monotonic())
                    return True
            self._watched = False
        self._owner.gone(self)
        return False

    def arrive(self, deadline: float) -> None:
        """Wait until its id is known, if it is here still and alive."""
        with self._lock, contextlib.suppress(OSError, EOFError):
            if self._watched:
                self.process.arrive(deadline)

    def leave(self) -> None:
        """Have the status pipe read by nobody else from now on."""
        with self._lock:
            self._watched = False
