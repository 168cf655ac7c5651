"""Threads, workers and hooks that call each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import WorkerClosedError, WorkerError
from isohub.supervisor.deadlines import Deadline, nearest
from isohub.supervisor.turns import Turn
from tests.helpers.waiting import until

RepoOf = Callable[..., str]
HUBCONF = """
    import torch

    class Inner(torch.nn.Module):
        def forward(self, x):
            return x + 1

    class Net(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.inner = Inner()
            self.factor = factor

        def forward(self, x):
            return self.inner(x) * self.factor

        def meet(self, fifo, how):
            # Opening waits for the one who opens it otherwise.
            open(fifo, how).close()
            return how

    def net(factor=2):
        return Net(factor)
"""
X = torch.tensor([1.0, 10.0])
ANSWER = [4.0, 22.0]


@pytest.fixture
def repo(repo_of: RepoOf) -> str:
    return repo_of(HUBCONF)


def load(repo: str, factor: int = 2) -> Any:
    return isohub.load(repo, "net", factor, isolate=isohub.Isolation(dedicated=True, threads=1))


def together(*functions: Callable[[], object]) -> list[object]:
    """Run functions in a thread each; return what they returned, or raised."""
    found: dict[int, object] = {}

    def work(place: int) -> None:
        try:
            found[place] = functions[place]()
        except Exception as error:
            found[place] = error.with_traceback(None)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(functions))]


def test_many_threads_on_one_worker(repo: str):
    """Each of many threads gets the answers to its own questions."""
    model = load(repo)

    def work(number: int) -> list[list[float]]:
        with torch.no_grad():
            return [model(torch.tensor([float(number), float(i)])).tolist() for i in range(20)]

    found = together(*[lambda number=number: work(number) for number in range(8)])

    assert [[[(n + 1) * 2.0, (i + 1) * 2.0] for i in range(20)] for n in range(8)] == found


def test_workers_run_in_parallel(repo: str, tmp_path: Path):
    """Calls of two workers by two threads are under way at the same time: each waits for the other one's."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    one, other = load(repo), load(repo)

    assert together(lambda: one.meet(fifo, "r"), lambda: other.meet(fifo, "w")) == ["r", "w"]


def test_loads_calls_and_closes_at_once(repo: str):
    """Threads that load, call and close workers of their own disturb neither each other nor a shared one."""
    shared = load(repo)

    def work(number: int) -> list[list[float]]:
        answers = []
        for _ in range(3):
            with isohub.Repo(repo, isolate=isohub.Isolation(dedicated=True)) as handle, torch.no_grad():
                own = handle.load("net", number)
                answers += [own(X).tolist(), shared(X).tolist()]
        return answers

    found = together(*[lambda number=number: work(number) for number in range(1, 5)])

    assert [[[2.0 * n, 11.0 * n], ANSWER] * 3 for n in range(1, 5)] == found
    assert [shared.isohub.pid] == [worker.pid for worker in isohub.workers()]


def test_close_while_others_call(repo: str):
    """A worker that is closed while threads call it answers each of them, or says that it was closed."""
    model = load(repo)
    answered = threading.Event()

    def work() -> list[float]:
        while True:
            answer = model(X).tolist()
            assert answer == ANSWER
            answered.set()

    def close() -> None:
        answered.wait()
        isohub.workers()[0].close()

    *errors, _ = together(work, work, work, close)

    assert [WorkerClosedError] * 3 == [type(error) for error in errors]


def test_hook_calls_another_model(repo: str):
    """A hook may call a model of another worker."""
    model, other = load(repo), load(repo, 3)
    model.inner.register_forward_hook(lambda module, args, output: other(output))

    assert model(X).tolist() == [((1 + 1) + 1) * 3 * 2, ((10 + 1) + 1) * 3 * 2]


def test_hook_calls_its_own_model(repo: str):
    """A hook may call the model whose call it is part of, as in one process."""
    model = load(repo)
    depth: list[int] = []

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        depth.append(len(depth))
        return model(output) if len(depth) < 3 else None

    model.inner.register_forward_hook(hook)

    # The innermost gives (x + 3) * 2, and each around it doubles once more.
    assert model(X).tolist() == [(1.0 + 3) * 8, (10.0 + 3) * 8]
    assert depth == [0, 1, 2]


@pytest.mark.parametrize("count", [2, 3])
def test_hooks_that_call_each_others_models(repo: str, count: int):
    """Of threads whose hooks call each other's models in a ring, one is refused, and the others get their answers."""
    models = [load(repo) for _ in range(count)]
    inside = threading.Barrier(count)
    local = threading.local()

    def hook(place: int) -> Callable[..., None]:
        def call_next(*_: object) -> None:
            if getattr(local, "is_outer", False):
                local.is_outer = False
                inside.wait(60)  # each thread has its own worker now
                models[(place + 1) % count](X)

        return call_next

    for place, model in enumerate(models):
        model.inner.register_forward_hook(hook(place))

    def work(place: int) -> list[float]:
        local.is_outer = True
        with torch.no_grad():
            return models[place](X).tolist()  # type: ignore[no-any-return]

    found = together(*[lambda place=place: work(place) for place in range(count)])

    refused = [one for one in found if isinstance(one, WorkerError)]
    assert len(refused) == 1
    assert "would wait for ever" in str(refused[0])
    assert [one for one in found if one is not refused[0]] == [ANSWER] * (count - 1)
    assert [model(X).tolist() for model in models] == [ANSWER] * count


def test_turns_that_are_waited_for_without_a_ring():
    """A thread that has one turn may wait for another one, which comes when its owner is done."""
    first, second = Turn(), Turn()
    waits = threading.Event()
    second.take(None, "second")

    def work() -> bool:
        first.take(None, "first")
        waits.set()
        try:
            return second.try_until(Deadline(nearest(60).at, 60))  # type: ignore[union-attr]
        finally:
            first.give()

    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    waits.wait()
    second.give()
    thread.join()

    assert found == [True]


def test_turn_is_taken_again_by_its_owner():
    """A thread may take a turn that it has, and others get it when it was given back as often."""
    turn = Turn()
    turn.take(None, "it")
    assert turn.try_take()
    turn.give()
    assert together(turn.try_take) == [False]
    turn.give()
    assert together(lambda: (turn.try_take(), turn.give())) == [(True, None)]


def test_worker_state_while_another_thread_calls(repo: str, tmp_path: Path):
    """Whoever asks sees that a worker is busy, and with what number of calls, without waiting for it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    model = load(repo)
    thread = threading.Thread(target=model.meet, args=(fifo, "r"))
    thread.start()
    until(lambda: model.isohub.state == "busy")

    calls = isohub.workers()[0].calls
    fifo.open("w").close()
    thread.join()

    assert isohub.workers()[0].calls == calls + 1
