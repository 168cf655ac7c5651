from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.shm.channel import Channel, DeadlineError, PeerGoneError
from isohub.wire.framing import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, pack_header

SOON_S = 30.0
SO_PASSRIGHTS = 83


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """A parent's and a worker's end."""
    ours, theirs = socket.socketpair()
    parent, worker = Channel(ours), Channel(theirs, accept_descriptors=True)
    yield parent, worker
    parent.close()
    worker.close()


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A parent's end, and the bare socket of whatever is at the other."""
    ours, theirs = socket.socketpair()
    parent = Channel(ours)
    yield parent, theirs
    parent.close()
    theirs.close()


def soon() -> float:
    return time.monotonic() + SOON_S


def in_background(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def descriptors() -> list[str]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except FileNotFoundError:
            continue  # that of the listing
    return found


@pytest.mark.parametrize("nbytes", [0, 1, 65_528, 65_536, 5_000_000])
def test_frame_arrives_whole(pair: tuple[Channel, Channel], nbytes: int):
    """A frame of any size arrives as it was sent, however many pieces the socket makes of it."""
    parent, worker = pair
    message = bytes(range(256)) * (nbytes // 256) + bytes(nbytes % 256)

    thread = in_background(lambda: parent.send(message, (), soon()))

    assert message == worker.receive(soon())[0]
    thread.join()


def test_frames_stay_apart(pair: tuple[Channel, Channel]):
    """Frames that come in one piece are handed on one by one, and what is left is told."""
    parent, worker = pair
    for message in (b"one", b"", b"three"):
        worker.send(message)

    assert parent.receive(soon())[0] == b"one"
    assert parent.unread()
    assert [parent.receive(soon())[0], parent.receive(soon())[0]] == [b"", b"three"]
    assert not parent.unread()


def test_frame_in_single_bytes(raw: tuple[Channel, socket.socket]):
    """A frame that comes byte by byte is put together."""
    parent, peer = raw
    frame = pack_header(5, 0) + b"drops"

    thread = in_background(lambda: [peer.send(frame[i : i + 1]) for i in range(len(frame))])

    assert parent.receive(soon())[0] == b"drops"
    thread.join()


def test_dripping_peer_meets_one_deadline(raw: tuple[Channel, socket.socket]):
    """Bytes that keep coming do not stretch the deadline, which is for the whole frame."""
    parent, peer = raw
    peer.send(pack_header(1_000_000, 0))
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.01):
            peer.send(b"x")

    thread = in_background(drip)
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        parent.receive(start + 0.3)
    took_s = time.monotonic() - start
    over.set()
    thread.join()

    assert 0.3 <= took_s < 5


def test_silent_peer_meets_the_deadline(raw: tuple[Channel, socket.socket]):
    """Nothing at all, and half a header, end at the deadline too."""
    parent, peer = raw
    for sent in (b"", b"ih\0"):
        peer.send(sent)
        with pytest.raises(DeadlineError):
            parent.receive(time.monotonic() + 0.05)


def test_peer_that_does_not_read_meets_the_deadline(raw: tuple[Channel, socket.socket]):
    """A send into a full socket ends at the deadline."""
    parent, _ = raw
    with pytest.raises(DeadlineError):
        parent.send(bytes(20_000_000), (), time.monotonic() + 0.1)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="before anything"),
        pytest.param(b"ih\0", id="in the header"),
        pytest.param(pack_header(9, 0), id="after the header"),
        pytest.param(pack_header(9, 0) + b"too", id="in the message"),
    ],
)
def test_end_in_the_middle(raw: tuple[Channel, socket.socket], sent: bytes):
    """A peer that ends is gone, wherever in a frame it was."""
    parent, peer = raw
    peer.send(sent)
    peer.close()

    with pytest.raises(PeerGoneError):
        parent.receive(soon())


def test_send_to_nobody(raw: tuple[Channel, socket.socket]):
    """A send to a closed end says so, and is no signal that ends the program."""
    parent, peer = raw
    peer.close()

    with pytest.raises(PeerGoneError):
        parent.send(bytes(100))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"GET / HT", id="another protocol"),
        pytest.param(struct.pack("!2sHI", b"ih", 0, 2**32 - 1), id="4 GiB"),
        pytest.param(struct.pack("!2sHI", b"ih", 0, MAX_MESSAGE_BYTES + 1), id="one byte over"),
        pytest.param(struct.pack("!2sHI", b"ih", MAX_DESCRIPTORS + 1, 0), id="nine descriptors"),
    ],
)
def test_hostile_header(raw: tuple[Channel, socket.socket], header: bytes):
    """A header over the limits is refused at once, without memory or waiting."""
    parent, peer = raw
    peer.send(header)

    with pytest.raises(RemoteProtocolError):
        parent.receive(soon())


def test_too_long_a_message_is_not_sent(pair: tuple[Channel, Channel]):
    """A message over the limit is refused here, and the channel goes on working."""
    parent, worker = pair
    with pytest.raises(LocalProtocolError):
        parent.send(bytes(MAX_MESSAGE_BYTES + 1))

    parent.send(b"short")

    assert worker.receive(soon())[0] == b"short"


def test_descriptors_arrive_with_their_frame(pair: tuple[Channel, Channel]):
    """Each frame has the descriptors that were sent with it, open and closed on exec."""
    parent, worker = pair
    pipes = [os.pipe() for _ in range(MAX_DESCRIPTORS)]
    writers = [w for _, w in pipes]

    parent.send(b"none", ())
    parent.send(b"eight", writers)
    parent.send(b"one", writers[:1])
    none, eight, one = (worker.receive(soon()) for _ in range(3))

    assert [bytes(none[0]), bytes(eight[0]), bytes(one[0])] == [b"none", b"eight", b"one"]
    assert [len(none[1]), len(eight[1]), len(one[1])] == [0, 8, 1]
    assert not any(os.get_inheritable(fd) for fd in eight[1])
    os.write(eight[1][5], b"through the sixth")
    assert os.read(pipes[5][0], 99) == b"through the sixth"
    for fd in (*[r for r, _ in pipes], *writers, *eight[1], *one[1]):
        os.close(fd)


