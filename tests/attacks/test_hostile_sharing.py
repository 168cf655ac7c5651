"""Workers that lie about the weights that they have in common with others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub import api
from isohub.errors import BrokenWorkerError, RemoteProtocolError
from isohub.supervisor.shares import Shares
from isohub.supervisor.sharing import _places
from isohub.wire.specs import Block
from tests.helpers.equal_weights import by_tensor, equal_bytes, loader, seen, use

pytestmark = [pytest.mark.usefixtures("one_thread")]

LIES = {
    "says nonsense": "return Payload(3)",
    "says nothing": "return Payload()",
    "raises": "raise ValueError('no')",
    "ends": "os._exit(3)",
    "says that it did": "[os.close(fd) for fd in descriptors]; return Payload(True)",
    "refuses": "[os.close(fd) for fd in descriptors]; return Payload(False)",
    "sends another descriptor": (
        "s = socket.socket(fileno=descriptors[1]); socket.send_fds(s, [b'y'], [0]); s.recv(1); return Payload(True)"
    ),
    "floods the watcher": (
        "s = socket.socket(fileno=descriptors[1]); fd = open_userfaultfd(); socket.send_fds(s, [b'y'], [fd]); "
        "s.setblocking(False); [s.send(bytes(60000)) for _ in range(2)]; return Payload(True)"
    ),
    "writes to the copy": (
        "[attempt(lambda: os.pwrite(descriptors[0], bytes([255]) * 65536, 0)), "
        "attempt(lambda: os.ftruncate(descriptors[0], 0)), "
        "attempt(lambda: mmap.mmap(descriptors[0], 4096).__setitem__(0, 9)), "
        "attempt(lambda: os.pwrite(descriptors[2], bytes([255]) * 4096, 0))]; return Payload(True)"
    ),
}
KILLED = ("says nonsense", "says nothing", "raises", "ends")


def liars(lie: str) -> str:
    """Return a setup for a worker that answers so when it is asked to share weights."""
    return f"""
import mmap, os, socket
from isohub.shm.watcher import open_userfaultfd
from isohub.wire.messages import Payload
from isohub.worker import sharing

def attempt(act):
    try:
        act()
    except (OSError, ValueError):
        pass

def do(self, message, descriptors):
    {LIES[lie]}

sharing.Sharing.do = do
"""


@pytest.fixture
def load(tmp_path: Path, forkserver: int) -> Callable[..., torch.nn.Module]:
    """A function that loads the model of version `number`."""
    return loader(tmp_path)


def lying(load: Callable[..., torch.nn.Module], number: int, lie: str) -> torch.nn.Module:
    source = liars(lie)
    return load(number, isolate=isohub.Isolation(setup=lambda: exec(source, {"__name__": "liar"})))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("lie", LIES)
def test_only_itself_is_fooled(load: Callable[..., torch.nn.Module], lie: str, is_first: bool):
    """Whatever a worker says or does when it is to share weights, all others have theirs, and what is written there."""
    if is_first:
        liar, honest = lying(load, 0, lie), load(1)
    else:
        honest, liar = load(1), lying(load, 0, lie)
    other = load(2)
    expected = [float((torch.arange(1 << 20).remainder(1009 + n) / 1024 - 0.5).double().sum()) for n in range(4)]

    assert expected == seen(honest) == use(honest)
    assert expected == seen(other) == use(other)
    by_tensor(honest)
    assert expected != seen(honest) == use(honest)
    other.add(3, 4)
    assert [*expected[:3], expected[3] + 4] == seen(other) == use(other)
    if lie in KILLED:
        with pytest.raises((BrokenWorkerError, RemoteProtocolError)):
            use(liar)
        assert expected == seen(liar)
    assert api._registry._sharing._watcher is None or api._registry._sharing._watcher.notes.alive


def test_claims_of_the_layout(load: Callable[..., torch.nn.Module]):
    """Blocks that overlap, or lie outside of whole pages, are not shared; what does not is."""
    load(0)
    (worker,) = isohub.workers()
    segment, fd = worker.border._create(20 << 20)
    os.close(fd)
    worker.border.residents.add(segment)
    shares = Shares(worker)
    shares.fresh = [
        Block(segment.number, 0, 12 << 20),
        Block(segment.number, 4 << 20, 4 << 20),  # lies over the first
        Block(segment.number, (12 << 20) + 64, 1 << 20),  # not a page
        Block(segment.number, 16 << 20, 1 << 30),  # behind the end
        Block(segment.number + 99, 0, 16 << 20),  # no such segment
        Block(segment.number, 16 << 20, 1 << 20),
    ]

    assert sorted((place.offset, place.nbytes) for place in _places(shares)) == [(0, 12 << 20), (16 << 20, 1 << 20)]
    assert equal_bytes() == [0]
