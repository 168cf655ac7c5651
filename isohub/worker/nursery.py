"""Shared memory for large tensors of a build, so that they need not be moved there when the build is done.

::

    segment  [ layer1.weight | layer2.weight | temporary, dead: its pages are the system's again | never touched ... ]

Segments are asked for in large pieces, since each is a round trip. What dies while the entrypoint runs is free for
another tensor, or for one that is moved in at the end. Nothing is ever reused that the parent may have seen.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Callable

from isohub.shm.arena import Arena
from isohub.shm.pages import PAGE_BYTES, as_private, look_at, padded_to_pages, punch, replace
from isohub.shm.residents import Residents
from isohub.shm.segment import Segment, write_at
from isohub.wire.messages import Granted
from isohub.wire.specs import Block

__all__ = ["Nursery"]

# Pages that are never touched cost nothing, but the parent counts them against `memory_bytes`.
MIN_SEGMENT_BYTES = 16 << 20
# A segment is at least this part of all before it, so that a large model has tens of them, not thousands: the parent
# may keep a descriptor for each.
_GROWTH = 4
MAX_SEGMENTS = 64
# What is larger is a mistake, which torch says better.
_MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

_open: weakref.WeakSet[Nursery] = weakref.WeakSet()


class Nursery:
    """Memory in segments of weights, for one build.

    Args:
        need: Asks the parent for a segment; returns the grant and its descriptor.
        residents: Where the segments are added.
        watch: Called with each block and the view that keeps it.
    """

    def __init__(
        self,
        need: Callable[[int], tuple[Granted, int]],
        residents: Residents,
        watch: Callable[[Block, memoryview], None],
    ) -> None:
        self._need = need
        self._residents = residents
        self._watch = watch
        self._arena = Arena(self._grow)
        self._segments: dict[int, tuple[Segment, int]] = {}  # with a descriptor, for `part`
        self._whole: dict[int, memoryview] = {}  # by which the segments count as in use as long as this is open
        self._living: dict[int, weakref.ref[memoryview]] = {}
        self._dead: list[tuple[int, int]] = []
        self._tokens = itertools.count()
        self._total_bytes = self._used_bytes = 0
        self._growing = self._reusing = True
        self._pid = os.getpid()
        _open.add(self)

    def allocate(self, nbytes: int) -> memoryview | None:
        """Return a view of new memory, full of zeros, that is in use while the view lives; None if there is none."""
        if not self._reusing or nbytes > _MACHINE_BYTES:
            return None
        self._take_back()
        size = padded_to_pages(nbytes)
        found = self._arena.take(size)
        if found is None and self._growing:
            try:
                found = self._arena.allocate(size)
            except (OSError, MemoryError):  # refused: it is private memory, and moved in the end if there is room then
                self._growing = False
        if found is None:
            return None
        segment, _ = self._segments[found.segment]
        view = segment.view(found.offset, nbytes)
        self._watch(Block(found.segment, found.offset, nbytes), view)
        self._used_bytes += size
        self._note(found, segment.address + found.offset, view)
        return view

    def has(self, address: int) -> bool:
        """Return whether a tensor that was born here begins at `address`, or looks into one there."""
        return any(one.address <= address < one.address + one.nbytes for one, _ in self._segments.values())

    def fill(self, address: int, source: int, nbytes: int) -> bool:
        """Copy memory to a tensor that was born here; return whether that was done.

        The system writes it, which takes two thirds of the time of a copy: it need not make new pages full of zeros
        first, and nobody waits for them page by page.
        """
        block = self._residents.find(address, nbytes)
        found = None if block is None else self._segments.get(block.segment)
        if block is None or found is None or self._residents.find(source, nbytes) is not None:
            return False
        try:
            write_at(found[1], block.offset, source, nbytes)
        except OSError:
            return False
        # Else they would count as nobody's memory until somebody uses them.
        begin = address // PAGE_BYTES * PAGE_BYTES
        look_at(begin, padded_to_pages(address + nbytes - begin))
        return True

    def room(self, sizes: list[int]) -> list[tuple[Segment, int] | None]:
        """Return places for storages that are moved here for good; None for each that does not fit."""
        self._take_back()
        for number, (segment, _) in list(self._segments.items()):
            # It would stay for a few small ones, and count as weights with all its size.
            if number in self._whole and segment.nbytes > 2 * sum(sizes) and self._arena.drop(number):
                del self._whole[number]
        places: list[tuple[Segment, int] | None] = []
        for size in sizes:
            found = self._arena.take(padded_to_pages(size))
            places.append(None if found is None else (self._segments[found.segment][0], found.offset))
        return places

    def settle(self) -> None:
        """Know that others may see tensors from now on: nothing more is born here, and no place is used again."""
        self._reusing = False

    def close(self) -> None:
        """Let go of all that nothing lives in. May be called again; nothing else may."""
        self._reusing = False
        if self not in _open:
            return
        _open.discard(self)
        self._whole.clear()
        del self._arena  # it has the segments, and this object
        while self._segments:
            os.close(self._segments.popitem()[1][1])

    def part(self) -> None:
        """Write to the memory alone: in a fork, which must not write to its parent's.

        What the parent writes in place later is still seen on pages that were not written to here.
        """
        for segment, fd in self._segments.values():
            with contextlib.suppress(OSError):
                replace(as_private(segment.address, padded_to_pages(segment.nbytes), fd, 0))
        self.close()

    def _note(self, block: Block, address: int, view: memoryview) -> None:
        token = next(self._tokens)

        def died(_: object) -> None:
            # May run inside the garbage collector, in any thread: no lock.
            del self._living[token]
            # A fork has its parent's pages until it has called `part`.
            if self._reusing and os.getpid() == self._pid:
                try:
                    punch(address, block.nbytes)
                except OSError:
                    return  # it is not full of zeros, and stays as it is until its segment goes
                self._dead.append((block.segment, block.offset))

        self._living[token] = weakref.ref(view, died)

    def _take_back(self) -> None:
        while self._dead:
            segment, offset = self._dead.pop()
            self._used_bytes -= self._arena.release(segment, offset)

    def _grow(self, nbytes: int) -> Segment:
        # What is free in small pieces counts as taken, in the parent as well. There must be room left to move into.
        if len(self._segments) == MAX_SEGMENTS or self._total_bytes > 2 * (self._used_bytes + nbytes):
            raise MemoryError("more segments than a build may have")
        wanted = max(MIN_SEGMENT_BYTES, self._total_bytes // _GROWTH)
        try:
            granted, fd = self._need(max(nbytes, wanted // nbytes * nbytes))
        except MemoryError:
            granted, fd = self._need(nbytes)
        try:
            segment = Segment(granted.segment, fd, granted.nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._segments[segment.number] = segment, fd
        self._total_bytes += segment.nbytes
        whole = segment.view(0, segment.nbytes)
        self._watch(Block(segment.number, 0, segment.nbytes), whole)
        self._whole[segment.number] = whole
        self._residents.add(segment)
        return segment


def _part_all() -> None:
    for nursery in list(_open):
        nursery.part()


def _settle_all() -> None:
    for nursery in list(_open):
        nursery.settle()


os.register_at_fork(before=_settle_all, after_in_child=_part_all)
