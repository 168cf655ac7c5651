"""Blocks of segments, handed out and taken back.

Each direction has an arena. The side that sends allocates a block for every storage; the side that
receives says when the last tensor over it died. In steady state a call finds its blocks where the call
before left them: no descriptor, no mmap, no page fault.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from isohub.shm.segment import Segment
from isohub.wire.specs import ALIGNMENT_BYTES, Block

__all__ = ["Arena", "padded"]

# Smallest segment of an arena: room for a few ordinary inputs. Pages that are never touched cost nothing.
MIN_SEGMENT_BYTES = 16 << 20


class Arena:
    """First-fit allocator over segments.

    The lowest free place is taken first, because it was touched before: a first touch of fresh pages is
    ten times slower than a copy into warm ones.

    Args:
        grow: Returns a new segment of at least that many bytes. It may ask the other process for it.

    Attributes:
        placed: Blocks that were written before it was clear whether they are sent, by address.
    """

    def __init__(self, grow: Callable[[int], Segment]) -> None:
        self._grow = grow
        self._segments: dict[int, Segment] = {}
        self._free: dict[int, list[tuple[int, int]]] = {}  # by segment: (offset, nbytes), by offset
        self.placed: dict[int, Block] = {}
        self._used: dict[tuple[int, int], int] = {}  # (segment, offset) -> nbytes

    def __repr__(self) -> str:
        total = sum(segment.nbytes for segment in self._segments.values())
        return f"<Arena {len(self._used)} blocks, {sum(self._used.values())} of {total} bytes>"

    def segment(self, number: int) -> Segment:
        """Return the segment of that number."""
        return self._segments[number]

    def address(self, block: Block) -> int:
        """Return where a block lies."""
        return self._segments[block.segment].address + block.offset

    def has(self, number: int) -> bool:
        """Return whether the segment of that number is one of the arena's."""
        return number in self._segments

    def reserve(self, sizes: list[int]) -> None:
        """Make sure that blocks of these sizes, in bytes, can be allocated; at most one segment is added."""
        total = sum(map(padded, sizes))
        if total > max((length for free in self._free.values() for _, length in free), default=0):
            self._add_segment(total)

    def allocate(self, nbytes: int) -> Block:
        """Return a free block of `nbytes` bytes."""
        return self.allocate_all([nbytes])[0]

    def allocate_all(self, sizes: list[int]) -> list[Block]:
        """Return free blocks of these sizes, in bytes, one after the other in one segment; or none at all."""
        if not sizes:
            return []
        total = sum(map(padded, sizes))
        segment, offset = self._take(total) or self._take_new(total)
        blocks = []
        for nbytes in sizes:
            size = padded(nbytes)
            self._used[segment, offset] = size
            blocks.append(Block(segment, offset, nbytes))
            offset += size
        return blocks

    def take(self, nbytes: int) -> Block | None:
        """Return a free block of `nbytes` bytes if there is one in the segments that are there."""
        size = padded(nbytes)
        found = self._take(size)
        if found is None:
            return None
        self._used[found] = size
        return Block(*found, nbytes)

    def drop(self, number: int) -> bool:
        """Forget one of the segments if no block of it is out; return whether it was forgotten."""
        if any(segment == number for segment, _ in self._used):
            return False
        del self._segments[number], self._free[number]
        return True

    def release(self, segment: int, offset: int) -> int:
        """Take a block back, and return how many bytes it took up.

        Raises:
            KeyError: No such block is out. A peer that says so lies or is broken.
        """
        released = size = self._used.pop((segment, offset))
        free = self._free[segment]
        place = bisect.bisect(free, (offset, 0))
        if place < len(free) and free[place][0] == offset + size:
            size += free.pop(place)[1]
        if place and sum(free[place - 1]) == offset:
            offset, before = free.pop(place - 1)
            size, place = size + before, place - 1
        free.insert(place, (offset, size))
        return released

    def _add_segment(self, size: int) -> None:
        segment = self._grow(max(size, MIN_SEGMENT_BYTES))
        self._segments[segment.number] = segment
        self._free[segment.number] = [(0, segment.nbytes)]

    def _take_new(self, size: int) -> tuple[int, int]:
        self._add_segment(size)
        found = self._take(size)
        assert found is not None, "a segment smaller than what was asked for"
        return found

    def _take(self, size: int) -> tuple[int, int] | None:
        for number, free in self._free.items():
            for place, (offset, length) in enumerate(free):
                if length >= size:
                    if length == size:
                        del free[place]
                    else:
                        free[place] = (offset + size, length - size)
                    return number, offset
        return None


def padded(nbytes: int) -> int:
    """Return how many bytes a block of `nbytes` takes up."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES or ALIGNMENT_BYTES
