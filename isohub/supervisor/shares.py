"""What one worker has in common with others, seen from the parent; see `isohub.supervisor.sharing`."""

from __future__ import annotations

import contextlib
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from isohub.errors import RemoteProtocolError
from isohub.shm.common_copy import Common, Piece, Role, SharedSegment
from isohub.shm.pages import PAGE_BYTES
from isohub.shm.watcher import ALIVE_AT
from isohub.supervisor.deadlines import Deadline
from isohub.supervisor.exchange import Guard
from isohub.supervisor.watching import Watcher
from isohub.wire.messages import Returned, Share, Unshare
from isohub.wire.specs import Block

if TYPE_CHECKING:
    from isohub.supervisor.connection import Connection
    from isohub.supervisor.worker import Worker

__all__ = ["SHARE_S", "Key", "Place", "Shares"]

# Each end of a worker has a page of the notes: a count, and then a byte for each part.
_FIRST_NOTE = 64
# A part that has gone live between two others is a mapping of its own, and a process has some 65,000.
MAX_PARTS = 2000
# How long a worker may take to replace its pages.
SHARE_S = 60.0

Key = tuple[int, bytes]


class Place(NamedTuple):
    """A part of a worker's weights that is live.

    Attributes:
        shares: What that worker has in common.
        segment: The number of the segment.
        offset: Where it begins there.
        nbytes: Its length.
        address: Where it is mapped here.
        key: Its length and some of its bytes: what is equal has the same.
    """

    shares: Shares
    segment: int
    offset: int
    nbytes: int
    address: int
    key: Key

    @property
    def there(self) -> bool:
        """Whether the worker still has it, and this process sees it."""
        worker = self.shares.worker
        found = None if worker is None else worker.border.residents.get(self.segment)
        return found is not None and found.address + self.offset == self.address


