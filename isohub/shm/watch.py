"""Blocks of which the last tensor has died."""

from __future__ import annotations

import itertools
import weakref

from isohub.wire.specs import Block

__all__ = ["Watch"]


class Watch:
    """Notes the blocks of which the last tensor has died; they ride along with the next message."""

    def __init__(self) -> None:
        self._alive: dict[int, weakref.ref[memoryview]] = {}
        self._dead: list[tuple[int, int]] = []
        self._tokens = itertools.count()

    def __call__(self, block: Block, view: memoryview) -> None:
        """Watch `view`, which keeps `block` in use on this side."""
        token = next(self._tokens)
        key = (block.segment, block.offset)

        def died(_: object) -> None:
            # May run inside the garbage collector, in any thread: no lock, no I/O.
            self._alive.pop(token, None)
            self._dead.append(key)

        self._alive[token] = weakref.ref(view, died)

    def take(self) -> list[tuple[int, int]]:
        """Return what has died since the last call."""
        count = len(self._dead)
        if not count:
            return []
        dead = self._dead[:count]
        del self._dead[:count]
        return dead

    def put_back(self, dead: list[tuple[int, int]]) -> None:
        """Return these by the next `take` again: they could not be told."""
        self._dead.extend(dead)
