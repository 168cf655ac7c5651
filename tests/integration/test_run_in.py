"""`isohub.run_in`: a function of the caller's on the real module, in its worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

import isohub
from isohub.errors import LocalProtocolError, RemoteError
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same, both

REPO = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x))


    class Strange(Exception):
        pass


    class Vocabulary:
        words = ("a", "b")

        def fail(self):
            raise Strange("no such word")


    def net():
        return Net()


    def pair():
        return Net(), Vocabulary()
"""

X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run_in") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def whereabouts(module: Any, *args: Any, **kwargs: Any) -> tuple[int, str, tuple[Any, ...], dict[str, Any]]:
    return os.getpid(), type(module).__name__, args, kwargs


def test_function_gets_the_real_module(repo: str, forkserver: int):
    """A function runs in the worker, on the module of the repository's own class, with all its arguments."""
    model = isohub.load(repo, "net")

    assert isohub.run_in(model, whereabouts, 1, key="a") == (model.isohub.pid, "Net", (1,), {"key": "a"})
    assert isohub.run_in(model.head, whereabouts)[1] == "Linear"
    assert isohub.run_in(model, lambda module, other: other is module.head, model.head) is True


def test_closure_and_tensors_go_along(repo: str, forkserver: int):
    """A lambda brings what it closes over, and its result comes back with the values that it has in process."""
    plain, model = both(repo)
    shift, names = torch.arange(4.0), ["body", "head"]

    def use(module: Any, x: torch.Tensor) -> Any:
        return {name: getattr(module, name)(x + shift).detach() for name in names}

    assert_same(use(plain, X), isohub.run_in(model, use, X))


def test_object_is_a_target_too(repo: str, forkserver: int):
    """A function runs on what a RemoteObject stands for."""
    _, vocabulary = isohub.load(repo, "pair")

    assert isohub.run_in(vocabulary, lambda words, extra: [*words.words, extra], "c") == ["a", "b", "c"]


def test_change_of_the_module_is_seen(repo: str, forkserver: int):
    """What a function does to values, parts, flags and modes of the module is seen here at once."""
    model = isohub.load(repo, "net")

    def rebuild(module: Any) -> None:
        module.body.append(nn.BatchNorm1d(4))
        module.head = nn.Linear(4, 5, bias=False)
        module.body[0].bias.requires_grad_(False)
        module.eval()
        with torch.no_grad():
            module.body[0].weight.fill_(0.25)

    weight = model.body[0].weight
    isohub.run_in(model, rebuild)

    assert [name for name, _ in model.named_parameters()] == [
        "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "head.weight",
    ]  # fmt: skip
    assert model.body[0].weight is weight
    assert torch.equal(weight, torch.full((4, 4), 0.25))
    assert [model.body[0].bias.requires_grad, model.training, model.head.training] == [False, False, False]
    assert model(X).shape == (3, 5)


def test_gradients_go_through(repo: str, forkserver: int):
    """Gradients of arguments and of parameters flow through a function, bit for bit as in process."""
    plain, model = both(repo)

    def loss(module: Any, x: torch.Tensor) -> torch.Tensor:
        return (module.body(x).square().mean() + module.head.weight.abs().sum()) * 2

    seen = []
    for one, run in ((plain, loss), (model, lambda *args: isohub.run_in(model, loss, *args))):
        x = X.clone().requires_grad_()
        value = run(one, x) if one is plain else run(x)
        value.backward()
        seen.append((value, x.grad, {name: parameter.grad for name, parameter in one.named_parameters()}))

    assert_same(*seen)
    assert seen[1][2]["head.weight"] is not None


def test_functional_call(repo: str, forkserver: int):
    """`torch.func.functional_call` with other weights gives values and gradients of these, and leaves the module's."""
    plain, model = both(repo)

    def call(module: Any, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, weights, (x,))

    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for one in (plain, model):
        weights = {name: (value.detach() * 0.5).requires_grad_() for name, value in one.named_parameters()}
        output = call(plain, weights, X) if one is plain else isohub.run_in(model, call, weights, X)
        output.square().sum().backward()
        seen.append((output, {name: value.grad for name, value in weights.items()}))

    assert_same(*seen)
    assert_same(before, dict(model.state_dict()))
    assert [parameter.grad for parameter in model.parameters()] == [None] * 4


