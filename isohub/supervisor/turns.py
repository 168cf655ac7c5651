"""Whose turn it is to talk to a worker: a lock that knows who waits for whom.

Two threads can wait for each other for ever::

    thread 1: calls A ── A's hook here calls B ──> waits for thread 2 to be done with B
    thread 2: calls B ── B's hook here calls A ──> waits for thread 1 to be done with A

Whoever would close such a ring is refused instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from isohub.supervisor import endings
from isohub.supervisor.deadlines import Deadline

__all__ = ["Turn"]

# Reentrant: a signal handler may run, and ask for another turn, while its thread has it.
_graph = threading.RLock()
_waits: dict[int, Turn] = {}  # by thread: whose turn it waits for


class Turn:
    """A reentrant lock, taken until a deadline."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0

    def take(self, due: Deadline | None, who: str) -> None:
        """Wait for the turn.

        Args:
            due: How long.
            who: The worker, for messages.

        Raises:
            WorkerTimeoutError: The deadline passed first.
            WorkerError: The one who has the turn waits, by however many others, for this thread.
        """
        if self.try_take():
            return
        with self._waiting() as endless:
            if endless:
                raise endings.deadlocked(who)
            if not self._acquire(due):
                assert due is not None, "without a deadline the turn comes"
                raise endings.waited(who, due.seconds)

    def try_until(self, due: Deadline) -> bool:
        """Wait for the turn; return whether it came before the deadline."""
        if self.try_take():
            return True
        with self._waiting() as endless:
            return not endless and self._acquire(due)

    def try_take(self) -> bool:
        """Take the turn if that needs no waiting; return whether it did."""
        return self._lock.acquire(False) and self._taken()

    def give(self) -> None:
        """Give the turn back, as often as it was taken."""
        self._depth -= 1
        if not self._depth:
            self._owner = None  # before the lock, or it might be that of the next
        self._lock.release()

    def _taken(self) -> bool:
        self._depth += 1
        self._owner = threading.get_ident()
        return True

    def _acquire(self, due: Deadline | None) -> bool:
        try:
            return self._lock.acquire(timeout=-1 if due is None else due.left_s) and self._taken()
        except BaseException:
            # Ctrl-C, which may come just when the lock is there and nobody knows of it yet.
            if self._lock._is_owned() and self._owner != threading.get_ident():  # type: ignore[attr-defined]
                self._lock.release()
            raise

    @contextmanager
    def _waiting(self) -> Iterator[bool]:
        """Let the others know that this thread waits; yield whether it would do so without end."""
        this = threading.get_ident()
        with _graph:
            # Everybody says that they wait before they do, so the last one to join a ring sees all of it.
            endless = self._leads_to(this)
            before = _waits.get(this)  # of the call that a signal handler came between
            if not endless:
                _waits[this] = self
        try:
            yield endless
        finally:
            with _graph:
                if before is not None:
                    _waits[this] = before
                else:
                    _waits.pop(this, None)

    def _leads_to(self, this: int) -> bool:
        turn: Turn | None = self
        seen: set[int] = set()
        while turn is not None:
            owner = turn._owner
            if owner is None or owner == this or owner in seen:
                return owner == this
            seen.add(owner)
            turn = _waits.get(owner)
        return False
