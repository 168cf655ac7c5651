"""Weights that are equal in several workers, kept once.

::

    a load is done ──> are these weights like some that another worker has?       (a few bytes of each are compared)
                           │ no: note them, and that was all
                           v yes, and all their bytes are equal
                       copy them into sealed memory ──> both workers, and this process for each, show those pages
                           │
    somebody writes ──> the watcher notes it ──> at the next crossing of that worker's border: its own pages again

It is found out here, from the memory that this process sees; what a worker says of itself is not asked. Whatever
cannot be had (userfaultfd in a container, descriptors, memory) means that weights are not shared.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isohub.errors import IsohubError
from isohub.shm.common_copy import Common
from isohub.shm.pages import PAGE_BYTES, is_equal, padded_to_pages
from isohub.shm.write_watch import NOTES_BYTES
from isohub.supervisor.deadlines import nearest
from isohub.supervisor.shares import SHARE_S, Key, Place, Shares
from isohub.supervisor.watching import Watcher
from isohub.wire.lifecycle import State
from isohub.wire.specs import PAGED_BYTES, Block

if TYPE_CHECKING:
    from isohub.supervisor.worker import Worker

__all__ = ["LEAST_BYTES", "Sharing"]

# A load with less is left as it is: what is gained would be less than what the watcher takes.
LEAST_BYTES = 8 << 20
# A part is copied while those who write to it wait.
_MAX_PART_BYTES = 64 << 20
# Whoever has set a deadline that is nearer than this has no time for it.
_HURRIED_S = 5.0
_SAMPLES, _SAMPLE_BYTES = 4, 64

_logger = logging.getLogger("isohub.supervisor")


class Sharing:
    """Finds weights that are equal, among all workers of this process. Safe for threads."""

    def __init__(self) -> None:
        self._watcher: Watcher | None = None
        self.forget()

    def forget(self) -> None:
        """Know of nothing: at first, and in a fork of the process that has the workers."""
        if self._watcher is not None:
            self._watcher.forget()
        # Reentrant: a worker may be found dead while it is asked.
        self._lock = threading.RLock()
        self._watcher = None
        self._all: list[Shares] = []
        self._commons: dict[Key, list[tuple[weakref.ref[Common], int]]] = {}
        # Of the notes, the first is the watcher's own.
        self._free_pages = list(range(NOTES_BYTES - PAGE_BYTES, 0, -PAGE_BYTES))

    @property
    def watcher_pid(self) -> int | None:
        """Process id of the watcher; None while there is none."""
        return None if self._watcher is None else self._watcher.pid

    def note(self, worker: Worker, blocks: list[Block]) -> None:
        """Note where a load that has just been made put its weights."""
        isolation = worker.isolation
        # One that may follow a dead one needs the live pages; a limit of memory would count private ones.
        if not isolation.share_equal_weights or isolation.restart != "never" or isolation.memory_bytes is not None:
            return
        with self._lock:
            if worker.shares is None:
                worker.shares = Shares(worker)
                self._all.append(worker.shares)
            worker.shares.fresh += blocks

    def look(self, worker: Worker) -> None:
        """Share what a worker has loaded, if another one has the same. Workers that are busy are not waited for."""
        shares = worker.shares
        if shares is None or not shares.fresh:
            return
        with self._lock, _turn_of(shares) as free:
            due = nearest(SHARE_S)
            hurried = due is not None and due.left_s < _HURRIED_S
            places = list(_places(shares)) if free and not hurried else []
            shares.fresh.clear()
            try:
                self._share(shares, places)
            except (OSError, IsohubError) as error:
                _logger.debug("weights are not shared: %s", error)

    def left(self, worker: Worker) -> None:
        """Know that a worker is gone. The watcher ends with the last one that has anything in common."""
        shares, worker.shares = worker.shares, None
        if shares is None:
            return
        with self._lock:
            entered = shares.watcher is not None
            shares.close()
            if shares in self._all:
                self._all.remove(shares)
            if not entered:
                return
            self._free_pages += shares.pages
            if not any(one.watcher is not None for one in self._all):
                self.close()

    def close(self) -> None:
        """End the watcher. May be called again."""
        with self._lock:
            self._commons.clear()
            watcher, self._watcher = self._watcher, None
            if watcher is not None:
                watcher.close()

    def _share(self, shares: Shares, places: list[Place]) -> None:
        """Share the places of a worker, whose turn this thread has."""
        in_common: dict[int, tuple[Common, list[tuple[Place, int]]]] = {}
        alike: dict[int, list[tuple[Place, Place]]] = {}
        for place in places:
            found = self._common_of(place)
            if found is not None:
                in_common.setdefault(id(found[0]), (found[0], []))[1].append((place, found[1]))
                continue
            other = self._like(place)
            if other is not None:
                alike.setdefault(id(other.shares), []).append((place, other))
        try:
            for common, placed in in_common.values():
                shares.join(self._entered(shares), common, placed, guarded=False)
            for pairs in alike.values():
                # What only happens to be the same, a table of positions say, is not worth a process.
                if self._watcher is not None or sum(place.nbytes for place, _ in pairs) >= LEAST_BYTES:
                    self._pair(shares, pairs[0][1].shares, pairs)
        finally:
            for place in places:
                if place.there and not shares.has(place):
                    shares.live.setdefault(place.key, []).append(place)

    def _pair(self, shares: Shares, other: Shares, pairs: list[tuple[Place, Place]]) -> None:
        """Make a common copy of what two workers have that is equal."""
        with _turn_of(other) as free:
            if not free:
                return
            watcher = self._entered(other)
            self._entered(shares)
            pairs = pairs[: min(shares.room(), other.room())]
            # First they are guarded, and compared afterwards: whatever is written meanwhile is noted.
            other.guard(watcher, [theirs for _, theirs in pairs])
            equal: list[tuple[Place, Place, int]] = []
            at = 0
            for mine, theirs in pairs:
                if mine.there and theirs.there and is_equal(mine.address, theirs.address, mine.nbytes):
                    equal.append((mine, theirs, at))
                    at += mine.nbytes
                    other.live[theirs.key].remove(theirs)
                else:
                    other.unguard(watcher, theirs)
            if not equal:
                return
            common = Common.of([(theirs.address, theirs.nbytes) for _, theirs, _ in equal])
            other.join(watcher, common, [(theirs, at) for _, theirs, at in equal], guarded=True)
            # What did not join was written to meanwhile, so that the copy may be of two times.
            placed = [(mine, at) for mine, theirs, at in equal if other.has(theirs)]
            shares.join(watcher, common, placed, guarded=False)
            for place, at in placed:
                self._commons.setdefault(place.key, []).append((weakref.ref(common), at))

    def _common_of(self, place: Place) -> tuple[Common, int] | None:
        """Return a common copy that is equal to a place, and where in it."""
        for reference, at in list(self._commons.get(place.key, ())):
            common = reference()
            if common is None:
                self._commons[place.key].remove((reference, at))
            elif is_equal(place.address, common.base + at, place.nbytes):
                return common, at
        return None

    def _like(self, place: Place) -> Place | None:
        """Return a live place of a load before that looks like this one."""
        for shares in self._all:
            for other in list(shares.live.get(place.key, ())):
                if not other.there:
                    shares.live[place.key].remove(other)
                elif _key(other.address, other.nbytes) == place.key:
                    return other
        return None

    def _entered(self, shares: Shares) -> Watcher:
        """Return the watcher, which knows of this worker from now on.

        Raises:
            OSError: There can be none.
        """
        if self._watcher is None:
            self._watcher = Watcher()
        if not self._watcher.notes.alive:
            raise OSError("the process that watches over weights in common was killed")
        if shares.watcher is not None and shares.watcher is not self._watcher:
            raise OSError("the process that watches over weights in common has ended meanwhile")
        if shares.watcher is None:
            if len(self._free_pages) < 2:
                raise OSError("too many workers have weights in common")
            shares.enter(self._watcher, (self._free_pages.pop(), self._free_pages.pop()))
        return self._watcher


def _places(shares: Shares) -> Iterator[Place]:
    """Return the parts of fresh blocks that can be in common: whole pages, each once.

    The numbers are a worker's, so that nothing of them is taken for granted.
    """
    worker = shares.worker
    assert worker is not None, "this thread has its turn"
    blocks = sorted({(one.segment, one.offset, one.nbytes) for one in shares.fresh if one.nbytes >= PAGED_BYTES})
    if sum(nbytes for *_, nbytes in blocks) < LEAST_BYTES:
        return
    free = {number: 0 for number, *_ in blocks}
    found: list[Place] = []
    for number, offset, nbytes in blocks:
        segment = worker.border.residents.get(number)
        end = offset + padded_to_pages(nbytes)
        if segment is None or offset % PAGE_BYTES or offset < free[number] or end > padded_to_pages(segment.nbytes):
            continue
        free[number] = end
        for start in range(offset, end, _MAX_PART_BYTES):
            length = min(_MAX_PART_BYTES, end - start)
            address = segment.address + start
            found.append(Place(shares, number, start, length, address, _key(address, length)))
    yield from sorted(found, key=_nbytes, reverse=True)[: shares.room()]


def _nbytes(place: Place) -> int:
    return place.nbytes


def _key(address: int, nbytes: int) -> Key:
    steps: Iterable[int] = (nbytes // _SAMPLES * number for number in range(_SAMPLES))
    return nbytes, b"".join(ctypes.string_at(address + step, _SAMPLE_BYTES) for step in steps)


@contextmanager
def _turn_of(shares: Shares) -> Iterator[bool]:
    """Take the turn of a worker that has nothing to do; yield whether it was to be had."""
    worker = shares.worker
    if worker is None or not worker._turn.try_take():
        yield False
        return
    try:
        yield worker._state is State.IDLE and worker._end is None
    finally:
        worker._turn.give()
