"""What goes on around a call: generators of random numbers that it is given, and what cannot follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import isohub
from isohub.errors import LocalProtocolError, RemoteProtocolError
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same, both

REPO = """
    import sys

    import torch
    from torch import nn


    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, generator=None):
            return self.fc(x) + torch.rand(x.shape[0], 1, generator=generator)

        def failing(self, generator):
            torch.rand(3, generator=generator)
            raise ValueError("as it does")


    class Lie:
        def __init__(self, state):
            self.get_state = lambda: state


    def net():
        return Noise()


    def liar(state):
        # The module that makes the generators in this process.
        operations = sys.modules["isohub.worker.state"]._OPERATIONS
        operations["generator"] = lambda *_: state if isinstance(state, int) else Lie(state)
        return Noise()
"""

X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("surroundings") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def failing(model: Any, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="as it does"):
        model.failing(generator)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda model, generator: model(X, generator), id="call"),
        pytest.param(lambda model, generator: model(X, generator=generator), id="keyword"),
        pytest.param(lambda model, generator: model.forward(X, generator), id="method"),
        pytest.param(failing, id="error"),
    ],
)
def test_generator_goes_on_where_the_call_left_it(
    repo: str, forkserver: int, draw: Callable[[Any, torch.Generator], Any]
):
    """A generator that is an argument gives the numbers that it gives in process, in the call and after it."""
    found = []
    for model in both(repo):
        generator = torch.Generator().manual_seed(3)
        before = torch.get_rng_state()
        drawn = [draw(model, generator), draw(model, generator), torch.rand(2, generator=generator)]
        found.append((drawn, torch.equal(before, torch.get_rng_state())))

    assert_same(*found)


def test_generator_goes_through_run_in_and_gather(repo: str, forkserver: int):
    """A generator moves on over calls by `run_in` and `gather` as over any others."""
    plain, model = both(repo)
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = [plain(X, one) for _ in range(3)]
    actual = isohub.gather([(model, X, other), (model, X, other)])
    actual.append(isohub.run_in(model, lambda module, *args: module(*args), X, other))

    assert_same(expected, actual)


def unseeded() -> torch.Tensor:
    """Return a state that is right but for one flag, at which torch alone looks."""
    state = torch.Generator().manual_seed(5).get_state()
    state[12:16] = 0
    return state


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(7, id="no-generator"),
        pytest.param(torch.zeros(3, dtype=torch.uint8), id="too-short"),
        pytest.param(torch.full((5056,), 255, dtype=torch.uint8), id="place-outside"),
        pytest.param(torch.zeros(5056, dtype=torch.uint8, device="meta"), id="without-memory"),
        pytest.param("a text", id="no-tensor"),
        pytest.param(unseeded(), id="never-seeded"),
    ],
)
def test_state_that_is_none_ends_the_worker(repo: str, forkserver: int, state: Any):
    """A worker that lies about a generator is killed, and the generator stays as it was."""
    model = isohub.load(repo, "liar", state, isolate=isohub.Isolation(dedicated=True))
    generator = torch.Generator().manual_seed(3)
    with pytest.raises(RemoteProtocolError):
        model(X, generator)

    assert model.isohub.state == "broken"
    assert torch.equal(torch.Generator().manual_seed(3).get_state(), generator.get_state())


def record(model: Any) -> object:
    return make_fx(model)(X)


def fake(model: Any) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model.eval()


def dual(model: Any) -> object:
    with forward_ad.dual_level():
        return isohub.run_in(model, lambda module, given: module(given["x"]), {"x": forward_ad.make_dual(X, X)})


def dual_at_once(model: Any) -> object:
    with forward_ad.dual_level():
        return isohub.gather([(model, forward_ad.make_dual(X, X))])


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("follow", "words"),
    [
        pytest.param(record, "make_fx.*run_in.*export", id="make_fx"),
        pytest.param(fake, "FakeTensorMode.*run_in", id="fake"),
        pytest.param(dual, "forward mode.*run_in", id="dual"),
        pytest.param(dual_at_once, "forward mode.*run_in", id="dual-at-once"),
        pytest.param(lambda model: torch.func.vmap(model)(X), "vmap.*run_in", id="vmap"),
        pytest.param(lambda model: torch.func.grad(lambda x: model(x).sum())(X), "torch.func.*run_in", id="func"),
        pytest.param(lambda model: torch.jit.script(nn.Sequential(model)), 'returns="torchscript"', id="script"),
        pytest.param(lambda model: torch.export.export(model, (X,)), 'returns="export"', id="export"),
    ],
)
def test_what_cannot_follow_says_which_way_works(repo: str, forkserver: int, follow: Callable[[Any], Any], words: str):
    """What would have to look into the worker is refused by an error that names the way, and the worker lives."""
    plain, model = both(repo)
    with pytest.raises(LocalProtocolError, match=words):
        follow(model)

    assert model.isohub.state == "idle"
    torch.manual_seed(1)
    expected = plain.train()(X)
    torch.manual_seed(1)
    assert_same(expected, model.train()(X))


def test_one_graph_for_all_is_refused_with_the_reason(repo: str, forkserver: int):
    """`torch.compile(..., fullgraph=True)` around an isolated module ends in an error that tells of its worker."""
    _, model = both(repo)
    compiled = torch.compile(nn.Sequential(model), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"runs in its worker.*fullgraph=True.*model.compile"):
        compiled(X)
    torch.compiler.reset()


def test_compiled_module_is_compiled_in_its_worker(repo: str, forkserver: int):
    """`model.compile()` compiles the module where it is, and its calls go through what the compiler made."""
    _, model = both(repo)
    model.compile(backend="eager")

    assert model._compiled_call_impl is None
    assert isohub.run_in(model, lambda module: module._compiled_call_impl is not None)


def test_hooks_of_a_part_run_when_it_is_compiled(repo: str, forkserver: int):
    """A hook of the program on a part runs at each call, also when the part is compiled afterwards."""
    model = isohub.load(repo, "net")
    seen: list[str] = []
    name, part = next((name, part) for name, part in model.named_modules() if name)
    part.register_forward_hook(lambda *_: seen.append(name))
    model(X)
    part.compile(backend="eager")

    model(X)

    assert [name, name] == seen
