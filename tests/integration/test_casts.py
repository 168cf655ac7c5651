"""Casts and moves of isolated modules, alone and in a container: as in process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import isohub
from isohub.errors import LocalProtocolError
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same

REPO = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.lstm = nn.LSTM(4, 4)
            self.head = nn.Linear(4, 2)
            self.head.bias.requires_grad_(False)
            self.register_buffer("table", torch.arange(4))

        def forward(self, x):
            x = self.norm(self.conv(x)).mean((2, 3))
            return self.head(self.lstm(x[None])[0][0])

        def seen(self):
            return {name: (tensor.dtype, tensor.device, tensor.stride()) for name, tensor in self.state_dict().items()}


    def net():
        return Net()
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("casts") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def both(repo: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    here = isohub.load(repo, "net", isolate=False)
    torch.manual_seed(0)
    return here, isohub.load(repo, "net")


CASTS: dict[str, Callable[[Any], Any]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "to dtype": lambda module: module.to(torch.float64),
    "to device and dtype": lambda module: module.to("cpu", torch.float16),
    "type": lambda module: module.type(torch.float64),
    "type by name": lambda module: module.type("torch.HalfTensor"),
    "channels last": lambda module: module.to(memory_format=torch.channels_last),
    "channels last and dtype": lambda module: module.to(dtype=torch.float64, memory_format=torch.channels_last),
    "cpu": lambda module: module.cpu(),
    "there and back": lambda module: module.half().float(),
}


@pytest.mark.parametrize("in_container", [False, True], ids=["alone", "in a container"])
@pytest.mark.parametrize("cast", CASTS)
def test_cast_is_that_in_process(repo: str, forkserver: int, cast: str, in_container: bool):
    """A cast gives the values, dtypes, strides and flags that it gives in process, here and in the worker."""
    here, model = both(repo)
    parameters = list(model.parameters())
    for one in (here, model):
        whole = nn.Sequential(one, nn.Linear(2, 2)) if in_container else one
        assert CASTS[cast](whole) is whole

    assert_same(dict(here.state_dict()), dict(model.state_dict()))
    assert here.seen() == model.seen()
    assert [p.requires_grad for p in here.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    if cast != "type":  # it makes the integers of a batch norm's counter and of the table floating point too
        x = torch.rand(2, 3, 5, 5).to(here.conv.weight.dtype)
        with torch.no_grad():
            assert_same(here.eval()(x), model.eval()(x))


@pytest.mark.parametrize("in_container", [False, True], ids=["alone", "in a container"])
@pytest.mark.parametrize("cast", [*CASTS, "to meta", "written in place"])
def test_gradients_are_cast_with_their_parameters(repo: str, forkserver: int, cast: str, in_container: bool):
    """Gradients that are there go through a cast as in process: the same values, dtypes, strides and objects."""
    casts = {
        **CASTS,
        "to meta": lambda module: module.to("meta"),
        "written in place": lambda module: module._apply(lambda tensor: tensor.fill_(2)),
    }
    seen = []
    for one in both(repo):
        one(torch.linspace(-1, 1, 150).reshape(2, 3, 5, 5)).square().sum().backward()
        before = {name: parameter.grad for name, parameter in one.named_parameters()}
        casts[cast](nn.Sequential(one) if in_container else one)
        after = {name: parameter.grad for name, parameter in one.named_parameters()}
        seen.append((after, [name for name in before if before[name] is after[name]]))

    assert_same(*seen)
    assert seen[1][0]["conv.weight"] is not None


@pytest.mark.parametrize("in_container", [False, True], ids=["alone", "in a container"])
@pytest.mark.parametrize(
    "move", [lambda module: module.to("meta"), lambda module: module.to_empty(device="meta")], ids=["to", "to_empty"]
)
def test_module_goes_to_meta_and_comes_back_empty(
    repo: str, forkserver: int, move: Callable[[Any], Any], in_container: bool
):
    """On the meta device a module has shapes alone, here and in the worker; `to_empty` gives it memory again."""
    here, model = both(repo)
    state = {key: value.clone() for key, value in here.state_dict().items()}
    answers = []
    for one in (here, model):
        whole = nn.Sequential(one) if in_container else one
        assert move(whole) is whole
        with torch.no_grad():
            answers.append(whole.eval()(torch.rand(2, 3, 5, 5, device="meta")))
    assert_same(*answers)
    assert here.seen() == model.seen()
    assert all(parameter.is_meta for parameter in model.parameters())
    for one in (here, model):
        (nn.Sequential(one) if in_container else one).to_empty(device="cpu")
        one.load_state_dict(state)
        one.lstm.flatten_parameters()

    assert_same(state, dict(model.state_dict()))
    x = torch.rand(2, 3, 5, 5)
    with torch.no_grad():
        assert_same(here(x), model(x))


@pytest.mark.parametrize(
    "ask",
    [
        lambda module: module.to(torch.int32),
        lambda module: module.to("nowhere"),
        lambda module: module.to([1]),
        lambda module: module.to("meta").cpu(),
        lambda module: module.to("meta").to("cpu"),
        lambda module: module.type("torch.Nothing"),
        lambda module: nn.Sequential(module).to(torch.int32),
    ],
    ids=["integer", "device", "list", "cpu of meta", "to cpu of meta", "type", "container"],
)
def test_what_torch_refuses_is_refused_alike(repo: str, forkserver: int, ask: Callable[[Any], Any]):
    """A cast that torch refuses raises the same type and text, and changes nothing."""
    here, model = both(repo)
    with pytest.raises(Exception) as expected:  # noqa: PT011 - it is what is compared
        ask(here)

    with pytest.raises(type(expected.value), match=re.escape(str(expected.value).splitlines()[0])):
        ask(model)

    assert here.seen() == model.seen()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which takes the module")
@pytest.mark.parametrize(
    "move",
    [lambda one: one.cuda(), lambda one: one.cuda(0), lambda one: one.to("cuda"), lambda one: one.to("cuda:1")],
    ids=["cuda", "cuda 0", "to cuda", "to cuda 1"],
)
def test_missing_gpu_is_named(repo: str, forkserver: int, move: Callable[[Any], Any]):
    """Without a GPU, a move there says that the worker has none, and changes nothing."""
    here, model = both(repo)

    with pytest.raises(RuntimeError, match=r"the worker has no device 'cuda(:\d)?'.*Keep the module on the CPU"):
        move(model)

    assert_same(dict(here.state_dict()), dict(model.state_dict()))
    assert here.seen() == model.seen()


def test_cast_of_a_part_stays_in_it(repo: str, forkserver: int):
    """A cast of one part leaves the others, and `recurse=False` leaves what is below."""
    here, model = both(repo)
    for one in (here, model):
        one.head.double()
        one._apply(lambda tensor: tensor.to(torch.int16) if tensor.dtype is torch.int64 else tensor, recurse=False)

    assert here.seen() == model.seen()
    with pytest.raises(LocalProtocolError, match="it computes other values"):
        model._apply(lambda tensor: tensor * 2)