def test_parametrization(repo: str, forkserver: int):
    """A parametrization that is registered there is trained from here as in process, and can be removed again."""
    plain, model = both(repo)

    def normalize(module: Any) -> None:
        parametrizations.weight_norm(module)

    def plainly(module: Any) -> None:
        parametrize.remove_parametrizations(module, "weight")

    seen = []
    for one in (plain, model):
        normalize(one.head) if one is plain else isohub.run_in(one.head, normalize)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.5)
        one(X).square().sum().backward()
        optimizer.step()
        trained = one(X), {name: value.detach().clone() for name, value in one.named_parameters()}
        plainly(one.head) if one is plain else isohub.run_in(one.head, plainly)
        seen.append((trained, one(X), dict(one.state_dict())))

    assert_same(*seen)
    assert "head.parametrizations.weight.original0" in seen[1][0][1]


def test_graph_module_of_torch_fx(repo: str, forkserver: int):
    """torch.fx traces the module there, and the traced one is used from here; here it says so and names that way."""
    plain, model = both(repo)
    traced = isohub.run_in(model, torch.fx.symbolic_trace)

    assert_same(plain(X).detach(), traced(X).detach())
    for whole in (model, nn.Sequential(model)):
        with pytest.raises(LocalProtocolError, match=r"isohub.run_in\(model, torch.fx.symbolic_trace\)"):
            torch.fx.symbolic_trace(whole)


@pytest.mark.parametrize(
    "exchange",
    [
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        lambda module: parametrize.register_parametrization(module, "weight", nn.Tanh()),
        lambda module: functional_call(module, {"weight": torch.ones(2, 4)}, (X,)),
    ],
    ids=["prune", "parametrize", "functional_call"],
)
def test_exchange_from_here_is_refused_and_leaves_nothing(repo: str, forkserver: int, exchange: Callable[[Any], Any]):
    """What exchanges a weight behind the module's back names run_in, and leaves the module as it was."""
    model = isohub.load(repo, "net")
    names, before = list(model.state_dict()), model(X).detach()

    with pytest.raises(LocalProtocolError, match=r"isohub\.run_in\(module, function"):
        exchange(model.head)

    assert list(model.state_dict()) == names
    assert_same(before, model(X).detach())
    isohub.run_in(model.head, exchange)


@pytest.mark.parametrize("target", [None, nn.Linear(2, 2), "head", torch.ones(2)], ids=lambda one: type(one).__name__)
def test_target_must_live_in_a_worker(target: object):
    """Anything but an isolated module or a RemoteObject is a TypeError that says what was given."""
    with pytest.raises(TypeError, match=f"an isolated module or a RemoteObject, and got a {type(target).__name__}$"):
        isohub.run_in(target, len)


def test_exception_passes(repo: str, forkserver: int):
    """What the function raises is raised here, of its builtin type, or a RemoteError; the worker goes on."""
    module, vocabulary = isohub.load(repo, "pair")

    def fail(_: object) -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        isohub.run_in(module, fail)
    with pytest.raises(RemoteError, match="no such word"):
        isohub.run_in(vocabulary, lambda words: words.fail())
    assert isohub.run_in(module, whereabouts)[0] == module.isohub.pid


def test_function_that_cannot_cross_is_named(repo: str, forkserver: int):
    """A function that closes over what no process can be given is refused before anything runs."""
    model = isohub.load(repo, "net")
    lock = threading.Lock()

    with pytest.raises(LocalProtocolError, match="lock"):
        isohub.run_in(model, lambda module: lock.locked())

    assert isohub.run_in(model, whereabouts)[0] == model.isohub.pid
