"""`Isolation(restart="on-crash")`: what comes back after a worker died, and that it is what it was."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, LostObjectError, WorkerTimeoutError
from tests.helpers.waiting import until

HUBCONF = """
    import os, signal, threading
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
            self.head = nn.Linear(8, 3)
            self.register_buffer("cache", None)
            self.bias_first = self.head.bias.detach()[:1]  # a view that nothing registers
            self.drawn = torch.rand(3)                     # a tensor that nothing registers

        def forward(self, x):
            return self.head(self.body(x))

        def remember(self, x):
            self.cache = x * 2
            self.register_buffer("later", x + 1, persistent=False)

        def first(self):
            return self.bias_first

        def draw(self):
            return self.drawn

        def die(self, *_):
            os.kill(os.getpid(), signal.SIGKILL)

        def hang(self):
            threading.Event().wait()

        def number(self):
            yield from range(3)

    class Box:
        def __init__(self, net):
            self.net = net
            self.count = 0

        def grow(self):
            self.count += 1
            return self.count

        def inside(self):
            return Box(self.net)

    def net(*args, **kwargs):
        return Net(*args, **kwargs)

    def several():
        net = Net()
        return net, Box(net), {"other": nn.Sequential(net.head, nn.ReLU())}

    def lazy():
        return nn.Sequential(nn.LazyLinear(3), nn.Tanh())

    def script():
        return torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))

    def tied():
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.GRU(4, 4))
        net[1].weight = net[0].weight
        return net

    def summed(values, *, scale):
        return Net(int(values.sum()) + len(scale))
