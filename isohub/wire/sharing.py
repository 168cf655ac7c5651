"""What a parent says of weights that several workers have in common; see `isohub.shm.common_copy`."""

from __future__ import annotations

from typing import Literal

from isohub.wire.structs import Struct

__all__ = ["Share", "Unshare"]


class Share(Struct, tag=True, frozen=True):
    """Parts of a segment of weights are equal to those of another worker: both are to use one copy of them.

    The first descriptor is that of the copy. The first time the watcher's socket and its notes follow. The answer
    returns whether it was done.

    Attributes:
        segment: Number of the segment.
        nbytes: Size of the copy in bytes.
        parts: (offset in the segment, length, offset in the copy, place of the note, place of the count), in bytes.
    """

    segment: int
    nbytes: int
    parts: list[tuple[int, int, int, int, int]]


class Unshare(Struct, tag=True, frozen=True):
    """Somebody wrote to weights that are in a common copy: they are to be this worker's own again.

    Attributes:
        parts: (segment, offset in it, what becomes of what was written here: all that is here is to `fill` the
            segment, what is changed here is to `merge` into it, or there is nothing, and the memory is to `swap`).
    """

    parts: list[tuple[int, int, Literal["fill", "merge", "swap"]]]