def test_descriptors_of_a_long_frame(pair: tuple[Channel, Channel]):
    """Descriptors come with the first piece of a frame that takes many."""
    parent, worker = pair
    r, w = os.pipe()

    thread = in_background(lambda: parent.send(bytes(3_000_000), [w], soon()))
    message, (received,) = worker.receive(soon())
    thread.join()

    assert len(message) == 3_000_000
    for fd in (r, w, received):
        os.close(fd)


def test_missing_descriptors_are_refused():
    """A frame that names descriptors that did not come is nonsense."""
    ours, theirs = socket.socketpair()
    with theirs:
        worker = Channel(ours, accept_descriptors=True)
        theirs.send(pack_header(0, 2))
        with pytest.raises(RemoteProtocolError, match="0 descriptors came with a frame that names 2"):
            worker.receive(soon())
        worker.close()


def test_too_many_descriptors_are_refused_and_closed():
    """More descriptors than a frame may hold are refused, and none of them stays open."""
    before = sorted(descriptors())
    ours, theirs = socket.socketpair()
    worker = Channel(ours, accept_descriptors=True)
    zero = os.open("/dev/zero", os.O_RDONLY)
    socket.send_fds(theirs, [pack_header(0, 8)], [zero] * 100)

    with pytest.raises(RemoteProtocolError, match="more descriptors than a frame may hold"):
        worker.receive(soon())

    worker.close()
    theirs.close()
    os.close(zero)
    assert before == sorted(descriptors())


def as_before_linux_6_16(parent: Channel) -> None:
    """Let descriptors be sent to a parent's channel; there they are dropped."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(parent.fileno())) as ours:  # this is one
        ours.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)


def test_parent_takes_no_descriptors(raw: tuple[Channel, socket.socket]):
    """Descriptors that a worker attaches never get here; its frame is read all the same."""
    parent, peer = raw
    as_before_linux_6_16(parent)
    zero = os.open("/dev/zero", os.O_RDONLY)
    before = sorted(descriptors())

    for _ in range(20):
        socket.send_fds(peer, [pack_header(2, 0) + b"hi"], [zero] * 200)

    assert [bytes(parent.receive(soon())[0]) for _ in range(20)] == [b"hi"] * 20
    assert before == sorted(descriptors())
    os.close(zero)


def test_frame_that_names_descriptors_is_refused_by_the_parent(raw: tuple[Channel, socket.socket]):
    """A parent takes no descriptors, so a frame that is to have some is none."""
    parent, peer = raw
    peer.sendall(pack_header(2, 1) + b"hi")

    with pytest.raises(RemoteProtocolError, match="1 descriptors, of which none"):
        parent.receive(soon())


def test_kernel_that_can_refuses_descriptors_at_their_sender(raw: tuple[Channel, socket.socket]):
    """Where the kernel knows how, a worker cannot even send descriptors, whose closing would take the parent's time."""
    parent, peer = raw
    with socket.socket(fileno=os.dup(parent.fileno())) as ours:
        try:
            passes = ours.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            passes = 1  # Linux before 6.16
    sent = True
    try:
        socket.send_fds(peer, [b"x"], [peer.fileno()])
    except PermissionError:
        sent = False

    assert sent == bool(passes)


def test_descriptors_and_a_long_message_to_a_peer_that_does_not_read_are_overdue(pair: tuple[Channel, Channel]):
    """The deadline holds for the first piece of a frame as well, with which its descriptors go."""
    parent, _ = pair
    zero = os.open("/dev/zero", os.O_RDONLY)

    with pytest.raises(DeadlineError):
        parent.send(bytes(8 << 20), [zero], time.monotonic() + 0.2)

    os.close(zero)


def test_what_nobody_asked_for_is_seen_before_it_is_read(raw: tuple[Channel, socket.socket]):
    """Bytes that have come are unread, wherever they wait; the end of the channel is not."""
    parent, peer = raw
    at_first = parent.unread()
    peer.sendall(b"i")
    with_bytes = parent.unread(), parent.unread()
    os.read(parent.fileno(), 1)
    peer.close()

    found = at_first, with_bytes, parent.unread()
    assert found == (False, (True, True), False)


def test_descriptors_do_not_run_out_on_the_parents_side(raw: tuple[Channel, socket.socket]):
    """A parent that is at its limit of descriptors still reads a frame to which some are attached."""
    parent, peer = raw
    as_before_linux_6_16(parent)
    zero = os.open("/dev/zero", os.O_RDONLY)
    socket.send_fds(peer, [pack_header(2, 0) + b"hi"], [zero])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (zero + 1, hard))
    try:
        message, received = parent.receive(soon())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(zero)

    assert (bytes(message), received) == (b"hi", [])


def test_close_closes_what_nobody_took():
    """Descriptors that came with a frame nobody received are closed with the channel."""
    before = sorted(descriptors())
    ours, theirs = socket.socketpair()
    worker = Channel(ours, accept_descriptors=True)
    zero = os.open("/dev/zero", os.O_RDONLY)
    socket.send_fds(theirs, [pack_header(4, 3) + b"h"], [zero] * 3)
    theirs.close()
    with pytest.raises(PeerGoneError):
        worker.receive(soon())

    worker.close()
    worker.close()
    os.close(zero)

    assert worker.fileno() == -1
    assert before == sorted(descriptors())
