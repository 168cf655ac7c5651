"""The process that watches over memory, and the memory that it watches: real pages, real writes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isohub.shm import pages, watcher
from isohub.shm.common_copy import Common, Piece, SharedSegment
from isohub.shm.segment import Segment, create_memfd
from isohub.shm.write_watch import Part, WriteWatch
from isohub.supervisor.watching import Watcher
from tests.helpers.waiting import until

NBYTES = 64 * pages.PAGE_BYTES
NOTE, COUNTER = 8192 + 64, 8192
PIECE = Piece(0, NBYTES, 0, NOTE, COUNTER)


class Scene:
    """A watcher process, and a live segment in which each page has bytes of its own."""

    def __init__(self) -> None:
        self.watching = Watcher()
        fd = create_memfd(NBYTES)
        self.segment = Segment(1, fd, NBYTES)
        os.close(fd)
        self.segment.view(0, NBYTES)[:] = contents()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.watching.close()
    vars(scene).clear()  # pytest keeps the object itself


def contents() -> bytes:
    return b"".join(bytes([page]) * pages.PAGE_BYTES for page in range(64))


def shared(scene: Scene) -> SharedSegment:
    found = SharedSegment(scene.segment)
    common = Common.of([(scene.segment.address, NBYTES)])
    assert found.share(common, common.fd, [PIECE], scene.watching.watch, guarded=False) == []
    found.punch([PIECE])
    return found


def test_reading_is_not_writing(scene: Scene):
    """What is shared reads as before, and reading is not noted; the pages that it had are given back."""
    found = shared(scene)

    assert bytes(scene.segment.view(0, NBYTES)) == contents()
    assert scene.watching.notes.written[NOTE] == 0
    assert ctypes.string_at(found._live, NBYTES) == bytes(NBYTES)


@pytest.mark.parametrize("place", [0, NBYTES // 2 + 17, NBYTES - 1])
def test_first_write_is_noted(scene: Scene, place: int):
    """A write to any page is noted before it is done, once, and is there."""
    shared(scene)
    scene.segment.view(place, 1)[0] = 200
    noted = scene.watching.notes.written[NOTE], scene.watching.notes.counts[COUNTER // 4]
    scene.segment.view(5, 1)[0] = 201

    assert noted == (1, 1)
    assert (scene.watching.notes.written[NOTE], scene.watching.notes.counts[COUNTER // 4]) == (1, 1)
    assert (scene.segment.view(place, 1)[0], scene.segment.view(5, 1)[0]) == (200, 201)


@pytest.mark.parametrize(("role", "other"), [("fill", 0), ("merge", 7), ("swap", 7)])
def test_going_live(scene: Scene, role: str, other: int):
    """A part that goes live has all that was written to it: here, and by the one who went live before."""
    found = shared(scene)
    expected = bytearray(contents())
    expected[3] = scene.segment.view(3, 1)[0] = 100
    if role != "fill":
        ctypes.memmove(found._live, contents(), NBYTES)  # the other one has filled it
        expected[9] = other
        ctypes.memset(found._live + 9, other, 1)
    found.go_live(0, role, scene.watching.watch)  # type: ignore[arg-type]

    assert bytes(scene.segment.view(0, NBYTES)) == bytes(expected)
    assert ctypes.string_at(found._live, NBYTES) == bytes(expected)
    scene.segment.view(4, 1)[0] = 101
    assert ctypes.string_at(found._live + 4, 1) == b"\x65"
    assert found.pieces == {}


def test_who_writes_to_what_is_held_waits(scene: Scene):
    """A write to a part that is being replaced is done after that, in the new memory."""
    found = shared(scene)
    part = found.part(PIECE)
    assert scene.watching.watch.hold(part) == "untouched"
    ctypes.memmove(found._live, scene.segment.address, NBYTES)
    writer = threading.Thread(target=ctypes.CDLL(None).memset, args=(ctypes.c_void_p(scene.segment.address), 99, 1))
    writer.start()
    until(lambda: waits(writer))
    assert scene.watching.watch.replace(part, pages.as_shared(scene.segment.address, NBYTES, found._live))
    scene.watching.watch.done(part)
    writer.join()

    assert ctypes.string_at(found._live, 2) == b"\x63\x00"
    assert scene.watching.notes.written[NOTE] == 0


def waits(thread: threading.Thread) -> bool:
    """Return whether a thread waits in the kernel for its page."""
    return Path(f"/proc/self/task/{thread.native_id}/wchan").read_text() == "handle_userfault"


def test_nobody_waits_for_ever(scene: Scene):
    """Who writes to a part that is held, and keeps the interpreter from running, is let through, and noted."""
    found = shared(scene)
    part = found.part(PIECE)
    scene.watching.watch.hold(part)
    scene.segment.view(0, 1)[0] = 77  # the one who holds it, say

    assert not scene.watching.watch.replace(part, pages.as_shared(scene.segment.address, NBYTES, found._live))
    assert scene.watching.watch.hold(part) == "written"
    found.go_live(0, "fill", scene.watching.watch)
    assert ctypes.string_at(found._live, 1) == b"\x4d"


def test_its_death_is_seen(scene: Scene):
    """When the watcher is killed, its notes say so before a write goes unseen, and whoever writes goes on."""
    found = shared(scene)
    assert scene.watching.notes.alive
    os.kill(scene.watching.pid, signal.SIGKILL)
    os.waitid(os.P_PID, scene.watching.pid, os.WEXITED | os.WNOWAIT)

    assert not scene.watching.notes.alive
    scene.segment.view(0, 1)[0] = 55
    assert scene.watching.watch.hold(found.part(PIECE)) == "gone"
    found.go_live(0, "fill", scene.watching.watch)
    assert ctypes.string_at(found._live, 2) == b"\x37\x00"


def test_descriptors_of_other_kinds(scene: Scene):
    """A client that sends something else than a userfaultfd is left alone; the watcher and its notes go on."""
    ends = os.pipe()
    with scene.watching.introduce(1 << 20, (1 << 20) + 4096) as sock:
        socket.send_fds(sock, [watcher.YES], [ends[0]])
        assert sock.recv(1) == b""
    for fd in ends:
        os.close(fd)

    assert scene.watching.notes.alive


@pytest.mark.parametrize(("note", "counter"), [(NOTE, 1 << 20), (1 << 20, COUNTER), ((1 << 20) + 4096, 1 << 20)])
def test_notes_of_others(scene: Scene, note: int, counter: int):
    """A client cannot have anything noted outside of its own part of the notes."""
    own = WriteWatch(scene.watching.introduce(1 << 20, (1 << 20) + 4096), scene.watching.notes)

    with pytest.raises(OSError, match="cannot protect"):
        own.protect([Part(scene.segment.address, NBYTES, note, counter)])
    own.close()
    assert scene.watching.notes.alive


def test_a_client_that_goes(scene: Scene):
    """What nobody watches any more counts as written."""
    own = WriteWatch(scene.watching.introduce(1 << 20, (1 << 20) + 4096), scene.watching.notes)
    own.protect([Part(scene.segment.address, NBYTES, (1 << 20) + 64, 1 << 20)])
    assert scene.watching.notes.written[(1 << 20) + 64] == 0
    own.close()

    until(lambda: scene.watching.notes.written[(1 << 20) + 64] == 1)
    assert scene.watching.notes.counts[1 << 18] == 1


def test_notes_are_for_reading(scene: Scene):
    """Nobody but the watcher can write to the notes."""
    with pytest.raises(PermissionError):
        os.write(scene.watching.notes_fd, b"\0")


def slow_write(memory: torch.Tensor) -> threading.Thread:
    """Start something that writes to all of `memory`, bit by bit, for longer than any copy of it takes."""
    thread = threading.Thread(target=memory.digamma_)
    thread.start()
    return thread


def test_going_live_under_a_write(scene: Scene, one_thread: None):
    """A write that is under way while its part goes live is done whole: its end lands in the new memory."""
    nbytes = 16 << 20
    fd = create_memfd(nbytes)
    segment = Segment(2, fd, nbytes)
    os.close(fd)
    memory = torch.frombuffer(segment.view(0, nbytes), dtype=torch.float64)
    memory.copy_(torch.arange(1, memory.numel() + 1))
    expected = memory.clone().digamma_()
    found, common = SharedSegment(segment), Common.of([(segment.address, nbytes)])
    found.share(common, common.fd, [Piece(0, nbytes, 0, NOTE, COUNTER)], scene.watching.watch, guarded=False)
    thread = slow_write(memory)
    until(lambda: scene.watching.notes.written[NOTE])
    found.go_live(0, "fill", scene.watching.watch)
    was_under_way = thread.is_alive()
    thread.join()

    assert was_under_way
    assert torch.equal(expected, memory)
    assert ctypes.string_at(found._live, nbytes) == ctypes.string_at(expected.data_ptr(), nbytes)


@pytest.mark.parametrize("when", ["before", "under way"])
def test_written_while_it_is_guarded(scene: Scene, one_thread: None, when: str):
    """A part that somebody writes to after it is guarded stays live, and nothing of that is lost."""
    memory = torch.frombuffer(scene.segment.view(0, NBYTES), dtype=torch.float64)
    memory.copy_(torch.arange(1, memory.numel() + 1))
    found, common = SharedSegment(scene.segment), Common.of([(scene.segment.address, NBYTES)])
    expected = memory.clone().digamma_()
    found.guard([PIECE], scene.watching.watch)
    thread = slow_write(memory)
    until(lambda: scene.watching.notes.written[NOTE])
    if when == "before":
        thread.join()
    stayed = found.share(common, common.fd, [PIECE], scene.watching.watch, guarded=True)
    thread.join()

    assert stayed == [PIECE]
    assert torch.equal(expected, memory)
    assert ctypes.string_at(found._live, NBYTES) == ctypes.string_at(expected.data_ptr(), NBYTES)
    memory[0] = 1  # nobody waits for an answer any more


def test_pages_of_its_own(scene: Scene):
    """A page that was written to before anybody watched is found by itself."""
    found, common = SharedSegment(scene.segment), Common.of([(scene.segment.address, NBYTES)])
    pages.replace(pages.as_private(scene.segment.address, NBYTES, common.fd, 0))
    bytes(scene.segment.view(0, NBYTES))
    before = found.touched([PIECE])
    scene.segment.view(20 * pages.PAGE_BYTES, 1)[0] = 1

    assert (before, found.touched([PIECE])) == ([], [PIECE])