class Shares:
    """What one worker has in common with others.

    Args:
        worker: The worker.

    Attributes:
        fresh: The blocks of a load that has just been made.
        live: Parts that another worker's may be equal to.
        segments: Those of which parts are in common copies.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = weakref.ref(worker)
        self.fresh: list[Block] = []
        self.live: dict[Key, list[Place]] = {}
        self.segments: dict[int, SharedSegment] = {}
        self.watcher: Watcher | None = None
        self.pages = (0, 0)  # in the notes: of what happens here, and in the worker
        self._notes: dict[tuple[int, int], int] = {}
        self._free_notes = list(range(_FIRST_NOTE + MAX_PARTS, _FIRST_NOTE, -1))
        self._seen = (0, 0, 0)
        self._touched: set[tuple[int, int]] = set()
        self._introduced = self._busy = False

    @property
    def worker(self) -> Worker | None:
        """The worker; None when nobody has it any more."""
        return self._worker()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are in common copies."""
        return sum(segment.nbytes for segment in list(self.segments.values()))

    def enter(self, watcher: Watcher, pages: tuple[int, int]) -> None:
        """Know the watcher, and which two pages of the notes are this worker's."""
        self.watcher, self.pages = watcher, pages
        self._seen = self._counts(watcher)

    def moved(self) -> bool:
        """Return whether anybody may have written to what is in common. Looks at three numbers."""
        watcher = self.watcher
        return watcher is not None and not self._busy and self._counts(watcher) != self._seen

    def settle(self, connection: Connection, deadline: float | None) -> None:
        """Put what was written to back on pages of this worker's own, here and there.

        Raises:
            RemoteProtocolError, PeerGoneError, DeadlineError: As `Connection.answer`.
        """
        watcher = self.watcher
        assert watcher is not None, "`moved` has said so"
        self._seen = self._counts(watcher)  # before the notes: what is written from now on counts again
        roles: list[tuple[int, int, Role]] = []
        for number, offset, role in self._written(watcher):
            shared = self._shared(number, offset)
            if shared is not None:
                roles.append((number, offset, role))
                if role != "fill":
                    shared.go_live(offset, "fill", watcher.watch)
        if not roles:
            return
        self._ask(connection, Unshare(roles), (), deadline)
        for number, offset, role in roles:
            shared = self._shared(number, offset)
            if role == "fill" and shared is not None:
                shared.go_live(offset, "swap", watcher.watch)

    def part(self) -> None:
        """Have all that was loaded until now be live from the next crossing on, and stay so."""
        self.fresh.clear()
        self.live.clear()
        self._touched |= {(number, offset) for number, one in self.segments.items() for offset in one.pieces}
        self._seen = (-1, -1, -1)  # looks as if it had moved

    def guard(self, watcher: Watcher, places: list[Place]) -> None:
        """Have it noted if somebody writes to live places.

        Raises:
            OSError: The watcher is gone, or there is no memory left.
        """
        for number, pieces in self._pieces([(place, 0) for place in places]).items():
            self._segment(number).guard(pieces, watcher.watch)

    def unguard(self, watcher: Watcher, place: Place) -> None:
        """Let a live place be unwatched again."""
        watcher.watch.leave(place.address, place.nbytes)

    def join(self, watcher: Watcher, common: Common, placed: list[tuple[Place, int]], *, guarded: bool) -> None:
        """Put live places on a common copy that is equal to them, here and in the worker, whose turn this thread has.

        Args:
            watcher: The watcher.
            common: The copy.
            placed: Places, each with where it is in the copy.
            guarded: Whether they are guarded, since other threads may write to them.

        Raises:
            IsohubError: The worker is gone.
            OSError: It cannot be done here.
        """
        worker = self.worker
        assert worker is not None, "it has places"
        connection = worker._connected()
        for number, pieces in self._pieces(placed).items():
            shared = self._segment(number)
            try:
                if self._ask_to_share(connection, watcher, common, number, pieces):
                    connection.shares = self  # from now on it looks whether somebody wrote
                    self._share_here(connection, watcher, common, number, pieces, guarded=guarded)
                elif guarded:
                    shared.unguard(pieces, watcher.watch)
            except BaseException:
                # Ctrl-C, say: nobody knows whether both see the same memory.
                worker.kill()
                raise

    def has(self, place: Place) -> bool:
        """Return whether a place is in a common copy."""
        shared = self.segments.get(place.segment)
        return shared is not None and place.offset in shared.pieces

    def room(self) -> int:
        """Return how many more parts can be watched; what the worker has let go of counts no more."""
        worker = self.worker
        for key in [key for key in self._notes if worker is None or worker.border.residents.get(key[0]) is None]:
            self._free_notes.append(self._notes.pop(key))
        for like, places in list(self.live.items()):
            self.live[like] = [place for place in places if place.there]
            if not self.live[like]:
                del self.live[like]
        return len(self._free_notes)

    def close(self) -> None:
        """Know that the worker is gone: what is seen here stays as it is. May be called again."""
        self.live.clear()
        self.fresh.clear()
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            for shared in list(self.segments.values()):
                shared.unguard([piece for piece, _ in shared.pieces.values()], watcher.watch)
        self.segments.clear()

    def _share_here(
        self,
        connection: Connection,
        watcher: Watcher,
        common: Common,
        number: int,
        pieces: list[Piece],
        *,
        guarded: bool,
    ) -> None:
        """Put pieces on a common copy here, where the worker has done so."""
        shared = self._segment(number)
        try:
            stayed = shared.share(common, common.fd, pieces, watcher.watch, guarded=guarded)
        except OSError:
            stayed = pieces
        if stayed:
            self._guarded_ask(connection, Unshare([(number, piece.offset, "swap") for piece in stayed]), ())
        here = [piece for piece in pieces if piece not in stayed]
        touched = shared.touched(here)
        if touched:
            self._touched |= {(number, piece.offset) for piece in touched}
            self._seen = (-1, -1, -1)  # looks as if it had moved
        with contextlib.suppress(OSError):  # then they are kept
            shared.punch([piece for piece in here if piece not in touched])

    def _counts(self, watcher: Watcher) -> tuple[int, int, int]:
        counts, (ours, theirs) = watcher.notes.counts, self.pages
        return counts[ours >> 2], counts[theirs >> 2], counts[ALIVE_AT >> 2]

    def _written(self, watcher: Watcher) -> list[tuple[int, int, Role]]:
        """Return the parts that were written to, by segment and offset, and what the worker is to do with each."""
        written, between = watcher.notes.written, self.pages[1] - self.pages[0]
        everything = not watcher.notes.alive
        touched, self._touched = self._touched, set()
        found: list[tuple[int, int, Role]] = []
        for number, shared in list(self.segments.items()):
            for offset, (piece, _) in shared.pieces.items():
                ours = everything or bool(written[piece.note]) or (number, offset) in touched
                theirs = everything or bool(written[piece.note + between])
                if ours or theirs:
                    found.append((number, offset, "fill" if not ours else "merge" if theirs else "swap"))
        return found

    def _shared(self, number: int, offset: int) -> SharedSegment | None:
        """Return a segment if the worker still has it, and a common part at `offset`."""
        shared, worker = self.segments.get(number), self.worker
        if shared is None or worker is None or worker.border.residents.get(number) is None:
            return None
        return shared if offset in shared.pieces else None

    def _ask_to_share(
        self, connection: Connection, watcher: Watcher, common: Common, number: int, pieces: list[Piece]
    ) -> bool:
        ours, theirs = self.pages
        parts = [(one.offset, one.nbytes, one.at, one.note - ours + theirs, theirs) for one in pieces]
        share = Share(number, common.nbytes, parts)
        if self._introduced:
            return self._guarded_ask(connection, share, (common.fd,))
        try:
            sock = watcher.introduce(theirs, theirs + PAGE_BYTES)
        except OSError:  # it was killed just now, or there are no descriptors left
            return False
        with sock:
            descriptors = (common.fd, sock.fileno(), watcher.notes_fd)
            self._introduced = self._guarded_ask(connection, share, descriptors)
        return self._introduced

    def _guarded_ask(self, connection: Connection, message: Share | Unshare, descriptors: tuple[int, ...]) -> bool:
        # Not the caller's deadline: it would end a worker that has nothing to do with it.
        worker, due = self.worker, Deadline(time.monotonic() + SHARE_S, SHARE_S)
        assert worker is not None, "it is being asked"
        with Guard(worker, due):
            return self._ask(connection, message, descriptors, due.at)

    def _ask(
        self, connection: Connection, message: Share | Unshare, descriptors: tuple[int, ...], deadline: float | None
    ) -> bool:
        """Ask the worker, whose turn this thread has; return whether it says that it was done."""
        worker = self.worker
        assert worker is not None, "it is being asked"
        self._busy = True
        try:
            connection.tell(message, deadline, descriptors)
            answer = connection.answer(worker.border, deadline)
        finally:
            self._busy = False
        worker.border.settle(answer.freed, answer.dropped)
        if not isinstance(answer, Returned) or not isinstance(answer.payload.value, bool):
            raise RemoteProtocolError("an answer to a change of its memory that is none")
        return answer.payload.value

    def _pieces(self, placed: list[tuple[Place, int]]) -> dict[int, list[Piece]]:
        """Return places as pieces, by segment."""
        found: dict[int, list[Piece]] = {}
        for place, at in placed:
            if place.there:
                key = place.segment, place.offset
                if key not in self._notes:
                    self._notes[key] = self._free_notes.pop()
                note = self.pages[0] + self._notes[key]
                found.setdefault(place.segment, []).append(Piece(place.offset, place.nbytes, at, note, self.pages[0]))
        return found

    def _segment(self, number: int) -> SharedSegment:
        shared, worker = self.segments.get(number), self.worker
        if shared is None:
            segment = None if worker is None else worker.border.residents.get(number)
            assert segment is not None, "a place that is there"
            shared = self.segments[number] = SharedSegment(segment)
            weakref.finalize(segment.memory, self.segments.pop, number, None).atexit = False
        return shared
