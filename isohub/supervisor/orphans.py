"""The program that a forkserver runs: a loop of `multiprocess`, what a fork does first, and an end for what is left.

::

    forkserver ──fork──> worker ──> its child ──> setsid, and a child of that ──> ...
        │                  X                                │
        └── SIGKILL <── children of a dead worker's become the forkserver's

A worker may have started processes of its own, in sessions of their own. Those whose parent has ended become
children of the next process above that asks for them (PR_SET_CHILD_SUBREAPER), by which no process can escape:
of the worker's while it lives, and then of the forkserver's. It forks nothing but workers, so any other child
that it finds is an orphan.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiprocess import forkserver

__all__ = ["adopt_orphans", "main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded once, before the fork.
_libc = ctypes.CDLL(None)
# One round takes a millisecond; there is another for each generation. Nobody gets a worker meanwhile.
_ENDING_S = 1.0
_ENDING_ALL_S = 3.0


def main(listener_fd: int, alive_fd: int, preload: list[str]) -> None:
    """Serve until the other end of `alive_fd` is closed, then end everything that came from here."""
    adopt_orphans()
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")
    workers = _Workers()
    this = os.getpid()

    def serve_one(channel: int, fds: list[int], unused: list[int], handlers: Mapping[int, Any]) -> int:
        return _serve_one(this, channel, fds, unused, handlers)

    forkserver._serve_one = serve_one
    # What it writes to a worker's status pipe says when there is one more and when there is one less.
    forkserver.write_signed = workers.tell
    try:
        forkserver.main(listener_fd, alive_fd, preload)
    finally:
        workers.end()


def adopt_orphans() -> None:
    """Have the orphans among this process's descendants become its children."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _serve_one(
    forkserver_pid: int, channel: int, fds: list[int], unused: list[int], handlers: Mapping[int, Any]
) -> int:
    """Be the worker that serves on `channel`; return its exit code. What `multiprocess` calls in each fork.

    Args:
        forkserver_pid: Whose fork this is.
        channel: One end of a socket pair.
        fds: Its stdout and its stderr.
        unused: Descriptors of the forkserver's.
        handlers: What signals did before the forkserver looked after them.
    """
    # Bound to the thread that forked us, which is the forkserver's only one.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    adopt_orphans()  # or a helper that the repository starts as a daemon would end at once
    if os.getppid() != forkserver_pid:
        return 0  # the forkserver died before the line above
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    out, err = fds
    os.dup2(out, 1)
    os.dup2(err, 2)
    for fd in (*unused, out, err):
        os.close(fd)
    # By name: nobody imports the worker program.
    return importlib.import_module("isohub.worker.__main__").main(channel)  # type: ignore[no-any-return]


class _Workers:
    """The workers there are, by the descriptor of their status pipe."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._write = forkserver.write_signed

    def tell(self, fd: int, number: int) -> None:
        """Write a worker's pid, and the next time its exit status, once its descendants have ended."""
        if fd in self._pids:
            del self._pids[fd]
            self._end_orphans(_ENDING_S)
        else:
            self._pids[fd] = number
        self._write(fd, number)

    def end(self) -> None:
        """Kill all workers and their descendants."""
        self._pids.clear()
        self._end_orphans(_ENDING_ALL_S)

    def _end_orphans(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        # Those that a killed one leaves behind are found in the next round.
        while (orphans := _children() - set(self._pids.values())) and time.monotonic() < deadline:
            for pid in orphans:
                with contextlib.suppress(PermissionError):  # a program that runs as somebody else
                    os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                _reap(pid, deadline)


def _reap(pid: int, deadline: float) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3)
        os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(pidfd)


def _children() -> set[int]:
    this = os.getpid()
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{this}/children").read_text().split()}
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return {int(place.name) for place in Path("/proc").glob("[0-9]*") if _parent_of(place) == this}


def _parent_of(process: Path) -> int:
    try:
        # After the name, which is in brackets and may hold anything: the state, and the parent.
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return 0
