"""A call that takes too long ends at its deadline, wherever the time goes."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import WorkerTimeoutError
from tests.helpers.programs import wait_for_end
from tests.helpers.waiting import until

RepoOf = Callable[..., str]
HUBCONF = """
    import ctypes
    import os
    import signal
    import threading
    import torch

    def in_python():
        threading.Event().wait()

    def in_native_code():
        ctypes.PyDLL(None).pause()  # with the interpreter's lock

    def ignoring_signals():
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        threading.Event().wait()

    def blocking_signals():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            ctypes.PyDLL(None).pause()

    def stopped():
        os.kill(os.getpid(), signal.SIGSTOP)

    def cleaning_up():
        def clean(*_):
            print("cleaned up", file=__import__("sys").stderr)
            os._exit(0)
        signal.signal(signal.SIGTERM, clean)
        threading.Event().wait()

    def flooding():
        line = b"x" * 4095 + b"\\n"
        while True:
            os.write(2, line)

    class Hanging(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            in_python()

    class Inner(torch.nn.Module):
        def forward(self, x):
            return x + 1

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x, how=None, gate=None):
            if how == "hanging_backward":
                return Hanging.apply(x * self.weight)
            if gate:
                open(gate).close()
            if how:
                globals()[how]()
            return self.inner(x) * self.weight

    def net(how=None):
        if how:
            globals()[how]()
        return Net()
"""
X = torch.tensor([1.0, 10.0])
ANSWER = [2.0, 11.0]


@pytest.fixture
def repo(repo_of: RepoOf) -> str:
    return repo_of(HUBCONF)


def load(repo: str, **settings: Any) -> Any:
    return isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True, threads=1, **settings))


@pytest.mark.parametrize(
    ("how", "last_words"),
    [
        ("in_python", "in in_python"),
        ("in_native_code", "in in_native_code"),
        ("ignoring_signals", ""),
        ("blocking_signals", ""),
        ("stopped", ""),
        ("cleaning_up", "cleaned up"),
        ("flooding", "xxxx"),
    ],
)
def test_hanging_worker_is_killed(repo: str, capfd: pytest.CaptureFixture[str], how: str, last_words: str):
    """Whatever a worker hangs in, it is dead after its deadline, says where it was if it can, and no other is hurt."""
    model, other = load(repo), load(repo)
    begun = time.monotonic()
    killed = pytest.raises(WorkerTimeoutError, match=r"did not answer within 0\.5 s and was killed")
    with killed as caught, isohub.deadline(0.5):
        model(X, how)

    assert 0.5 <= time.monotonic() - begun < 10
    wait_for_end(model.isohub.pid)
    assert (caught.value.timeout_s, caught.value.killed, model.isohub.state) == (0.5, True, "broken")
    assert last_words in "\n".join(caught.value.stderr_tail)
    assert last_words in str(caught.value)
    assert "most recent call" not in capfd.readouterr().err  # where it hung is for the error, not for the terminal
    assert other(X).tolist() == ANSWER
    assert model.weight.tolist() == [1.0, 1.0]


def test_deadline_holds_for_a_load(repo: str):
    """A load whose entrypoint hangs ends at the deadline of the block around it."""
    with pytest.raises(WorkerTimeoutError, match=r"within 1\.5 s") as caught, isohub.deadline(1.5):
        isohub.load(repo, "net", "in_python")

    assert caught.value.killed
    assert isohub.load(repo, "net")(X).tolist() == ANSWER


def test_deadline_holds_for_a_start(repo: str):
    """A worker that does not become ready ends at the deadline of the block around the load, as overdue."""

    def setup() -> None:
        import threading

        threading.Event().wait()

    with pytest.raises(WorkerTimeoutError, match=r"within 1\.5 s"), isohub.deadline(1.5):
        load(repo, setup=setup)


def test_deadline_holds_for_a_backward(repo: str):
    """A backward pass that hangs in the worker ends at the deadline."""
    model = load(repo)
    loss = model(X, "hanging_backward").sum()
    with pytest.raises(WorkerTimeoutError), isohub.deadline(0.5):
        loss.backward()

    wait_for_end(model.isohub.pid)


def test_earliest_deadline_holds(repo: str):
    """Of the deadlines of blocks around a call and of its worker, the earliest is the one that it meets."""
    for settings, blocks, expected in [
        ({"timeout_s": 0.5}, (60.0, 50.0), 0.5),
        ({"timeout_s": 60}, (60.0, 0.5), 0.5),
        ({}, (0.5, 60.0), 0.5),
    ]:
        model = load(repo, **settings)
        with torch.no_grad(), isohub.deadline(blocks[0]), isohub.deadline(blocks[1]):
            assert model(X).tolist() == ANSWER
            with pytest.raises(WorkerTimeoutError) as caught:
                model(X, "in_python")
        assert expected == caught.value.timeout_s


def test_deadline_ends_with_its_block(repo: str):
    """A call after the block, and one in another thread, has no deadline of it."""
    model = load(repo)
    in_thread: list[list[float]] = []
    with isohub.deadline(0.2):
        passed = time.monotonic() + 0.2
        until(lambda: time.monotonic() > passed)
        with pytest.raises(WorkerTimeoutError) as caught:
            model(X)
        thread = threading.Thread(target=lambda: in_thread.append(model(X).tolist()))
        thread.start()
        thread.join()

    assert not caught.value.killed
    assert [model(X).tolist(), *in_thread] == [ANSWER, ANSWER]


def test_wait_for_another_thread_counts(repo: str, tmp_path: Path):
    """A call that does not get its turn before its deadline fails, and the worker and the other call go on."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    model = load(repo)
    answers: list[list[float]] = []
    thread = threading.Thread(target=lambda: answers.append(model(X, None, gate).tolist()))
    thread.start()
    until(lambda: model.isohub.state == "busy")

    with pytest.raises(WorkerTimeoutError, match=r"did not begin within 0\.3 s") as caught, isohub.deadline(0.3):
        model(X)
    gate.open("w").close()
    thread.join()

    assert (caught.value.timeout_s, caught.value.killed) == (0.3, False)
    assert answers == [ANSWER]
    assert model(X).tolist() == ANSWER


def test_call_that_a_hook_makes_has_the_deadline_of_its_own(repo: str):
    """What a hook asks of another worker ends at the deadline of the call that runs the hook."""
    model, other = load(repo, timeout_s=1), load(repo)
    model.inner.register_forward_hook(lambda *_: other(X, "in_python"))

    with pytest.raises(WorkerTimeoutError) as caught:
        model(X)

    assert caught.value.timeout_s == 1
    for worker in (model, other):
        wait_for_end(worker.isohub.pid)


@pytest.mark.parametrize("seconds", ["3", None, True])
def test_wrong_type_is_refused(seconds: Any):
    """A deadline is a number."""
    with pytest.raises(TypeError, match="takes a number of seconds"), isohub.deadline(seconds):
        raise AssertionError


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_number_out_of_range_is_refused(seconds: float):
    """A deadline is finite, and not over before it begins."""
    with pytest.raises(ValueError, match="finite number of seconds above 0"), isohub.deadline(seconds):
        raise AssertionError
