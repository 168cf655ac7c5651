"""What stands for a module in a worker: `IsolatedModule`, used as the module itself is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url

REPO = """
    import warnings

    import torch
    from torch import nn


    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
            self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
            self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 1)})
            self.norm = nn.BatchNorm1d(3)
            self.dropout = nn.Dropout(0.5)
            self.nothing = None
            self.conf = 0.25
            self.names = ["cat", "dog"]

        def forward(self, x):
            x = self.backbone(x)
            for block in self.blocks:
                x = block(x)
            return self.heads["a"](self.dropout(self.norm(x)))

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()  # stays frozen
            return self

        def predict(self, x, *, top=1):
            return self(x).topk(top).indices, self.names[: top]

        def modes(self):
            return {name: module.training for name, module in self.named_modules()}

        def flags(self):
            return {name: parameter.requires_grad for name, parameter in self.named_parameters()}

        def dtypes(self):
            return {name: parameter.dtype for name, parameter in self.state_dict().items()}

        def first(self):
            return self.blocks[0]

        def is_norm(self, module):
            return module is self.norm

        def extra_repr(self):
            return f"conf={self.conf}"


    def frozen():
        return Frozen()


    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.scale: float = 2.0

        def forward(self, x):
            return self.inner(x) * self.scale

        @torch.jit.export
        def twice(self, x: torch.Tensor, times: int = 2):
            return self.forward(x) * times


    def scripted():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.script(Scripted())
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("modules") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def test_submodules_can_be_called(repo: str, forkserver: int):
    """Each part of a module tree runs on its own in the worker: by attribute, index, key and path."""
    model = isohub.load(repo, "frozen").eval()
    x = torch.rand(2, 4)
    with torch.no_grad():
        hidden = model.backbone(x)
        expected = model.backbone[2](model.backbone[1](model.backbone[0](x)))
        assert torch.equal(expected, hidden)
        plain = torch.nn.functional.linear(x, model.backbone[0].weight, model.backbone[0].bias)
        assert torch.equal(plain, model.backbone[0](x))
        for block in model.blocks:
            hidden = block(hidden)
        assert torch.equal(model(x), model.heads["a"](model.norm(hidden)))
        assert torch.equal(model.heads["b"](hidden), model.get_submodule("heads.b")(hidden))


def test_containers_behave_as_in_process(repo: str, forkserver: int):
    """Sequential, ModuleList and ModuleDict are indexed, sliced, counted and walked as in process."""
    model = isohub.load(repo, "frozen")

    assert (len(model.backbone), len(model.blocks), len(model.heads)) == (3, 3, 2)
    assert model.blocks[-1] is model.blocks[2] is list(model.blocks)[2]
    assert torch.Size([2, 4]) == model.backbone[:2](torch.ones(2, 4)).shape
    assert list(model.heads) == ["a", "b"] == list(model.heads.keys())
    assert "a" in model.heads
    assert model.heads["a"] is dict(model.heads.items())["a"]
    assert model.first() is model.blocks[0]
    assert model.is_norm(model.norm)
    with pytest.raises(IndexError):
        _ = model.blocks[3]


def test_slice_of_a_container_is_over_the_same_modules(repo: str, forkserver: int):
    """A slice holds the same modules of the worker, in the same memory, and leaves the whole as it is."""
    model = isohub.load(repo, "frozen").eval()
    tail, x = model.blocks[1:], torch.rand(2, 3)
    with torch.no_grad():
        tail[0].weight.fill_(0.5)
        tail[0].bias.zero_()
        expected = (x.sum(1, keepdim=True) * 0.5).expand(2, 3)

        assert len(tail) == 2
        assert torch.allclose(expected, model.blocks[1](x))
        assert torch.equal(model.blocks[1](x), tail[0](x))
    assert model.blocks[1].weight.data_ptr() == tail[0].weight.data_ptr()
    del tail
    assert model.first() is model.blocks[0]


def test_attributes_and_methods_of_a_module(repo: str, forkserver: int):
    """Plain attributes are the worker's own, set ones change what it does, and methods run there."""
    model = isohub.load(repo, "frozen").eval()
    x = torch.rand(2, 4)

    assert (model.conf, model.names, model.nothing) == (0.25, ["cat", "dog"], None)
    model.conf = 0.5
    model.names = ["x", "y"]
    indices, names = model.predict(x, top=1)
    assert torch.equal(model(x).topk(1).indices, indices)
    assert (model.conf, names) == (0.5, ["x"])
    with pytest.raises(AttributeError, match="nowhere"):
        _ = model.nowhere
    model.extra = 5
    assert model.extra == 5
    del model.extra
    assert not hasattr(model, "extra")


