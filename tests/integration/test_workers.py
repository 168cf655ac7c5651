"""What a worker does beside answering calls: releases, failed launches, reentrance, forgetting."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import LocalProtocolError, WorkerError, WorkerStartError
from tests.helpers.programs import wait_for_end

RepoOf = Callable[..., str]
SLOW_TO_DIE = """
    import os

    class Slow:
        def __init__(self, fifo):
            self.fifo = fifo

        def __del__(self):
            with open(self.fifo) as gate:
                gate.read()

    def slow(fifo):
        return Slow(fifo)

    def chatty():
        print("x" * 300_000)
        return 1
"""

FINALIZERS = """
    import pathlib
    import weakref

    class Kept:
        pass

    KEPT = Kept()

    def finalizers(path):
        weakref.finalize(KEPT, pathlib.Path(path).touch)
        return [str(one.peek()[1]) for one in weakref.finalize._registry if one.atexit]
"""


def test_end_runs_the_finalizers_of_the_repository_alone(repo_of: RepoOf, tmp_path: Path):
    """A worker that is closed runs the finalizers that its repository made, and none of those that torch made."""
    found = isohub.load(repo_of(FINALIZERS), "finalizers", tmp_path / "touched")
    (worker,) = isohub.workers()
    worker.close()
    wait_for_end(worker.pid)

    assert len(found) == 1, found
    assert "touch" in found[0]
    assert (tmp_path / "touched").exists()


def test_slow_release_holds_up_nobody_else(repo_of: RepoOf, tmp_path: Path):
    """A worker whose `__del__` takes its time keeps no other worker's output from being read."""
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    slow = isohub.load(repo_of(SLOW_TO_DIE), "slow", fifo)
    other = repo_of(SLOW_TO_DIE + "\n")
    isohub.list(other)

    del slow
    with fifo.open("w"):  # opens once the worker is in `__del__`, and ends that when it closes
        answer = isohub.load(other, "chatty", verbose=False, isolate=isohub.Isolation(timeout_s=60))

    assert answer == 1


def test_failed_launch_leaves_no_worker(repo_of: RepoOf):
    """A worker that did not become ready in time is not counted, and the next load gets another."""
    repo = repo_of("def one():\n    return 1\n")
    server = isohub.load(repo, "one") and __import__("isohub.api").api._registry.forkserver_pid
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(WorkerStartError, match="does not answer"):
            isohub.load(repo, "one", isolate=isohub.Isolation(start_timeout_s=0.2, threads=1))
    finally:
        os.kill(server, signal.SIGCONT)

    assert len(isohub.workers()) == 1
    assert isohub.load(repo, "one", isolate=isohub.Isolation(threads=1)) == 1


def test_call_inside_a_call_is_refused(repo_of: RepoOf, tmp_path: Path):
    """A signal handler that calls the worker which its thread waits for gets an error, and the call its answer."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    repo = repo_of("""
        import os, signal

        def poke(pid, gate):
            os.kill(pid, signal.SIGUSR1)
            with open(gate) as handled:
                handled.read()
            return 7
    """)
    isohub.list(repo)
    caught: list[BaseException] = []

    def handler(*_: object) -> None:
        try:
            isohub.list(repo)
        except WorkerError as error:
            caught.append(error)
        gate.open("w").close()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        answer = isohub.load(repo, "poke", os.getpid(), gate)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert answer == 7
    assert "in the middle of another call" in str(caught[0])


def test_request_that_cannot_be_said_costs_nothing(repo_of: RepoOf):
    """After a request that could not be written, the worker still draws the numbers that come next."""
    repo = repo_of("""
        import torch

        class Box:
            draw = staticmethod(lambda: torch.rand(2))

        def box():
            return Box()
    """)
    torch.manual_seed(3)
    expected = [torch.rand(2), torch.rand(2)]

    torch.manual_seed(3)
    box = isohub.load(repo, "box")
    with pytest.raises((UnicodeEncodeError, LocalProtocolError)):
        getattr(box, "\ud800")

    assert all(map(torch.equal, expected, [box.draw(), box.draw()]))


def test_tensor_without_memory_is_refused(repo_of: RepoOf):
    """A tensor whose storage was taken away is an error here, not a crash."""
    echo = isohub.load(repo_of("def echo():\n    return lambda x: x\n"), "echo")
    empty = torch.ones(4)
    empty.untyped_storage().resize_(0)

    with pytest.raises(LocalProtocolError, match="no memory"):
        echo(empty)

    assert torch.equal(torch.ones(2), echo(torch.ones(2)))


def test_repositories_closed_and_loaded_at_once(repo_of: RepoOf):
    """Threads that close and load one commit in turn never get a worker that another of them ended."""
    repo = repo_of("def one():\n    return 1\n")
    answers: list[int] = []

    def work() -> None:
        for _ in range(5):
            with isohub.Repo(repo) as handle:
                answers.append(handle.load("one"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [1] * 20
    assert isohub.workers() == []


@pytest.mark.parametrize("end", ["close", "kill"])
def test_ended_worker_is_forgotten(repo_of: RepoOf, end: str):
    """Of a worker that has ended, and of which nothing is held, nothing stays, whether or not it is asked for again."""
    repo = repo_of("def one():\n    return 1\n")
    ended = []
    for threads in (None, 1):
        isohub.load(repo, "one", isolate=isohub.Isolation(dedicated=threads is None, threads=threads))
        worker = isohub.workers()[-1]
        getattr(worker, end)()
        wait_for_end(worker.pid)
        ended.append(weakref.ref(worker))
    del worker

    isohub.load(repo, "one")
    gc.collect()

    assert [one() for one in ended] == [None, None]
