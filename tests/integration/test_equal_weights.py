"""Weights that are equal in several workers: kept once, and split again when somebody writes."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub import api
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("one_thread")]

HUBCONF = """
import threading
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        # 4 times 4 MiB, no two of them alike, beside small ones.
        for number in range(4):
            values = torch.arange(1 << 20).remainder(1009 + number).reshape(1024, 1024) / 1024 - 0.5
            if number == 3:
                values += last
            setattr(self, f"w{number}", nn.Parameter(values))
        self.register_buffer("steps", torch.zeros(1 << 20))
        self.relu = nn.ReLU()
        self.bias = nn.Parameter(torch.zeros(1024))

    def forward(self, x):
        for number in range(4):
            x = torch.tanh(x @ getattr(self, f"w{number}")) + self.bias
        return x

    def count(self, place):
        self.steps[place] += 1

    def add(self, number, value):
        with torch.no_grad():
            getattr(self, f"w{number}").view(-1)[-1] += value

    def add_around_relu(self, number, value):
        self.add(number, value / 2)
        self.relu(torch.zeros(1))
        self.add(number, value / 2)

    def count_around_relu(self):
        self.count(0)
        self.relu(torch.zeros(1))
        self.count(0)
        return float(self.steps[0])

    def sums(self):
        return [float(getattr(self, f"w{number}").double().sum()) for number in range(4)]

def net(last=0.0):
    return Net(last)

def busy():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return Net(0.0)
"""
TENSOR_BYTES = 4 << 20
WEIGHTS_BYTES = 5 * TENSOR_BYTES


@pytest.fixture
def repo(tmp_path: Path, forkserver: int) -> Path:
    return make_repo(tmp_path / "owner" / "repo", {f"v{n}": {"hubconf.py": f"# {n}\n{HUBCONF}"} for n in range(4)})


@pytest.fixture
def load(repo: Path) -> Callable[..., torch.nn.Module]:
    """A function that loads the model of version `number`."""

    def load(number: int, name: str = "net", /, *, isolate: isohub.Isolation | None = None, last: float = 0.0):
        kwargs = {} if name == "busy" else {"last": last}
        return isohub.load(url(repo, f"v{number}"), name, isolate=isolate or isohub.Isolation(), **kwargs)

    return load


def equal_bytes() -> list[int]:
    """Return how much of each worker's weights is kept once, in the order in which they were loaded."""
    return [worker.status().equal_weights_bytes for worker in isohub.workers()]


def weights_memory() -> int:
    """Return the memory that all segments take, here and in all workers."""
    total = 0
    for pid in (os.getpid(), *(worker.pid for worker in isohub.workers())):
        text = Path(f"/proc/{pid}/smaps").read_text()
        for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
            if "memfd:isohub" in mapping.partition("\n")[0]:
                total += int(re.search(r"^Pss: +(\d+) kB", mapping, re.MULTILINE)[1]) << 10
    return total


def use(model: torch.nn.Module) -> list[float]:
    """Have the worker look at all weights, and return what it sees."""
    return model.sums()


def seen(model: torch.nn.Module) -> list[float]:
    """Return what is seen here, in the same form."""
    return [float(getattr(model, f"w{number}").detach().double().sum()) for number in range(4)]


def watcher() -> int:
    pid = api._registry._sharing.watcher_pid
    assert pid is not None
    return pid


def test_once(load: Callable[..., torch.nn.Module]):
    """Equal weights of several refs take the memory of one, and each gives what it gave."""
    first = load(0)
    use(first)
    alone = weights_memory()
    x = torch.rand(2, 1024)
    expected = first(x)
    others = [load(number) for number in range(1, 4)]

    for model in others:
        assert torch.equal(expected, model(x))
        assert seen(first) == seen(model) == use(model)
    assert torch.equal(expected, first(x))
    assert equal_bytes() == [WEIGHTS_BYTES] * 4
    # Beside them each has an arena for inputs and one for results, of which a few pages are in use.
    assert weights_memory() < alone + 3 * (64 << 10)


def test_one_tensor_differs(load: Callable[..., torch.nn.Module]):
    """Of versions that differ in one tensor, the others are kept once."""
    models = [load(0), load(1, last=0.25)]

    assert equal_bytes() == [WEIGHTS_BYTES - TENSOR_BYTES] * 2
    assert seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])
    assert seen(models[0])[:3] == seen(models[1])[:3]
    assert seen(models[0])[3] != seen(models[1])[3]