def test_modes_reach_the_worker(repo: str, forkserver: int):
    """`train` and `eval`, of the whole and of parts, are the worker's own, a frozen norm included."""
    model = isohub.load(repo, "frozen")
    assert model.training
    model.train()
    expected = dict.fromkeys((name for name, _ in model.named_modules()), True) | {"norm": False}

    assert expected == model.modes() == {name: module.training for name, module in model.named_modules()}
    x = torch.ones(64, 4)
    assert not torch.equal(model(x), model(x))  # dropout
    assert model.eval() is model
    assert not any(model.modes().values())
    assert torch.equal(model(x), model(x))
    model.blocks[1].train()
    assert [name for name, mode in model.modes().items() if mode] == ["blocks.1"]
    assert model.blocks[1].training


def test_text_shows_the_structure_and_the_origin(repo: str, forkserver: int):
    """`repr` is the structure as the repository's own module prints it, and tells where it is from."""
    text = repr(isohub.load(repo, "frozen"))
    here = isohub.load(repo, "frozen", isolate=False)

    assert text.startswith(repr(here))
    assert "(1): ReLU()" in text
    assert "conf=0.25" in text
    assert "frozen of owner/repo:v1" in text


def test_names_and_order_are_those_in_process(repo: str, forkserver: int):
    """Names and order of parameters, buffers, modules and the state dict are those of a load in process."""
    model = isohub.load(repo, "frozen")
    here = isohub.load(repo, "frozen", isolate=False)

    assert list(here.state_dict()) == list(model.state_dict())
    for walk in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        assert [name for name, _ in getattr(here, walk)()] == [name for name, _ in getattr(model, walk)()], walk
    assert here.state_dict()._metadata == model.state_dict()._metadata


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (lambda model: model.half(), torch.float16),
        (lambda model: model.double(), torch.float64),
        (lambda model: model.bfloat16(), torch.bfloat16),
        (lambda model: model.to(torch.float64), torch.float64),
        (lambda model: model.to(torch.ones(1, dtype=torch.float64)), torch.float64),
    ],
    ids=["half", "double", "bfloat16", "to dtype", "to a tensor's"],
)
def test_casts_change_both_sides(repo: str, forkserver: int, cast: Callable[[Any], Any], dtype: torch.dtype):
    """A cast changes parameters here and in the worker, keeps parameter objects, and is undone by another."""
    model = isohub.load(repo, "frozen").eval()
    parameters = list(model.parameters())
    before = parameters[0].detach().clone()

    assert cast(model) is model
    assert {dtype} == {p.dtype for p in model.parameters()}
    expected = {name: torch.int64 if "num_batches" in name else dtype for name in model.state_dict()}
    assert expected == model.dtypes()
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(before.to(dtype), parameters[0])
    assert dtype == model(torch.ones(2, 4, dtype=dtype)).dtype
    model.float()
    assert torch.equal(before.to(dtype).float(), parameters[0])
    model.conf = 1
    with torch.no_grad():
        parameters[0].fill_(2.0)
        assert torch.equal(torch.full((1, 4), 8.0) + model.backbone[0].bias, model.backbone[0](torch.ones(1, 4)))


def test_frozen_parameters_are_frozen_on_both_sides(repo: str, forkserver: int):
    """`requires_grad_` of the whole and of a part is known here and in the worker."""
    model = isohub.load(repo, "frozen")
    assert model.requires_grad_(False) is model
    assert not any(model.flags().values())
    assert not any(p.requires_grad for p in model.parameters())
    model.heads["a"].requires_grad_()
    expected = {name: name.startswith("heads.a.") for name, _ in model.named_parameters()}

    assert expected == model.flags() == {name: p.requires_grad for name, p in model.named_parameters()}


def test_script_module_behaves_as_one(repo: str, forkserver: int):
    """A ScriptModule has its parts, weights, code, attributes and exported methods."""
    torch.manual_seed(0)
    model = isohub.load(repo, "scripted")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = isohub.load(repo, "scripted", isolate=False)
    x = torch.rand(4, 3)
    with torch.no_grad():
        assert torch.equal(here(x), model(x))
        assert torch.equal(here.twice(x), model.twice(x))
        assert torch.equal(here.twice(x, 3), model.twice(x, times=3))
        assert torch.equal(here.inner(x), model.inner(x))
        model.scale = 4.0
        here.scale = 4.0
        assert torch.equal(here(x), model(x))
        model.inner.weight.zero_()
        assert torch.equal((here.inner.bias * 4.0).expand(4, 2), model(x))
    assert here.code == model.code
    assert model.scale == 4.0
    assert [name for name, _ in here.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert list(here.state_dict()) == list(model.state_dict())
    assert not model.eval().inner.training
