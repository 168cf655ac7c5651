from __future__ import annotations

import json
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isohub.errors import EntrypointError
from isohub.model.proxies import ProxyTable
from isohub.shm.channel import Channel
from isohub.supervisor.border import Border
from isohub.supervisor.raised import exception
from isohub.wire import codec, stdlib_structs
from isohub.wire.messages import (
    FromParent,
    FromWorker,
    Granted,
    Hello,
    NeedSegment,
    Prepare,
    Raised,
    Returned,
    TorchState,
    Verb,
)
from tests.helpers.messages import FROM_PARENT, FROM_WORKER

ROOT = Path(__file__).parents[3]
BLOCK_MSGSPEC = "import sys; sys.modules['msgspec'] = None\n"
# Reads what the other wrote, writes it anew, and writes its own samples.
OTHER = BLOCK_MSGSPEC + dedent("""
    import json
    from isohub.wire import structs
    from isohub.wire.messages import FromParent, FromWorker
    from tests.helpers.messages import FROM_PARENT, FROM_WORKER

    assert structs.Struct.__module__ == "isohub.wire.stdlib_structs"
    given = json.load(sys.stdin)
    answer = {}
    for kind, samples in ((FromParent, FROM_PARENT), (FromWorker, FROM_WORKER)):
        decoder = structs.decode_as(kind)
        for name, message in samples.items():
            read = decoder.decode(memoryview(given[name].encode()))
            assert read == message, name
            assert repr(read) == repr(message), name
            answer[name] = {"again": structs.encode(read).decode(), "own": structs.encode(message).decode()}
    json.dump(answer, sys.stdout)
""")


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, str]]:
    """What a Python without msgspec makes of the messages that msgspec wrote, and what it writes itself."""
    given = {name: codec.encode(message).decode() for name, message in (FROM_PARENT | FROM_WORKER).items()}
    done = subprocess.run(
        [sys.executable, "-c", OTHER],
        input=json.dumps(given),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*FROM_PARENT, *FROM_WORKER])
def test_bytes_are_the_same(written: dict[str, dict[str, str]], name: str):
    """Both write the same bytes, of their own messages and of what they read from the other."""
    expected = codec.encode((FROM_PARENT | FROM_WORKER)[name]).decode()

    assert {"again": expected, "own": expected} == written[name]


@pytest.mark.parametrize("name", FROM_WORKER)
def test_parent_reads_what_a_worker_without_msgspec_wrote(written: dict[str, dict[str, str]], name: str):
    """The parent's typed decoder accepts the stand-in's messages."""
    assert FROM_WORKER[name] == codec.decode_from_worker(written[name]["own"].encode())


@given(st.floats() | st.floats(min_value=-1e-4, max_value=1e-4))
def test_floats_are_written_as_msgspec_does(value: float):
    """Every float has one text, which reads as the same float again."""
    text = stdlib_structs._float_json(value)

    assert codec.structs.encode([value]) == f"[{text}]".encode()
    if math.isfinite(value):
        assert struct.pack("d", value) == struct.pack("d", json.loads(text))


@given(st.text())
def test_texts_are_written_as_msgspec_does(text: str):
    """Every text has one way to be escaped."""
    assert codec.structs.encode([text]) == stdlib_structs._json([text]).encode()


def test_default_lists_are_not_shared():
    """A struct that is made with a default list has a list of its own."""

    class Some(stdlib_structs.Struct, tag=True):
        items: list[int] = []  # noqa: RUF012 - the point of this test

    Some().items.append(1)

    assert Some().items == []


class PlainPeer:
    """The parent's end of a worker that runs in an interpreter of its own, without msgspec."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        self.border = Border()
        self.border.proxies = ProxyTable(self, None)  # type: ignore[arg-type]

    def receive(self) -> FromWorker:
        return codec.decode_from_worker(self.channel.receive(time.monotonic() + 60)[0])

    def send(self, message: FromParent, descriptors: list[int]) -> None:
        self.channel.send(codec.encode(message), descriptors, time.monotonic() + 60)

    def ask(self, verb: Verb, *args: object, handle: int = 0, name: str = "") -> object:
        payload = self.border.pack(args, {})
        said = self.border.say(verb, payload, TorchState(), {"handle": handle, "name": name})
        self.channel.send(*said, time.monotonic() + 60)
        self.border.sent()
        return self.answer()

    def answer(self) -> object:
        while isinstance(need := self.receive(), NeedSegment):
            granted, fd = self.border.grant(need)
            assert isinstance(granted, Granted)
            self.send(granted, [fd])
            os.close(fd)
        assert isinstance(need, Returned | Raised)
        self.border.settle(need.freed, need.dropped)
        if isinstance(need, Raised):
            raise exception(need)
        return self.border.unpack(need.payload)

    def release_soon(self) -> None:
        """Do nothing: the test is short."""


@contextmanager
def worker_without_msgspec(checkout: Path) -> Iterator[PlainPeer]:
    program = BLOCK_MSGSPEC + "from isohub.worker.__main__ import main; sys.exit(main(int(sys.argv[1])))"
    ours, theirs = socket.socketpair()
    with (
        theirs,
        tempfile.TemporaryDirectory() as cwd,
        subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        ) as process,
    ):
        theirs.close()
        peer = PlainPeer(ours)
        try:
            hello = peer.receive()
            assert isinstance(hello, Hello)
            assert hello.pid == process.pid
            peer.send(
                Prepare(
                    root=str(checkout), label="sample", sys_path=[str(checkout)], cwd=cwd, argv=["hubconf.py"],
                    environ={"PATH": "/usr/bin:/bin"}, hub_dir=cwd, pycache=None, threads=1, setup=None,
                ),
                [],
            )  # fmt: skip
            peer.answer()
            yield peer
            peer.ask("close")
            assert process.wait(60) == 0
        finally:
            peer.channel.close()
            peer.border.close()
            process.kill()


def test_worker_runs_without_msgspec(tmp_path: Path):
    """A worker in an interpreter without msgspec lists, builds, computes and reports errors as any other."""
    import torch

    (tmp_path / "hubconf.py").write_text(
        dedent("""
        import sys
        import torch

        assert sys.modules["msgspec"] is None

        def net(scale):
            net = torch.nn.Linear(3, 2)
            with torch.no_grad():
                net.weight.copy_(torch.arange(6.0).reshape(2, 3) * scale)
                net.bias.fill_(0.5)
            return net, {"scale": scale, "name": "né"}
        """)
    )
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])

    with worker_without_msgspec(tmp_path) as worker:
        assert worker.ask("list") == ["net"]
        net, told = worker.ask("build", 2.0, name="net")
        assert told == {"scale": 2.0, "name": "né"}
        assert torch.equal(net.weight, torch.arange(6.0).reshape(2, 3) * 2)
        expected = torch.nn.functional.linear(x, net.weight, net.bias)
        assert torch.equal(expected, worker.ask("call", x, handle=net._isohub_lease.handle))
        with pytest.raises(EntrypointError, match="Cannot find callable nope in hubconf") as caught:
            worker.ask("build", name="nope")
        assert caught.value.available == ("net",)
        del net, told, caught