"""
X = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, -0.3, 0.4], [2.0, 0.0, 1.0, -1.0]])
RESTART = isohub.Isolation(restart="on-crash")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def repo(repo_of: Callable[..., str]) -> str:
    return repo_of(HUBCONF)


def crash(model: Any) -> None:
    """Kill the worker of a model that nobody calls, and wait until it is gone."""
    pid = model.isohub.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())


def state_of(model: Any) -> dict[str, Any]:
    """Return all that a restart has to leave as it is: objects, memory, values, flags and modes."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {
        "objects": {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "flags": {name: (tensor.requires_grad, tensor.dtype, tensor.stride()) for name, tensor in tensors.items()},
        "modes": {path: (id(part), part.training) for path, part in model.named_modules()},
        "repr": repr(model).partition("\n#")[0],
        "saved": list(model.state_dict()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values, now = before.pop("values"), after.pop("values")
    for kind, found in before.items():
        assert found == after[kind], kind
    assert all(torch.equal(values[name], now[name]) for name in values)


def test_error_names_the_option(repo: str):
    """Without `restart`, the error says that the option exists, and every later call raises it again."""
    model = isohub.load(repo, "net")

    for _ in range(2):
        with pytest.raises(BrokenWorkerError, match=r'SIGKILL.*Isolation\(restart="on-crash"\)'):
            model.die()


def test_failed_call_raises_and_the_next_one_goes_well(repo: str):
    """The call in which the worker dies raises, and the next one is answered by a new worker with the same weights."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    expected, before, pid = model(X), state_of(model), model.isohub.pid

    with pytest.raises(BrokenWorkerError, match="the next call starts a new worker"):
        model.die()
    assert [worker.state for worker in isohub.workers()] == ["broken"]

    assert torch.equal(expected, model(X))
    assert_same(before, state_of(model))
    assert [worker.restarts for worker in isohub.workers()] == [1]
    assert model.isohub.pid != pid


def test_idle_death_costs_no_call(repo: str):
    """A worker that is found dead before anything was sent is replaced, and nobody gets an error."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    expected = model(X)

    crash(model)

    assert torch.equal(expected, model(X))


def test_training_goes_on_bit_for_bit(repo: str):
    """An optimizer made before goes on after two deaths; all steps and the result are those of an undisturbed run."""

    def losses(model: Any, deaths: tuple[int, ...]) -> list[float]:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        found = []
        torch.manual_seed(7)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(X).square().sum()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
            if step in deaths:
                crash(model)
        return [*found, *(tensor.sum().item() for tensor in model.state_dict().values())]

    torch.manual_seed(1)
    expected = losses(isohub.load(repo, "net"), ())
    torch.manual_seed(1)
    assert expected == losses(isohub.load(repo, "net", isolate=RESTART), (1, 4))


def parametrized(module: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(module.head)


def zeroed(module: Any) -> None:
    module.extra = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(module.head.weight)


CHANGES: dict[str, Callable[[Any], object]] = {
    "head": lambda m: setattr(m, "head", torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Linear(2, 2))),
    "head_twice": lambda m: [setattr(m, "head", torch.nn.Linear(8, width)) for width in (2, 5)],
    "part_of_new_head": lambda m: (
        setattr(m, "head", torch.nn.Sequential(torch.nn.Linear(8, 2))), setattr(m.head[0], "bias", None)
    ),
    "added": lambda m: m.body.add_module("more", torch.nn.Linear(8, 8)),
    "moved": lambda m: (setattr(m, "neck", m.head), setattr(m, "head", torch.nn.Linear(8, 1))),
    "deleted": lambda m: delattr(m.body, "2"),
    "parameter": lambda m: m.register_parameter("gain", torch.nn.Parameter(torch.ones(2))),
    "tied": lambda m: setattr(m.body[1], "weight", m.body[0].bias),
    "no_bias": lambda m: setattr(m.head, "bias", None),
    "buffer": lambda m: m.register_buffer("mean", torch.ones(2), persistent=False),
    "buffers_of_its_own": lambda m: m.remember(X),
    "double": lambda m: m.double(),
    "frozen": lambda m: (m.body.requires_grad_(False), setattr(m.head.bias, "requires_grad", False)),
    "modes": lambda m: (m.train(), m.body[2].eval()),
    "data": lambda m: setattr(m.head.weight, "data", torch.ones(3, 8)),
    "run_in": lambda m: isohub.run_in(m, parametrized),
    "assigned": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_surgery_comes_back(repo: str, change: str):
    """What was changed from here is there after a restart as before: parts, tensors, objects, casts, flags, modes."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    CHANGES[change](model)
    x = X.to(model.body[0].weight.dtype)
    torch.manual_seed(3)
    expected = model(x).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model(x)
    before = state_of(model)
    torch.manual_seed(3)
    changed = model(x).detach()
    assert not torch.equal(expected, changed)

    crash(model)
    torch.manual_seed(3)
    again = model(x).detach()

    assert torch.equal(changed, again)
    # Batch statistics move with the call in training mode, as they would without a crash.
    model.load_state_dict(before["values"], strict=False)
    assert_same(before, state_of(model))
    with torch.no_grad():
        model.body[0].bias.zero_()
    assert not torch.equal(changed, model(x))


@pytest.mark.parametrize("entrypoint", ["lazy", "script", "tied"])
def test_kinds_of_modules_come_back(repo: str, entrypoint: str):
    """Lazy modules with their sizes, ScriptModules, tied weights and those of an RNN are on the old memory again."""
    model = isohub.load(repo, entrypoint, isolate=RESTART).eval()

    def result() -> torch.Tensor:
        found = model(X)
        return (found[0] if isinstance(found, tuple) else found).detach()

    first = result()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    expected, before = result(), state_of(model)
    assert not torch.equal(first, expected)

    crash(model)

    assert torch.equal(expected, result())
    assert_same(before, state_of(model))
    model(X)[0].sum().backward()
    assert next(model.parameters()).grad is not None


def test_rebuild_writes_nothing(repo: str):
    """What is done again to have the shape, such as zeroing a weight, is done to a copy: trained weights stay."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    isohub.run_in(model, zeroed)
    with torch.no_grad():
        model.head.weight.fill_(2.0)
        model.extra.weight.fill_(3.0)
    before = state_of(model)

    crash(model)
    model(X)

    assert_same(before, state_of(model))


def test_unregistered_views_follow(repo: str):
    """A view of a weight that the code keeps for itself looks into the old memory, and what it drew is drawn again."""
    model = isohub.load(repo, "net", isolate=RESTART)
    drawn = model.draw()

    crash(model)
    model(X)
    with torch.no_grad():
        model.head.bias.fill_(5.0)

    assert model.first().tolist() == [5.0]
    assert torch.equal(drawn, model.draw())


def test_hooks_go_on(repo: str):
    """Hooks registered here, on the module and on a part, run after a restart as before."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    seen: list[str] = []
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.body[0].register_forward_hook(lambda *_: seen.append("part"))

    crash(model)
    model(X)

    assert seen == ["part", "model"]


def test_all_of_a_result_comes_back_together(repo: str):
    """Modules and objects of one load are built by one call again, and share what they shared."""
    model, box, rest = isohub.load(repo, "several", isolate=RESTART)
    single = isohub.load(repo, "net", isolate=RESTART).eval()
    expected = single(X)
    box.note = "kept"
    assert [box.grow(), box.grow()] == [1, 2]

    crash(model)

    assert (box.grow(), box.note) == (1, "kept")  # what it counted was in the worker alone
    assert box.net is model
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert rest["other"](torch.ones(1, 8)).abs().sum().item() == 0.0
    assert torch.equal(expected, single(X))
    assert [worker.restarts for worker in isohub.workers()] == [1]


def test_copies_come_back(repo: str):
    """A deep copy, and a copy of a part, are built again apart from their original."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    model.head = torch.nn.Linear(8, 2)
    whole, part = copy.deepcopy(model), copy.deepcopy(model.body)
    with torch.no_grad():
        whole.head.weight.zero_()
    expected = model(X), whole(X), part(X)

    crash(model)

    assert all(map(torch.equal, expected, (model(X), whole(X), part(X))))


def test_what_cannot_come_back_says_so(repo: str):
    """Iterators, results of calls, and a backward pass through a dead graph raise an error that names them."""
    model, box, _ = isohub.load(repo, "several", isolate=RESTART)
    numbers, inside, loss = model.number(), box.inside(), model(X).sum()
    made = isohub.run_in(model, lambda module: torch.nn.Linear(2, 2))

    crash(model)

    for lost, use in {
        "a RemoteObject (generator)": lambda: next(numbers),
        "a RemoteObject (hubconf.Box)": lambda: inside.count,
        "an isolated module (torch.nn.modules.linear.Linear)": lambda: made(torch.ones(2)),
        "the graph of a call, which a backward pass goes through": loss.backward,
    }.items():
        with pytest.raises(LostObjectError, match="cannot be built again") as caught:
            use()
        assert lost.replace("builtins.", "") == caught.value.lost.replace("builtins.", "")


def test_overdue_worker_is_replaced(repo: str):
    """A worker that was killed because it hung has a successor too."""
    model = isohub.load(repo, "net", isolate=isohub.Isolation(restart="on-crash", timeout_s=3.0)).eval()
    expected = model(X)

    with pytest.raises(WorkerTimeoutError, match="the next call starts a new worker"):
        model.hang()

    assert torch.equal(expected, model(X))


def test_arguments_are_those_of_then(repo: str):
    """The load is done again with its arguments as they were, whatever became of them in the caller's hands."""
    values, scale = torch.tensor([1, 2]), [1]
    model = isohub.load(repo, "summed", values, isolate=RESTART, scale=scale).eval()
    before = state_of(model)

    values.zero_()
    scale.clear()
    crash(model)
    model(X)

    assert_same(before, state_of(model))


def test_random_stream_here_stays(repo: str):
    """Building again draws no number of this program's generator."""
    model = isohub.load(repo, "net", isolate=RESTART).eval()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)

    crash(model)
    model(X)

    assert torch.equal(expected, torch.rand(4))
