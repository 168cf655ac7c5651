"""Weights that several workers have in common, as one process sees them.

::

                 a live segment                             shared
    parent  ──┐                                parent 1 ──private──┐
              ├──shared──> segment                                 ├──> common copy, sealed
    worker  ──┘                                worker 1 ──private──┤
                                               parent 2 ──private──┤   (the parent sees each worker's weights
                                               worker 2 ──private──┘    at addresses of their own)

The pages of a segment are replaced, at the same address, by private ones of the common copy: nothing that looks
there notices, and a write goes into a page of the writer's own. The watcher notes it. At the next crossing of the
border the part that was written to goes live again, on the pages that it had before, and stays so.

A part is never replaced without its writers held: see `WriteWatch.hold`. Parts are whole pages.
"""

from __future__ import annotations

import os
import weakref
from typing import Literal, NamedTuple

from isohub.shm import pages
from isohub.shm.segment import Segment, seal, write_at
from isohub.shm.write_watch import Part, WriteWatch

__all__ = ["COMMON_NAME", "Common", "Piece", "Role", "SharedSegment"]

# What the system shows of a mapping of a common copy.
COMMON_NAME = "isohub-equal"
# "fill": write all that is here to the live pages. "merge": write what is changed here. "swap": take what is there.
Role = Literal["fill", "merge", "swap"]
# Who cannot wait until a part is replaced makes it be tried again.
_TRIES = 10


class Piece(NamedTuple):
    """A part of a segment that is in a common copy.

    Attributes:
        offset: Where it begins in its segment.
        nbytes: How long it is.
        at: Where it begins in the copy.
        note: The place of its note, among those of this process.
        counter: Where its notes are counted.
    """

    offset: int
    nbytes: int
    at: int
    note: int
    counter: int


