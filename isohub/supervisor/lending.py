"""Inputs that several workers get at once: one copy for all of them.

::

    parent: writes ──> common segment <── reads: worker 1, privately: what it writes there stays its own
                                      <── reads: worker 2, privately

A worker gets the segment by a descriptor that cannot be written to, and maps it privately. A block is free again once
every worker that was told of it has given it back or died.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isohub.shm.arena import Arena
from isohub.shm.copying import copy_all
from isohub.shm.pages import padded_to_pages
from isohub.shm.segment import Segment, create_memfd
from isohub.shm.tensors import span_of, why_not
from isohub.wire.specs import Block

if TYPE_CHECKING:
    import torch

__all__ = ["CommonInputs", "Lent"]

# Below this a copy for each worker is as quick as to look, when it is given back, whether it was written to.
LEAST_BYTES = 64 << 10


class CommonInputs:
    """The common segments of this process, and what lies there at the moment.

    A block takes whole pages, since a worker throws away what it wrote to a block by whole pages.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may close a worker anywhere
        self._arena = Arena(self._grow)
        self._descriptors: dict[int, int] = {}  # by segment
        self._holders: Counter[tuple[int, int]] = Counter()  # by (segment, offset): workers, and whoever offers it
        self._readers = 0  # workers that have a segment
        self._offered: dict[int, Block] = {}  # by the address of a storage that is to go to several workers

    def __bool__(self) -> bool:
        """Return whether anything is offered."""
        return bool(self._offered)

    @contextmanager
    def offering(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """Have one copy of each of these tensors for all workers that are sent it meanwhile.

        Those that are small, or cannot lie in shared memory, are copied for each worker, as ever.
        """
        mine: list[int] = []
        try:
            with self._lock:
                for tensor in tensors:
                    self._offer(tensor, mine)
            yield
        finally:
            with self._lock:
                for address in mine:
                    block = self._offered.pop(address)
                    self._let_go(block.segment, block.offset)

    def offered(self) -> dict[int, Block]:
        """Return the storages that are offered, by their addresses, with their blocks; each is to be given back."""
        with self._lock:
            for block in self._offered.values():
                self._holders[block.segment, block.offset] += 1
            return dict(self._offered)

    def let_go(self, segment: int, offset: int) -> None:
        """Know that a worker has given a block back, or is dead."""
        with self._lock:
            self._let_go(segment, offset)

    def join(self) -> None:
        """Know that one worker more is going to have segments."""
        with self._lock:
            self._readers += 1

    def leave(self) -> None:
        """Know that a worker which had segments is dead; without any, the memory is given back."""
        with self._lock:
            self._readers -= 1
            if not (self._readers or self._holders):
                self.forget()
                self._arena = Arena(self._grow)

    def open(self, segment: int) -> tuple[int, int]:
        """Return the size of a segment, and a descriptor to read it by, which is the caller's."""
        with self._lock:
            fd = os.open(f"/proc/self/fd/{self._descriptors[segment]}", os.O_RDONLY | os.O_CLOEXEC)
            return self._arena.segment(segment).nbytes, fd

    def forget(self) -> None:
        """Close the descriptors: in a fork, where the lock may be held for ever by a thread that did not come along."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _offer(self, tensor: torch.Tensor, mine: list[int]) -> None:
        if why_not(tensor) is not None or not tensor.is_cpu:
            return
        storage = tensor.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        begin, end = span_of(tensor) if tensor.numel() else (0, 0)
        # A view of a part would have all of its storage copied.
        if address in self._offered or nbytes < LEAST_BYTES or end - begin < nbytes:
            return
        try:
            block = self._arena.allocate(padded_to_pages(nbytes))
        except OSError:  # no descriptor or no memory for one more: it is copied for each worker
            return
        copy_all([(self._arena.segment(block.segment).address + block.offset, address, nbytes)])
        self._holders[block.segment, block.offset] = 1
        self._offered[address] = Block(block.segment, block.offset, nbytes)
        mine.append(address)

    def _let_go(self, segment: int, offset: int) -> None:
        self._holders[segment, offset] -= 1
        if not self._holders[segment, offset]:
            del self._holders[segment, offset]
            self._arena.release(segment, offset)

    def _grow(self, nbytes: int) -> Segment:
        fd = create_memfd(nbytes)
        try:
            segment = Segment(len(self._descriptors) + 1, fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._descriptors[segment.number] = fd
        return segment


class Lent:
    """What one worker was told of common segments.

    Args:
        common: The process's.
        new_segment: Has the next request bring a segment, of that many bytes, by that descriptor, which is its own from
            then on; returns its number.
    """

    def __init__(self, common: CommonInputs, new_segment: Callable[[int, int], int]) -> None:
        self._common = common
        self._new_segment = new_segment
        self._numbers: dict[int, int] = {}  # of the worker's, by common segment
        self._lent: dict[tuple[int, int], tuple[int, int]] = {}  # what it has: its (segment, offset) -> the common one

    @contextmanager
    def placed(self, placed: dict[int, Block]) -> Iterator[None]:
        """Have what is offered found by whoever packs a request in the body, and know afterwards what was.

        Args:
            placed: Blocks by address, as `Arena.placed`.
        """
        offered = self._common.offered()
        taken: set[int] = set()
        try:
            for address, block in offered.items():
                if block.segment not in self._numbers:
                    number = self._new_segment(*self._common.open(block.segment))
                    if not self._numbers:
                        self._common.join()
                    self._numbers[block.segment] = number
                placed[address] = Block(self._numbers[block.segment], block.offset, block.nbytes)
            yield
            taken = offered.keys() - placed.keys()
        finally:
            for address, block in offered.items():
                if address in taken:
                    self._lent[self._numbers[block.segment], block.offset] = block.segment, block.offset
                else:
                    placed.pop(address, None)
                    self._common.let_go(block.segment, block.offset)

    def has(self, segment: int) -> bool:
        """Return whether the worker knows a common segment by that number."""
        return segment in self._numbers.values()

    def give_back(self, segment: int, offset: int) -> None:
        """Take a block back.

        Raises:
            KeyError: The worker does not have it.
        """
        self._common.let_go(*self._lent.pop((segment, offset)))

    def close(self) -> None:
        """Take all of them back: the worker is dead."""
        while self._lent:
            self._common.let_go(*self._lent.popitem()[1])
        if self._numbers:
            self._numbers.clear()
            self._common.leave()
