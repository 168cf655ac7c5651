"""Results that nobody can change any more: segments that are sealed before the parent looks."""

from __future__ import annotations

import os
from collections import deque

from isohub.errors import RemoteProtocolError
from isohub.shm.segment import Segment, create_memfd, seal

__all__ = ["FrozenSegments"]

# Each that is alive is a mapping, of which the kernel gives a process 65,530.
MAX_LIVING = 16384


class FrozenSegments:
    """The segments of one worker's frozen results, from the request for one until its last tensor dies.

    The worker gets a descriptor and writes. When its answer names the segment, it is sealed and mapped privately: pages
    are shared with nobody who could write to them, and what is written here goes into copies of them.
    """

    def __init__(self) -> None:
        self._granted: dict[int, tuple[int, int]] = {}  # number -> (descriptor, nbytes)
        self._named: dict[int, Segment] = {}  # by the payload that is being read
        # What became of granted bytes that are no longer there. A deque: it is told by the garbage collector.
        self._gone: deque[int] = deque()
        self._living = 0

    def __len__(self) -> int:
        return len(self._granted)

    @property
    def full(self) -> bool:
        """Whether there may be no more."""
        return self._living - len(self._gone) >= MAX_LIVING

    def grant(self, number: int, nbytes: int) -> int:
        """Make a segment and return a descriptor for the worker, which is the caller's to close.

        Raises:
            OSError: The system gives none.
        """
        fd = create_memfd(nbytes, to_be_frozen=True)
        try:
            theirs = os.dup(fd)
        except BaseException:
            os.close(fd)
            raise
        self._granted[number] = fd, nbytes
        self._living += 1
        return theirs

    def get(self, number: int) -> Segment | None:
        """Return the segment of that number, sealed; None if none was granted, or it was named before.

        Raises:
            RemoteProtocolError: The worker keeps it from being sealed.
        """
        if number in self._named or number not in self._granted:
            return self._named.get(number)
        fd, nbytes = self._granted.pop(number)
        try:
            try:
                seal(fd)
            except OSError as error:
                raise RemoteProtocolError(f"a result where it can go on writing to it: {error.strerror}") from None
            segment = Segment(number, fd, nbytes, frozen=True)
        except BaseException:
            self._gone.append(nbytes)
            raise
        finally:
            os.close(fd)
        segment.when_unmapped(self._gone.append, nbytes)
        self._named[number] = segment
        return segment

    def read(self) -> None:
        """Know that the payload which named segments is read: no other one may."""
        self._named.clear()

    def take_gone(self) -> int:
        """Return how many bytes were given back since the last call."""
        count = len(self._gone)
        self._living -= count
        return sum(self._gone.popleft() for _ in range(count))

    def settled(self) -> None:
        """Let go of what was asked for and never named: the exchange is over."""
        self.read()
        while self._granted:
            fd, nbytes = self._granted.popitem()[1]
            self._gone.append(nbytes)
            os.close(fd)
