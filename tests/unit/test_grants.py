"""How much shared memory a worker may ask its parent for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from isohub.errors import RemoteProtocolError
from isohub.supervisor.border import MAX_SEGMENTS, Border
from isohub.wire.messages import Granted, NeedSegment


@pytest.fixture
def border() -> Iterator[Border]:
    border = Border()
    yield border
    border.close()


def ask(border: Border, nbytes: int, use: str = "arena") -> Granted:
    granted, fd = border.grant(NeedSegment(nbytes, use))  # type: ignore[arg-type]
    assert (fd >= 0) == (granted.nbytes > 0)
    if fd >= 0:
        os.close(fd)
    return granted


def test_number_of_segments(border: Border):
    """A worker gets so many segments, and is refused the next one with the reason."""
    granted = [ask(border, 1).nbytes for _ in range(MAX_SEGMENTS)]

    assert granted == [1] * MAX_SEGMENTS
    assert Granted(0, 0, "there are 4096 segments already") == ask(border, 1)


def test_memory_of_the_machine(border: Border):
    """A worker gets no more than the machine has in all, in however many pieces."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = ask(border, memory_bytes // 2 + 1)

    assert half.nbytes == memory_bytes // 2 + 1
    assert "over this machine's memory" in ask(border, memory_bytes // 2 + 1).reason


def test_memory_of_its_own_limit():
    """A worker with a limit gets no more than that; what it gives back it may have again."""
    border = Border(memory_bytes=1000)
    first = ask(border, 600, "weights")

    assert "600 are in use, and 600 more would be over Isolation(memory_bytes=1000)" in ask(border, 600).reason
    border.settle([], [first.segment])
    assert ask(border, 600).nbytes == 600
    border.close()


@pytest.mark.parametrize("nbytes", [0, -1, 1 << 62])
def test_impossible_size(border: Border, nbytes: int):
    """A size that no honest worker asks for is nonsense."""
    with pytest.raises(RemoteProtocolError, match=f"a segment of {nbytes} bytes"):
        ask(border, nbytes)