class Common:
    """A common copy. It is unmapped, and its descriptor closed, when nobody here has it any more.

    Args:
        fd: Its descriptor.
        nbytes: Its size.
        keep: Whether to keep a descriptor, for further workers.

    Attributes:
        base: Where it is mapped, to be read.
        fd: The descriptor; -1 if none is kept.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, fd: int, nbytes: int, *, keep: bool) -> None:
        self.nbytes = nbytes
        self.base = pages.map_base(fd, nbytes)
        weakref.finalize(self, pages.unmap, self.base, nbytes).atexit = False
        self.fd = os.dup(fd) if keep else -1
        if keep:
            weakref.finalize(self, os.close, self.fd).atexit = False

    @classmethod
    def of(cls, memory: list[tuple[int, int]]) -> Common:
        """Return a copy of memory, given by address and length, one after the other.

        Raises:
            OSError: There is no memory left.
        """
        total = sum(nbytes for _, nbytes in memory)
        fd = os.memfd_create(COMMON_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, total)
            at = 0
            for address, nbytes in memory:
                write_at(fd, at, address, nbytes)
                at += nbytes
            seal(fd)
            return cls(fd, total, keep=True)
        finally:
            os.close(fd)


class SharedSegment:
    """A segment of which parts are in common copies.

    It does not keep the segment mapped.

    Args:
        segment: A live one.

    Attributes:
        pieces: The parts, by offset, each with its copy.

    Raises:
        OSError: It cannot be mapped a second time.
    """

    def __init__(self, segment: Segment) -> None:
        self.address = segment.address
        self.pieces: dict[int, tuple[Piece, Common]] = {}
        nbytes = pages.padded_to_pages(segment.nbytes)
        # The pages that it had before, which it needs when it goes live again.
        self._live = pages.duplicate(segment.address, nbytes)
        weakref.finalize(self, pages.unmap, self._live, nbytes).atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes that are in common copies."""
        return sum(piece.nbytes for piece, _ in self.pieces.values())

    def part(self, piece: Piece) -> Part:
        """Return the range of this process's memory that a piece is."""
        return Part(self.address + piece.offset, piece.nbytes, piece.note, piece.counter)

    def guard(self, pieces: list[Piece], watch: WriteWatch) -> None:
        """Have it noted if somebody writes to pieces that are still live.

        Raises:
            OSError: The watcher is gone, or refuses.
        """
        for run in _runs(pieces):
            watch.protect([self.part(piece) for piece in run])

    def unguard(self, pieces: list[Piece], watch: WriteWatch) -> None:
        """Let these pieces be live, and unwatched."""
        for piece in pieces:
            watch.leave(self.address + piece.offset, piece.nbytes)

    def share(self, common: Common, fd: int, pieces: list[Piece], watch: WriteWatch, *, guarded: bool) -> list[Piece]:
        """Replace pieces by those of a common copy, which is equal.

        Args:
            common: The copy.
            fd: Its descriptor.
            pieces: Which.
            watch: The watcher.
            guarded: Whether somebody may write meanwhile, and `guard` was called.

        Returns:
            The pieces that stayed live, since somebody wrote to them after `guard`.

        Raises:
            OSError: It cannot be done; all of these pieces are live.
        """
        stayed = []
        try:
            for piece in pieces:
                new = pages.as_private(self.address + piece.offset, piece.nbytes, fd, piece.at)
                if not guarded:
                    pages.replace(new)
                elif watch.hold(self.part(piece)) != "untouched" or not watch.replace(self.part(piece), new):
                    stayed.append(piece)
                    continue
                self.pieces[piece.offset] = piece, common
            here = [piece for piece in pieces if piece.offset in self.pieces]
            # With it, those who wait go on.
            self.guard(here, watch)
        except BaseException:
            for piece in pieces:
                self._back(piece)
            self.unguard(pieces, watch)
            raise
        self.unguard(stayed, watch)
        return stayed

    def touched(self, pieces: list[Piece]) -> list[Piece]:
        """Return those pieces that were written to, maybe before they were watched."""
        return [one for one in pieces if pages.has_own_pages(self.address + one.offset, one.nbytes)]

    def punch(self, pieces: list[Piece]) -> None:
        """Give back the pages that pieces had before, once neither process looks at them any more.

        Raises:
            OSError: The system refuses.
        """
        for piece in pieces:
            pages.punch(self._live + piece.offset, piece.nbytes)

    def go_live(self, offset: int, role: Role, watch: WriteWatch) -> None:
        """Put a piece back on the pages that it had before; nothing that anybody wrote is lost.

        Raises:
            OSError: It cannot be mapped.
        """
        piece, common = self.pieces.pop(offset)
        part, live, nbytes = self.part(piece), self._live + offset, piece.nbytes
        new = pages.as_shared(part.address, nbytes, live)
        if role == "fill":
            pages.copy(live, part.address, nbytes)  # brings the pages, which takes longest, while nobody waits
        for tried in range(_TRIES):
            before = watch.hold(part)
            if role == "fill":
                pages.copy_held(live, part.address, nbytes)
            elif role == "merge" or before != "untouched" or tried:
                pages.merge(live, part.address, common.base + piece.at, nbytes)
            if before == "gone" or watch.replace(part, new):
                break
        else:
            before = "gone"  # nobody can be made to wait; a write between this line and the next would be lost
        if before == "gone":
            pages.replace(new)
        watch.done(part)

    def _back(self, piece: Piece) -> None:
        found = self.pieces.pop(piece.offset, None)
        if found is not None:
            address, live = self.address + piece.offset, self._live + piece.offset
            pages.merge(live, address, found[1].base + piece.at, piece.nbytes)
            pages.replace(pages.as_shared(address, piece.nbytes, live))


def _runs(pieces: list[Piece]) -> list[list[Piece]]:
    """Return groups of pieces that lie next to each other."""
    runs: list[list[Piece]] = []
    for piece in sorted(pieces):
        if runs and runs[-1][-1].offset + runs[-1][-1].nbytes == piece.offset and len(runs[-1]) < 1024:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs
