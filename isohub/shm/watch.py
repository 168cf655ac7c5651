"""Blocks of which the last tensor has died."""

from __future__ import annotations

import weakref

from isohub.wire.specs import Block

__all__ = ["Watch"]


class _View(weakref.ref[memoryview]):
    """A view that is watched; one callback serves all of them.

    Attributes:
        block: (segment, offset) of what it looks at.
    """

    __slots__ = ("block",)

    block: tuple[int, int]


class Watch:
    """Notes the blocks of which the last tensor has died; they ride along with the next message."""

    def __init__(self) -> None:
        self._alive: dict[int, _View] = {}  # by its own id
        self._dead: list[tuple[int, int]] = []
        alive, dead = self._alive, self._dead

        def died(view: _View) -> None:
            # May run inside the garbage collector, in any thread: no lock, no I/O.
            del alive[id(view)]
            dead.append(view.block)

        self._died = died

    def __call__(self, block: Block, memory: memoryview) -> None:
        """Watch `memory`, which keeps `block` in use on this side."""
        view = _View(memory, self._died)
        view.block = block.segment, block.offset
        self._alive[id(view)] = view

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
