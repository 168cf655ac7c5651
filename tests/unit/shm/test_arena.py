from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from isohub.shm.arena import MIN_SEGMENT_BYTES, Arena
from isohub.shm.segment import Segment, create_memfd
from isohub.wire.specs import ALIGNMENT_BYTES, Block


class Grown:
    """Gives an arena real segments, and remembers them."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def __call__(self, nbytes: int) -> Segment:
        fd = create_memfd(nbytes)
        try:
            segment = Segment(len(self.segments) + 1, fd, nbytes)
        finally:
            os.close(fd)
        self.segments.append(segment)
        return segment


class ArenaMachine(RuleBasedStateMachine):
    """Blocks are handed out and taken back in any order."""

    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.grown = Grown()
        self.arena = Arena(self.grown)
        self.out: set[Block] = set()

    @rule(target=blocks, nbytes=st.integers(0, 300) | st.integers(0, MIN_SEGMENT_BYTES + 100))
    def allocate(self, nbytes: int) -> Block:
        block = self.arena.allocate(nbytes)
        assert block.nbytes == nbytes
        assert block.offset % ALIGNMENT_BYTES == 0
        assert block.offset + nbytes <= self.arena.segment(block.segment).nbytes
        self.out.add(block)
        return block

    @rule(block=consumes(blocks))
    def release(self, block: Block) -> None:
        self.arena.release(block.segment, block.offset)
        self.out.remove(block)
        with pytest.raises(KeyError):
            self.arena.release(block.segment, block.offset)

    @rule(offset=st.integers(-1, 1000))
    def release_what_is_not_out(self, offset: int) -> None:
        if (1, offset) not in {(block.segment, block.offset) for block in self.out}:
            with pytest.raises(KeyError):
                self.arena.release(1, offset)

    @invariant()
    def no_two_blocks_overlap(self) -> None:
        places = sorted((block.segment, block.offset, block.nbytes) for block in self.out)
        for (segment, offset, nbytes), (later, start, _) in itertools.pairwise(places):
            # Blocks without bytes have places of their own as well, since their offset names them.
            assert segment != later or offset + max(nbytes, 1) <= start

    def teardown(self) -> None:
        """Check that everything is free again, in one piece a segment, once everything was released."""
        for block in self.out:
            self.arena.release(block.segment, block.offset)
        before = len(self.grown.segments)
        for segment in sorted(self.grown.segments, key=lambda segment: -segment.nbytes):
            whole = self.arena.allocate(segment.nbytes)
            assert (whole.offset, self.arena.segment(whole.segment).nbytes) == (0, segment.nbytes)
        assert before == len(self.grown.segments)


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestArena = ArenaMachine.TestCase


def test_lowest_free_place_is_taken_first():
    """In steady state a call finds its block where the call before left it, in pages that are warm."""
    arena = Arena(Grown())
    first, second, third = (arena.allocate(100) for _ in range(3))

    arena.release(second.segment, second.offset)
    arena.release(first.segment, first.offset)

    assert [first.offset, second.offset, third.offset] == [0, 128, 256]
    assert arena.allocate(256) == Block(1, 0, 256)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)], ids=str)
def test_neighbours_coalesce(order: tuple[int, ...]):
    """Three blocks given back in any order are one free place."""
    grown = Grown()
    arena = Arena(grown)
    third = MIN_SEGMENT_BYTES // 3 // 64 * 64
    blocks = [arena.allocate(third), arena.allocate(third), arena.allocate(MIN_SEGMENT_BYTES - 2 * third)]

    for place in order:
        arena.release(blocks[place].segment, blocks[place].offset)

    assert arena.allocate(MIN_SEGMENT_BYTES) == Block(1, 0, MIN_SEGMENT_BYTES)
    assert len(grown.segments) == 1


def test_it_grows_by_what_is_needed():
    """A small block gets a segment with room for more, a large one a segment that fits."""
    grown = Grown()
    arena = Arena(grown)

    arena.allocate(1)
    arena.allocate(MIN_SEGMENT_BYTES + 1)
    arena.allocate(1)

    assert [segment.nbytes for segment in grown.segments] == [MIN_SEGMENT_BYTES, MIN_SEGMENT_BYTES + 64]


def test_what_cannot_grow_stays_whole():
    """When no segment is to be had, the arena is as it was before."""
    grown = Grown()
    arena = Arena(lambda nbytes: grown(nbytes) if nbytes < 1 << 40 else (_ for _ in ()).throw(MemoryError()))
    arena.allocate(64)

    with pytest.raises(MemoryError):
        arena.allocate(1 << 41)

    assert repr(arena) == f"<Arena 1 blocks, 64 of {MIN_SEGMENT_BYTES} bytes>"
    assert arena.allocate(64) == Block(1, 64, 64)
