"""Weights that are kept once: when they are not, who may end, and what threads and forks write meanwhile."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub import api
from tests.helpers.equal_weights import (
    TENSOR_BYTES,
    WEIGHTS_BYTES,
    by_numpy,
    by_tensor,
    equal_bytes,
    loader,
    seen,
    use,
    watcher,
)
from tests.helpers.programs import Program
from tests.helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def load(tmp_path: Path, forkserver: int) -> Callable[..., torch.nn.Module]:
    """A function that loads the model of version `number`."""
    return loader(tmp_path)


@pytest.mark.parametrize("how", ["closed", "killed"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_ends(load: Callable[..., torch.nn.Module], how: str, which: int):
    """When a worker ends, what this program has of its weights stays, and the others go on."""
    models = [load(0), load(1), load(2)]
    before = seen(models[0])
    models[which].w0.data[0, 0] = 3
    mine = seen(models[which])
    worker = isohub.workers()[which]
    if how == "closed":
        worker.close()
    else:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(isohub.errors.BrokenWorkerError):
            use(models[which])

    assert mine == seen(models[which])
    models[which].w1.data[0, 0] = 4  # nobody else's any more
    others = [model for model in models if model is not models[which]]
    assert [before, before] == [seen(model) for model in others] == [use(model) for model in others]
    by_tensor(others[0])
    assert seen(others[0]) == use(others[0])
    assert before == seen(others[1]) == use(others[1])


def test_watcher_killed(load: Callable[..., torch.nn.Module]):
    """When the watcher is killed, every write is seen none the less, and nothing is shared from then on."""
    models = [load(0), load(1)]
    before = seen(models[0])
    by_tensor(models[0])
    os.kill(watcher(), signal.SIGKILL)
    until(lambda: not api._registry._sharing._watcher.notes.alive)
    by_numpy(models[0])
    models[1].add(3, 2)

    assert seen(models[0]) == use(models[0])
    assert [*before[:3], before[3] + 2] == seen(models[1]) == use(models[1])
    assert equal_bytes() == [0, 0]
    models.append(load(2))
    assert before == seen(models[2]) == use(models[2])
    assert equal_bytes() == [0, 0, 0]


@pytest.mark.parametrize(
    "isolation",
    [
        isohub.Isolation(share_equal_weights=False),
        isohub.Isolation(restart="on-crash"),
        isohub.Isolation(memory_bytes=1 << 30),
    ],
    ids=["off", "restart", "memory_bytes"],
)
def test_not_shared(load: Callable[..., torch.nn.Module], isolation: isohub.Isolation):
    """Weights are live where the program asks for it, and where a limit or a successor needs them live."""
    models = [load(0), load(1, isolate=isolation), load(2, isolate=isolation)]

    assert equal_bytes() == [0, 0, 0]
    by_tensor(models[1])
    assert seen(models[1]) == use(models[1])
    assert api._registry._sharing.watcher_pid is None


def test_threads_there(load: Callable[..., torch.nn.Module]):
    """A worker whose code runs threads, which may write at any time, keeps its weights live."""
    models = [load(0), load(1, "busy"), load(2)]

    assert equal_bytes() == [WEIGHTS_BYTES, 0, WEIGHTS_BYTES]
    assert seen(models[0]) == use(models[0]) == seen(models[1]) == use(models[1]) == use(models[2])


@pytest.mark.parametrize("writer", ["tensor", "numpy"])
def test_writes_meanwhile(load: Callable[..., torch.nn.Module], writer: str):
    """Nothing of what other threads write is lost while a part is split, nor while it is shared."""
    first = load(0)
    done = threading.Event()
    counts = []

    def write() -> None:
        memory = first.w0.detach()
        step = memory.add_ if writer == "tensor" else memory.numpy().reshape(-1)[::997].__iadd__
        count = 0
        while not done.is_set() or count < 20:
            step(1)
            count += 1
        counts.append(count)

    before = first.w0.detach().view(-1)[::997].double().clone()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        second = load(1)  # compares them, and may share them, while they change
        for number in range(1, 4):
            use(first)
            first.add(number, 1)
    finally:
        done.set()
        thread.join()

    now = first.w0.detach().view(-1)[::997].double()
    assert torch.allclose(before + counts[0], now, atol=0.5, rtol=0)
    assert seen(first) == use(first)
    assert seen(second) == use(second)


def test_split_while_written(load: Callable[..., torch.nn.Module]):
    """Nothing of what other threads write to a part that is shared is lost when it goes live."""
    models = [load(0), load(1)]
    assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES]
    memory = models[0].steps
    started, counts = threading.Event(), []

    def write() -> None:
        for count in range(400):
            memory.add_(1)
            if count == 2:
                started.set()
        counts.append(400)

    thread = threading.Thread(target=write)
    thread.start()
    started.wait()
    while thread.is_alive():
        use(models[0])
    thread.join()

    assert torch.equal(torch.full_like(memory, 400), memory)
    assert equal_bytes() == [WEIGHTS_BYTES - TENSOR_BYTES, WEIGHTS_BYTES]
    models[0].count(1)
    assert float(memory[1]) == 401
    assert float(models[1].steps.sum()) == 0


def test_fork(load: Callable[..., torch.nn.Module]):
    """A fork of this program sees the weights, and its end changes nothing here."""
    models = [load(0), load(1)]
    before = seen(models[0])
    pid = os.fork()
    if pid == 0:
        models[0].w0.data[0, 0] = 9
        os._exit(0 if float(models[1].w0.detach()[0, 0]) != 9 else 1)

    assert os.waitpid(pid, 0)[1] == 0
    by_tensor(models[1])
    assert before == seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])


def test_shared_again(load: Callable[..., torch.nn.Module]):
    """Loads that come and go in two workers are shared each time, and nothing of them is kept."""
    kept = [load(0), load(1)]
    room = [worker.shares.room() for worker in isohub.workers()]
    for _ in range(3):
        models = [load(0, last=0.5), load(1, last=0.5)]
        assert equal_bytes() == [2 * WEIGHTS_BYTES] * 2
        assert seen(models[0]) == use(models[0]) == seen(models[1]) == use(models[1])
        del models
        gc.collect()
        for model in kept:
            use(model)  # the workers are told, and let go of them
            use(model)
    assert equal_bytes() == [WEIGHTS_BYTES] * 2
    assert room == [worker.shares.room() for worker in isohub.workers()]


def test_hurried(load: Callable[..., torch.nn.Module]):
    """A load with a near deadline is not made longer, and no other worker is ended for it."""
    models = [load(0)]
    with isohub.deadline(4.9):
        models.append(load(1))
    models.append(load(2))

    assert equal_bytes() == [WEIGHTS_BYTES, 0, WEIGHTS_BYTES]
    assert seen(models[0]) == use(models[0]) == use(models[1]) == use(models[2])


def test_after_shutdown(load: Callable[..., torch.nn.Module]):
    """When everything is shut down, what is seen of the weights stays, and loads after that are shared anew."""
    before = [load(0), load(1)]
    expected = seen(before[0])
    api._registry._sharing.close()  # as the end of the program does, also where a worker is busy
    by_tensor(before[0])
    assert seen(before[0]) == use(before[0]) != expected
    assert expected == use(before[1])
    assert equal_bytes() == [0, 0]
    for worker in isohub.workers():
        worker.close()
    models = [load(0), load(1)]

    assert equal_bytes() == [WEIGHTS_BYTES] * 2
    assert expected == seen(before[1]) == seen(models[0]) == use(models[1])


PROGRAM = """
import json, os, sys, torch, isohub
from isohub import api
torch.set_num_threads(1)
models = [isohub.load(sys.argv[1].replace("@v0", f"@v{number}"), "net") for number in range(2)]
pids = [worker.pid for worker in isohub.workers()] + [api._registry.forkserver_pid, api._registry._sharing.watcher_pid]
print(json.dumps({"pids": pids}), flush=True)
if sys.argv[2] == "wait":
    input()
"""


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_program_ends(load: Callable[..., torch.nn.Module], tmp_path: Path, how: str):
    """When the program ends, or is killed, nothing of it is left, the watcher included."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    repo = f"git+file://{tmp_path}/owner/repo@v0"
    program = Program([str(script), repo, "wait" if how == "killed" else "end"], tmp_path / "tmp")
    try:
        assert len(program.told()["pids"]) == 4
        if how == "killed":
            program.process.kill()
        program.process.wait(60)
        assert program.left() == []
    finally:
        program.close()


def test_forks_train_together(load: Callable[..., torch.nn.Module]):
    """After `share_memory` a fork's writes are seen here and by the worker; no load after it has these weights too."""
    models = [load(0), load(1)]
    before = seen(models[1])
    assert models[0].share_memory() is models[0]
    load(2)
    assert equal_bytes()[0] == 0

    pid = os.fork()
    if pid == 0:
        by_numpy(models[0])
        os._exit(0)

    assert os.waitpid(pid, 0) == (pid, 0)
    assert before != seen(models[0])
    assert seen(models[0]) == use(models[0])
    assert before == seen(models[1]) == use(models[1])
