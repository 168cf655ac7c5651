"""Weights that this worker has in common with others; see `isohub.shm.common_copy`."""

from __future__ import annotations

import os
import socket
import threading
import weakref

from isohub.shm.common_copy import Common, Piece, SharedSegment
from isohub.shm.residents import Residents
from isohub.shm.write_watch import Notes, WriteWatch
from isohub.wire.messages import Payload, Share, Unshare

__all__ = ["Sharing"]


class Sharing:
    """The segments of this worker of which parts are in common copies.

    Args:
        residents: Its segments of weights.
    """

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._watch: WriteWatch | None = None
        self._segments: dict[int, SharedSegment] = {}

    def do(self, message: Share | Unshare, descriptors: list[int]) -> Payload:
        """Do what the parent says, and return whether that was done."""
        if isinstance(message, Share):
            return Payload(self._shared(message, descriptors))
        self._unshare(message)
        return Payload(True)

    def _shared(self, share: Share, descriptors: list[int]) -> bool:
        """Replace parts of a segment by those of a common copy; return whether that was done.

        Args:
            share: Which.
            descriptors: That of the copy; then, the first time, the watcher's socket and its notes. Closed here.
        """
        try:
            return self._share(share, descriptors)
        except OSError:
            return False  # no userfaultfd, or no memory: everything is as it was
        finally:
            for fd in descriptors:
                os.close(fd)

    def _unshare(self, unshare: Unshare) -> None:
        """Have parts of segments go live again."""
        for number, offset, role in unshare.parts:
            segment, shared = self._residents.get(number), self._segments.get(number)
            if segment is not None and shared is not None and offset in shared.pieces and self._watch is not None:
                shared.go_live(offset, role, self._watch)

    def _share(self, share: Share, descriptors: list[int]) -> bool:
        segment = self._residents.get(share.segment)
        # Another thread might write before anybody watches.
        if segment is None or threading.active_count() > 1:
            return False
        if len(descriptors) > 1:
            notes = Notes(descriptors[2])
            self._watch = WriteWatch(socket.socket(fileno=os.dup(descriptors[1])), notes)
        if self._watch is None:
            return False
        shared = self._segments.get(share.segment)
        if shared is None:
            shared = SharedSegment(segment)
        common = Common(descriptors[0], share.nbytes, keep=False)
        pieces = [Piece(*part) for part in share.parts]
        shared.share(common, descriptors[0], pieces, self._watch, guarded=False)
        if share.segment not in self._segments:
            self._segments[share.segment] = shared
            weakref.finalize(segment.memory, self._segments.pop, share.segment, None).atexit = False
        return True