def by_tensor(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.w1[1023, 1023] += 8


def by_data(model: torch.nn.Module) -> None:
    model.w1.data[0, 0] = 8


def by_numpy(model: torch.nn.Module) -> None:
    model.w1.detach().numpy()[512, 512] = 8


def by_view(model: torch.nn.Module) -> None:
    model.w1.detach().view(-1)[4097:4099].fill_(8)


def by_state_dict(model: torch.nn.Module) -> None:
    model.load_state_dict({**model.state_dict(), "w1": torch.ones(1024, 1024)})


def by_optimizer(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD([model.w1], lr=0.5)
    model.w1.grad = torch.ones_like(model.w1)
    optimizer.step()


@pytest.mark.parametrize("write", [by_tensor, by_data, by_numpy, by_view, by_state_dict, by_optimizer])
def test_written_here(load: Callable[..., torch.nn.Module], write: Callable[[torch.nn.Module], None]):
    """What this program writes reaches that worker with the next call, and no other; only that tensor is split."""
    models = [load(0), load(1), load(2)]
    before = seen(models[0])
    write(models[1])
    now = seen(models[1])

    assert now != before
    assert [before, now, before] == [use(model) for model in models]
    assert [before, now, before] == [seen(model) for model in models]
    if write is not by_state_dict:
        assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES - TENSOR_BYTES, WEIGHTS_BYTES]


def test_written_again(load: Callable[..., torch.nn.Module]):
    """A tensor that was split once is live for good: each side sees what the other writes."""
    models = [load(0), load(1)]
    by_tensor(models[0])
    use(models[0])
    for value in (1.0, 2.0):
        by_tensor(models[0])
        assert seen(models[0]) == use(models[0])
        models[0].add(1, value)
        assert seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])


def test_written_there(load: Callable[..., torch.nn.Module]):
    """What a worker's code writes is seen here when the call returns, and by no other worker."""
    models = [load(0), load(1)]
    before = seen(models[0])
    models[1].add(2, 16)

    assert before[2] + 16 == seen(models[1])[2]
    assert before == seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])
    assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES - TENSOR_BYTES]


def test_written_on_both_sides(load: Callable[..., torch.nn.Module]):
    """What is written here and there to one tensor, within one call, is all kept."""
    models = [load(0), load(1)]
    expected = models[1].w2.detach().clone()
    expected[0, 0], expected[511, 7] = 5, 6
    expected[-1, -1] += 1

    def hook(*_: object) -> None:
        models[1].w2.data[0, 0] = 5
        models[1].w2.data[511, 7] = 6

    models[1].relu.register_forward_pre_hook(hook)
    models[1].add_around_relu(2, 1)

    assert torch.equal(expected, models[1].w2.detach())
    assert seen(models[1]) == use(models[1])
    assert seen(models[0]) == use(models[0])


def test_seen_in_hooks(load: Callable[..., torch.nn.Module]):
    """A hook here sees what the worker's code wrote before, and is itself seen by what follows."""
    models = [load(0), load(1)]
    found = []

    def hook(*_: object) -> None:
        found.append(float(models[1].steps[0]))
        models[1].steps[0] += 10

    models[1].relu.register_forward_pre_hook(hook)

    assert models[1].count_around_relu() == 12
    assert found == [1.0]
    assert [float(model.steps[0]) for model in reversed(models)] == [12.0, 0.0]


def test_one_page_by_both(load: Callable[..., torch.nn.Module]):
    """Where both sides write to one page before either knows, every byte is of the one who wrote it."""
    models = [load(0), load(1)]
    models[1].steps[1] = 7  # noted; the worker is told with the request, and writes to the same page
    models[1].count(0)

    assert models[1].steps[:3].tolist() == [1.0, 7.0, 0.0]
    assert models[0].steps[:3].tolist() == [0.0, 0.0, 0.0]


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


def test_several_workers_of_one_commit(load: Callable[..., torch.nn.Module]):
    """Workers of one commit, and loads of one worker, have one copy."""
    own = isohub.Isolation(dedicated=True)
    models = [load(0, isolate=own), load(0, isolate=own), load(0), load(0)]
    before = seen(models[0])

    assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES, 2 * WEIGHTS_BYTES]
    by_tensor(models[3])
    assert [before, before, before, seen(models[3])] == [use(model) for model in models]


def train(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(2, 1024)).square().mean().backward()
        model.count(5)
        optimizer.step()
    model(torch.rand(1, 1024))
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_training(load: Callable[..., torch.nn.Module]):
    """Training after sharing is bit for bit what it is without."""
    expected = train(load(0, isolate=isohub.Isolation(share_equal_weights=False)))
    models = [load(1), load(2)]
    before = seen(models[1])

    assert equal_bytes() == [0, WEIGHTS_BYTES, WEIGHTS_BYTES]
    for one, other in zip(expected, train(models[0]), strict=True):
        assert torch.equal(one, other)
    assert seen(models[0]) == use(models[0])
    assert before == seen(models[1]) == use(models[1])


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


def test_copies(load: Callable[..., torch.nn.Module]):
    """State dicts, views and results that are weights show what is written to them, before and after a split."""
    models = [load(0), load(1)]
    state, view = models[0].state_dict(), models[0].w0.detach()[5]
    address = models[0].w0.data_ptr()
    view.fill_(2)

    assert torch.equal(torch.full((1024,), 2.0), state["w0"][5])
    use(models[0])
    state["w0"][5] = 3
    assert seen(models[0]) == use(models[0])
    assert torch.equal(torch.full((1024,), 3.0), view)
    assert address == models[0].w0.data_ptr()
    models[0].add(0, 1)
    assert float(state["w0"][-1, -1]) == float(models[1].w0.detach()[-1, -1]) + 1
