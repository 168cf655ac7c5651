"""The mirror of a module tree: that it stays one with the worker's tree, whatever either side does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import LocalProtocolError
from tests.helpers.repos import make_repo, url

REPO = """
    import torch
    from torch import nn


    class Rope(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.register_buffer("phases", torch.polar(torch.ones(3), torch.arange(3.0)))
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("other", torch.zeros(3))
            self.cast = []

        def forward(self, x):
            self.seen = self.seen + 1
            return self.inner(x)

        def weight(self):
            return self.inner.weight.detach().clone()

        def seen_there(self):
            return self.seen.clone()

        def half(self):
            self.cast.append("half")
            return super().half()

        def untie(self):
            self.tail.weight = nn.Parameter(torch.zeros(2, 2))


    def rope():
        return Rope()


    def tied():
        model = Rope()
        model.tail = nn.Linear(2, 2)
        model.tail.weight = model.inner.weight
        return model


    def blocks():
        return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Dropout())
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mirror") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


@pytest.mark.parametrize("cast", ["float", "double", "half", "bfloat16"])
def test_named_casts_leave_complex_tensors(repo: str, forkserver: int, cast: str):
    """`.double()` and its like cast what is floating point only, as those of torch do."""
    model = isohub.load(repo, "rope")
    here = isohub.load(repo, "rope", isolate=False)
    phases = model.phases.clone()
    getattr(model, cast)()
    getattr(here, cast)()

    assert {n: t.dtype for n, t in here.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert torch.equal(phases, model.phases)


def test_cast_to_a_dtype_takes_complex_tensors_along(repo: str, forkserver: int):
    """`.to(dtype)` casts complex tensors too, also where nothing else is left to cast."""
    model = isohub.load(repo, "rope").double()
    assert torch.complex64 is model.phases.dtype
    with pytest.warns(UserWarning, match="Complex modules"):
        model.to(torch.complex128)

    assert {torch.complex128} == {tensor.dtype for tensor in model.state_dict().values()}


def test_cast_is_the_method_of_that_name(repo: str, forkserver: int):
    """A module that has a `half` of its own is cast by it."""
    model = isohub.load(repo, "rope")
    model.half()

    assert model.cast == ["half"]
    assert torch.float16 is model.inner.weight.dtype


def test_shared_memory_stays_the_worker_s(repo: str, forkserver: int):
    """`share_memory` changes nothing, since the memory is shared: both sides go on with the same."""
    model = isohub.load(repo, "rope")
    address = model.inner.weight.data_ptr()

    assert model.share_memory() is model
    with torch.no_grad():
        model.inner.weight.fill_(3.0)
    assert address == model.inner.weight.data_ptr()
    assert torch.equal(torch.full((2, 2), 3.0), model.weight())


@pytest.mark.parametrize("change", [torch.Tensor.share_memory_, torch.Tensor.clone], ids=["in place", "anew"])
def test_function_that_gives_other_memory_changes_nothing(repo: str, forkserver: int, change: Callable[[Any], Any]):
    """A function over all tensors that gives them another memory leaves them in that of the worker."""
    model = isohub.load(repo, "rope")
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    model._apply(change)

    for name, tensor in model.state_dict().items():
        assert before[name][0] == tensor.data_ptr(), name
        assert torch.equal(before[name][1], tensor), name


@pytest.mark.parametrize(
    "change", [lambda tensor: tensor + 1, lambda tensor: tensor.flatten(), lambda tensor: tensor.numel()],
    ids=["values", "shape", "no tensor"],
)  # fmt: skip
def test_function_that_makes_other_values_is_refused(repo: str, forkserver: int, change: Callable[[Any], Any]):
    """A function over all tensors that makes other values is refused, and no tensor has changed."""
    model = isohub.load(repo, "rope")
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}

    with pytest.raises(LocalProtocolError, match="leave the worker's as they are"):
        model._apply(change)

    for name, tensor in model.state_dict().items():
        assert before[name][0] == tensor.data_ptr(), name
        assert torch.equal(before[name][1], tensor), name


def test_function_that_writes_in_place_runs_once_on_each_tensor(repo: str, forkserver: int):
    """A function that keeps the memory runs on the tensors themselves, so the worker sees what it wrote."""
    model = isohub.load(repo, "rope")
    before = model.weight()
    model.inner._apply(lambda tensor: tensor.add_(1.0))

    assert torch.equal(before + 1.0, model.weight())
    assert model.cpu() is model


def test_update_under_inference_mode_makes_usable_tensors(repo: str, forkserver: int):
    """A tree that changes during a call under inference mode has tensors that can be written to after it."""
    model = isohub.load(repo, "rope")
    with torch.inference_mode():
        model(torch.ones(2))
        fresh = isohub.load(repo, "rope")

    for one in (model, fresh):
        assert not any(tensor.is_inference() for tensor in (*one.parameters(), *one.buffers()))
    assert torch.equal(torch.ones(3), model.seen)
    model.seen.add_(5.0)
    assert torch.equal(torch.full((3,), 6.0), model.seen_there())


def test_untied_parameters_are_two(repo: str, forkserver: int):
    """A tied parameter that the worker replaces in one place is another one there, and stays in the other."""
    model = isohub.load(repo, "tied")
    tied = model.inner.weight
    assert tied is model.tail.weight
    before = tied.detach().clone()
    model.untie()

    assert model.inner.weight is tied
    assert torch.equal(before, tied)
    assert torch.equal(torch.zeros(2, 2), model.tail.weight)


def test_mode_of_a_slice_is_known_to_the_whole(repo: str, forkserver: int):
    """Modules have one mode, whichever of the containers that hold them it was switched by."""
    model = isohub.load(repo, "blocks")
    tail = model[1:]
    tail.eval()
    expected = {"": True, "0": True, "1": False, "1.0": False, "1.1": False, "2": False}

    assert expected == {name: module.training for name, module in model.named_modules()}
    model.train()
    tail_modes = {name: module.training for name, module in tail.named_modules()}
    assert dict.fromkeys(tail_modes, True) | {"": False} == tail_modes  # the slice itself is no part of the whole
