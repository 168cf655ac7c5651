"""A worker that speaks when nobody asked, or draws out what it was asked; and hooks that meet the lies of another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import RemoteProtocolError, WorkerStartError
from tests.helpers.waiting import until

REPO = r"""
    import gc
    import os
    import socket
    import tempfile
    import threading

    import torch

    from isohub.wire import codec
    from isohub.wire.framing import pack_header
    from isohub.wire.messages import Callback, Payload, Returned
    from isohub.wire.values import Items, Pairs
    from isohub.worker import serve


    def channel():
        return next(found for found in gc.get_objects() if type(found).__name__ == "Channel")


    class Net(torch.nn.Linear):
        def speak_later(self, path):
            # Once the answer to this call is out, which is when the loop waits for the next request.
            def speak():
                while os.path.exists(path):
                    pass
                channel().send(codec.encode(Returned(payload=Payload("what nobody asked for"))))
                os.mkdir(path)
            threading.Thread(target=speak, daemon=True).start()

        def refuse_to_end(self):
            def drip(server, request, descriptors, nested):
                while True:
                    channel()._sock.sendall(b"i")
                    threading.Event().wait(0.05)
            serve._Server._answer = drip

        def lie(self):
            channel().send(b"[]")

        def call_back_for_ever(self):
            wire = channel()
            nothing = Payload(Items("tuple", [Items("tuple", [torch.ones(1).item()]), Pairs("dict", [], [])]))
            while True:
                wire.send(codec.encode(Callback(handle=1, path="", payload=nothing)))
                wire.receive()

        def attach(self, count):
            folder, (reading, writing) = tempfile.mkdtemp(), os.pipe()
            kinds = [os.open(folder, os.O_RDONLY), os.open(folder, os.O_PATH), os.open("/dev/zero", os.O_RDWR),
                     os.memfd_create("bare"), reading, writing]
            sock = channel()._sock
            data = codec.encode(Returned(payload=Payload("with descriptors")))
            try:
                socket.send_fds(sock, [pack_header(len(data), 0) + data], (kinds * count)[:count])
            except PermissionError:  # the kernel of today keeps them from being sent at all
                sock.sendall(pack_header(len(data), 0) + data)
            channel().receive()
            os._exit(0)  # not to be waited for


    def net():
        return Net(2, 2)
"""


def load(repo: str, **settings: float) -> isohub.IsolatedModule:
    return isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True, **settings))


def test_answer_to_nothing_is_not_taken_for_the_next_ones(repo_of: Callable[..., str], tmp_path: Path):
    """What a worker says while nobody asks it anything ends it at the next request, whose answer it would have been."""
    repo = repo_of(REPO)
    honest, liar = load(repo), load(repo)
    flag = tmp_path / "flag"
    flag.touch()
    liar.speak_later(str(flag))
    flag.unlink()
    until(flag.is_dir)

    with pytest.raises(RemoteProtocolError, match="a message that nobody asked for"):
        liar(torch.ones(1, 2))

    assert liar.isohub.state == "broken"
    assert honest(torch.ones(1, 2)).shape == (1, 2)


def test_worker_that_spoke_while_idle_is_killed_at_once_when_closed(repo_of: Callable[..., str], tmp_path: Path):
    """A worker that said something unasked is not given time for a clean-up when it is closed."""
    liar = load(repo_of(REPO))
    worker = liar._isohub_lease.worker
    flag = tmp_path / "flag"
    flag.touch()
    liar.speak_later(str(flag))
    flag.unlink()
    until(flag.is_dir)

    worker.close(timeout_s=600)

    assert worker.state == "closed"
    assert not Path(f"/proc/{worker.pid}/exe").exists()


def test_close_has_one_deadline_however_much_a_worker_says(repo_of: Callable[..., str]):
    """A worker that drips bytes instead of ending is killed when its time is over."""
    liar = load(repo_of(REPO))
    worker = liar._isohub_lease.worker
    liar.refuse_to_end()
    began = time.monotonic()

    worker.close(timeout_s=0.5)

    assert 0.5 <= time.monotonic() - began < 20
    assert not Path(f"/proc/{worker.pid}/exe").exists()


def test_start_has_one_deadline_however_much_a_worker_says(repo_of: Callable[..., str]):
    """A worker that drips its first answer is killed when the time for its start is over."""

    def drip() -> None:
        import gc
        import threading

        from isohub.wire.framing import pack_header

        wire = next(found for found in gc.get_objects() if type(found).__name__ == "Channel")
        for byte in pack_header(10_000, 0) + bytes(10_000):
            wire._sock.sendall(bytes([byte]))
            threading.Event().wait(0.05)

    repo = repo_of(REPO)
    began = time.monotonic()

    with pytest.raises(WorkerStartError, match="did not answer within 2 s"):
        isohub.load(repo, "net", isolate=isohub.Isolation(setup=drip, start_timeout_s=2))

    assert time.monotonic() - began < 30


@pytest.mark.parametrize("count", [1, 6, 250])
def test_descriptors_of_a_worker_never_arrive(repo_of: Callable[..., str], count: int):
    """Folders, pipes, devices, bare memory: what a worker attaches to an answer is nowhere here, and harms nobody."""
    model = load(repo_of(REPO))
    model(torch.ones(1, 2))
    before = descriptors()

    assert model.attach(count) == "with descriptors"
    assert before == descriptors()


def test_hook_that_meets_the_lies_of_another_worker_costs_that_one_alone(repo_of: Callable[..., str]):
    """A hook that calls a lying model ends the liar; the worker whose module has the hook goes on."""
    plain = "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.ReLU())\n"
    innocent = isohub.load(repo_of(plain), "net")
    liar = load(repo_of(REPO))
    hook = innocent[0].register_forward_hook(lambda *_: liar.lie())

    with pytest.raises(RemoteProtocolError, match="owner1/repo"):
        innocent(torch.ones(2))
    hook.remove()

    assert (innocent.isohub.state, liar.isohub.state) == ("idle", "broken")
    assert torch.equal(torch.ones(2), innocent(torch.ones(2)))


def test_gradients_that_meet_the_lies_of_another_worker_cost_that_one_alone(repo_of: Callable[..., str]):
    """A backward hook that calls a lying model ends the liar, and not the worker whose gradients are computed."""
    plain = "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())\n"
    innocent = isohub.load(repo_of(plain), "net")
    liar = load(repo_of(REPO))
    hook = innocent[1].register_full_backward_hook(lambda *_: liar.lie())

    with pytest.raises(RemoteProtocolError, match="owner1/repo"):
        innocent(torch.ones(1, 2)).sum().backward()
    hook.remove()

    assert (innocent.isohub.state, liar.isohub.state) == ("idle", "broken")
    assert innocent(torch.ones(1, 2)).shape == (1, 2)


def test_callbacks_within_callbacks_for_ever_end(repo_of: Callable[..., str]):
    """A worker that answers each call of a hooked module by having it called again ends itself alone."""
    repo = repo_of(REPO)
    honest, liar = load(repo), load(repo)
    liar.register_forward_hook(lambda *_: None)

    with pytest.raises(RemoteProtocolError, match="32 deep"):
        liar.call_back_for_ever()

    assert liar.isohub.state == "broken"
    assert honest(torch.ones(1, 2)).shape == (1, 2)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
