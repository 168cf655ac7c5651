"""The segments that hold weights, by address."""

from __future__ import annotations

import bisect

from isohub.shm.segment import Segment
from isohub.wire.specs import ALIGNMENT_BYTES, Block

__all__ = ["Residents"]


class Residents:
    """The segments that hold weights, by address, so that a tensor that lies there is found."""

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}
        self._by_address: list[Segment] = []
        self._begin = self._end = 0  # of all of them

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(segment.nbytes for segment in self._by_address)

    def add(self, segment: Segment) -> None:
        """Count `segment` in, and keep it mapped."""
        self._segments[segment.number] = segment
        self._sort()

    def remove(self, number: int) -> None:
        """Let go of a segment; unknown ones are ignored. Views of it keep it mapped."""
        self._segments.pop(number, None)
        self._sort()

    def _sort(self) -> None:
        self._by_address = sorted(self._segments.values(), key=_address)
        self._begin = min((segment.address for segment in self._by_address), default=0)
        self._end = max((segment.address + segment.nbytes for segment in self._by_address), default=0)

    def get(self, number: int) -> Segment | None:
        """Return the segment of that number, if there is one."""
        return self._segments.get(number)

    def span_has(self, address: int) -> bool:
        """Return whether `address` could be in one of them; much quicker than `find`."""
        return self._begin <= address < self._end

    def find(self, address: int, nbytes: int) -> Block | None:
        """Return the block that `nbytes` bytes at `address` are, if they lie in a segment."""
        by_address = self._by_address
        place = bisect.bisect_right(by_address, address, key=_address) - 1
        if place < 0:
            return None
        segment = by_address[place]
        offset = address - segment.address
        if offset + nbytes > segment.nbytes or offset % ALIGNMENT_BYTES:
            return None
        return Block(segment.number, offset, nbytes)


def _address(segment: Segment) -> int:
    return segment.address
