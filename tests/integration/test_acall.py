"""`isohub.acall`: calls from an asyncio program."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
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
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
            self.calls = 0

        def forward(self, x, gate=None):
            self.calls += 1
            if gate:
                open(gate).read()
            return x * self.weight

        def meet(self, mine, other):
            # Opening waits for the one who opens it otherwise: they get past this only together.
            open(min(mine, other), "w" if mine < other else "r").close()
            return mine

        def modes(self):
            return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

        def fail(self):
            raise KeyError("no such word")

    class Counter:
        def __init__(self):
            self.count = 0

        def __call__(self, step):
            self.count += step
            return self.count

    def net():
        return Net()

    def counter():
        return Counter()
"""
X = torch.tensor([1.0, 10.0])
ANSWER = [1.0, 20.0]


@pytest.fixture
def repo(repo_of: RepoOf) -> str:
    return repo_of(HUBCONF)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: a worker that opens it to read waits until the test opens it to write."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def load(repo: str, **settings: Any) -> Any:
    return isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True, **settings))


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a program and check that it leaves no thread."""

    async def checked() -> Any:
        return await main()

    result = asyncio.run(checked())
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "isohub-acall"])
    return result


def test_everything_that_can_be_called(repo: str):
    """Modules, objects, their methods, run_in and loads can all be awaited."""

    async def main() -> list[Any]:
        model = await isohub.acall(isohub.load, repo, "net")
        counter = await isohub.acall(isohub.load, repo, "counter")
        await isohub.acall(model.eval)
        return [
            (await isohub.acall(model, X)).tolist(),
            (await isohub.acall(model, x=X)).tolist(),
            await isohub.acall(counter, 2),
            await isohub.acall(counter, step=3),
            model.training,
            await isohub.acall(isohub.run_in, model, lambda module: module.calls),
        ]

    assert run(main) == [ANSWER, ANSWER, 2, 5, False, 2]


async def begun(gate: Path) -> int:
    """Wait until a call is in the worker, at its end of the gate; return this end, by which closing lets it go on.

    That the worker is busy proves nothing: handles are given back in the background.
    """
    while True:
        await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)


def test_loop_goes_on_during_a_call(repo: str, gate: Path):
    """While a worker works, the loop runs other tasks."""

    async def main() -> list[float]:
        model = load(repo)
        call = asyncio.ensure_future(isohub.acall(model, X, gate))
        inside = await begun(gate)
        os.close(inside)
        return (await call).tolist()  # type: ignore[no-any-return]

    assert run(main) == ANSWER


def test_workers_run_in_parallel(repo: str, tmp_path: Path):
    """Calls of two workers are under way at the same time."""
    ends = [str(tmp_path / "a"), str(tmp_path / "b")]
    for end in ends:
        os.mkfifo(end)

    async def main() -> list[str]:
        one, other = load(repo, timeout_s=60), load(repo, timeout_s=60)
        return await asyncio.gather(
            isohub.acall(one.meet, ends[0], ends[1]), isohub.acall(other.meet, ends[1], ends[0])
        )

    assert run(main) == ends


def test_many_calls_of_one_worker_take_one_thread(repo: str, gate: Path):
    """A hundred calls that wait for one worker take one thread, and are made in their order."""
    counter = isohub.load(repo, "counter", isolate=isohub.Isolation(dedicated=True))
    threads: list[int] = []

    async def main() -> list[int]:
        calls = [asyncio.ensure_future(isohub.acall(counter, 1)) for _ in range(100)]
        await asyncio.sleep(0)
        threads.append(len([thread for thread in threading.enumerate() if thread.name == "isohub-acall"]))
        return await asyncio.gather(*calls)

    assert run(main) == list(range(1, 101))
    assert threads == [1]


def test_errors_pass(repo: str):
    """What a call raises is raised where it is awaited."""

    async def main() -> None:
        model = load(repo)
        with pytest.raises(KeyError, match="no such word"):
            await isohub.acall(model.fail)

    run(main)


def test_what_cannot_be_called_is_refused():
    """Something that is no callable is refused at once."""
    with pytest.raises(TypeError, match="can be called, and got a int"):
        isohub.acall(3)  # type: ignore[arg-type]


def test_modes_of_torch_hold(repo: str):
    """Gradients, inference mode and autocast hold in a call as where it was written."""

    async def main() -> list[tuple[bool, bool, bool]]:
        model = load(repo)
        calls = [isohub.acall(model.modes)]
        with torch.no_grad():
            calls.append(isohub.acall(model.modes))
        with torch.inference_mode():
            calls.append(isohub.acall(model.modes))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            calls.append(isohub.acall(model.modes))
        return [await call for call in calls]

    assert run(main) == [(True, False, False), (False, False, False), (False, True, False), (True, False, True)]


def test_gradients_pass(repo: str):
    """A result that was awaited leads back to what it was computed from."""
    model = load(repo)

    async def main() -> None:
        (await isohub.acall(model, X)).sum().backward()

    run(main)
    assert model.weight.grad.tolist() == [1.0, 10.0]


def test_context_variables_hold(repo: str):
    """A hook that runs in a call sees the context variables of the task."""
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    model = load(repo)
    model.register_forward_hook(lambda *_: seen.append(variable.get()))

    async def main() -> None:
        variable.set("the task's")
        await isohub.acall(model, X)

    run(main)
    assert seen == ["the task's"]


def test_cancelled_wait_ends_at_once(repo: str, gate: Path):
    """A cancelled task ends while the call goes on; the worker stays in step and answers the next one."""
    model = load(repo)

    async def main() -> list[float]:
        call = asyncio.ensure_future(isohub.acall(model, X, gate))
        inside = await begun(gate)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert model.isohub.state == "busy"
        os.close(inside)
        return (await isohub.acall(model, X * 2)).tolist()  # type: ignore[no-any-return]

    assert run(main) == [2.0, 40.0]


def test_call_that_was_cancelled_before_it_began_is_not_made(repo: str, gate: Path):
    """A call that still waits for its turn when it is cancelled never reaches the worker."""
    model = load(repo)

    async def main() -> None:
        first = asyncio.ensure_future(isohub.acall(model, X, gate))
        second = asyncio.ensure_future(isohub.acall(model, X))
        inside = await begun(gate)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        os.close(inside)
        await first

    run(main)
    assert model.calls == 1


def test_deadline_ends_the_worker(repo: str, gate: Path):
    """A call that is awaited within a deadline has it, and an overdue worker is killed."""
    model = load(repo)

    async def main() -> WorkerTimeoutError:
        with pytest.raises(WorkerTimeoutError) as caught, isohub.deadline(0.3):
            await isohub.acall(model, X, gate)
        return caught.value

    assert run(main).killed
    wait_for_end(model.isohub.pid)


def test_deadline_of_a_call_that_waits_for_its_turn(repo: str, gate: Path):
    """A call that other calls keep from beginning ends at its deadline, and the worker goes on."""
    model = load(repo)

    async def main() -> WorkerTimeoutError:
        first = asyncio.ensure_future(isohub.acall(model, X, gate))
        inside = await begun(gate)
        with pytest.raises(WorkerTimeoutError) as caught, isohub.deadline(0.3):
            await isohub.acall(model, X)
        os.close(inside)
        assert (await first).tolist() == ANSWER
        return caught.value

    assert not run(main).killed
    assert model.calls == 1


def test_fork_has_lanes_of_its_own(repo: str, gate: Path):
    """A fork made while calls are under way can make calls for itself."""
    model = load(repo)

    async def main() -> int:
        call = asyncio.ensure_future(isohub.acall(model, X, gate))
        inside = await begun(gate)
        child = os.fork()
        if not child:
            try:
                asyncio._set_running_loop(None)
                answer = asyncio.run(isohub.acall(torch.add, X, X))
                os._exit(0 if answer.tolist() == [2.0, 20.0] else 1)
            finally:
                os._exit(2)
        os.close(inside)
        await call
        return os.waitpid(child, 0)[1]

    assert run(main) == 0
