"""Copies of isolated modules: independent, and in the worker."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import isohub
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same

REPO = """
    import copy

    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
            self.head = nn.Linear(4, 4)
            self.head.weight = self.body[0].weight
            self.register_buffer("scale", torch.ones(1), persistent=False)
            self.conf = 0.25

        def forward(self, x):
            return self.head(self.body(x)) * self.scale + self.conf


    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            return self


    class Odd(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")


    def net():
        return Net()


    def single():
        return Single(2, 2)


    def odd():
        return Odd(2, 2)
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("copies") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def both(repo: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    here = isohub.load(repo, "net", isolate=False)
    torch.manual_seed(0)
    return here, isohub.load(repo, "net")


def ask(model: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        return model(torch.linspace(0, 1, 12).reshape(3, 4))


def aliases(*values: Any) -> list[int]:
    """Return for each value the place of the first that is the same object."""
    return [next(i for i, other in enumerate(values) if other is value) for value in values]


def test_deepcopy_is_independent(repo: str, forkserver: int):
    """A deep copy has the values, flags, modes, ties and attributes of the original, and shares nothing with it."""
    answers = []
    for one in both(repo):
        one.body[1].eval()
        one.body[0].bias.requires_grad_(False)
        one.conf = 0.5
        two = copy.deepcopy(one)
        same = [ask(one), ask(two)]
        with torch.no_grad():
            two.head.weight.fill_(0.5)
        two.conf = 2.0
        two.train()
        flags = [[p.requires_grad for p in model.parameters()] for model in (one, two)]
        modes = [[m.training for m in model.modules()] for model in (one, two)]
        ties = [model.head.weight is model.body[0].weight for model in (one, two)]
        names = [list(model.state_dict()) for model in (one, two)]
        answers.append([same, ask(one), ask(two), flags, modes, ties, names, one.conf, two.conf])
    assert_same(*answers)


def test_copy_lives_on_without_the_original(repo: str, forkserver: int):
    """A copy is a module of its own in the same worker: it stays when the original is gone."""
    model = isohub.load(repo, "net")
    twin = copy.deepcopy(model)
    expected = ask(model)
    del model

    assert_same(expected, ask(twin))
    assert twin.isohub.entrypoint == "net"
    assert_same(expected, ask(copy.deepcopy(twin)))


def test_part_is_copied_alone(repo: str, forkserver: int):
    """A sub-module is copied without the rest of its tree."""
    model = isohub.load(repo, "net")
    body = copy.deepcopy(model.body)
    x = torch.rand(3, 4)
    torch.manual_seed(2)
    expected = model.body(x)
    torch.manual_seed(2)

    assert_same(expected.detach(), body(x).detach())
    assert isinstance(body, nn.Sequential)
    with torch.no_grad():
        body[0].weight.zero_()
    assert model.body[0].weight.any()


@pytest.mark.parametrize(
    "order", [["model", "part", "weight"], ["weight", "part", "model"], ["part", "model", "weight"]]
)
def test_container_is_copied_with_its_ties(repo: str, forkserver: int, order: list[str]):
    """In a copied container, parameters and parts that were one object are one, in whatever order they come."""
    found = []
    for one in both(repo):
        parts = {"model": one, "part": one.body, "weight": nn.ParameterList([one.head.weight])}
        box = nn.ModuleDict({name: parts[name] for name in order})
        twin = copy.deepcopy(box)
        weights = [
            box["model"].head.weight, twin["model"].head.weight, twin["model"].body[0].weight, twin["part"][0].weight,
            twin["weight"][0],
        ]  # fmt: skip
        with torch.no_grad():
            twin["weight"][0].fill_(0.25)
        count = len(list(twin.parameters()))
        found.append([aliases(*weights), count, ask(twin["model"]), twin["part"][0].weight.detach().clone(), ask(one)])
    assert_same(*found)


def test_hooks_are_copied(repo: str, forkserver: int):
    """Hooks that were put on a module here are on its deep copy too, and those added later on one alone."""
    model = isohub.load(repo, "net")
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("old"))
    twin = copy.deepcopy(model)
    model.register_forward_hook(lambda *_: calls.append("new"))
    ask(twin)

    assert calls == ["old"]
    ask(model)
    assert calls == ["old", "old", "new"]


def test_shallow_copy_shares_its_parts(repo: str, forkserver: int):
    """`copy.copy` gives another module over the same parameters and parts, with attributes of its own."""
    found = []
    for one in both(repo):
        two = copy.copy(one)
        two.conf = 1.0
        with torch.no_grad():
            one.head.weight.fill_(0.125)
        shared = [two.head.weight is one.head.weight, two.scale is one.scale]
        found.append([two is one, shared, one.conf, two.conf, ask(one), ask(two)])
    assert_same(*found)


def test_average_of_weights_is_that_in_process(repo: str, forkserver: int):
    """`AveragedModel` keeps a moving average of an isolated module as it does of one in process."""
    found = []
    for one in both(repo):
        average = torch.optim.swa_utils.AveragedModel(
            one, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        for step in range(3):
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.add_(0.1 * (step + 1))
            average.update_parameters(one)
        found.append([ask(average), {name: value.clone() for name, value in average.state_dict().items()}])
    assert_same(*found)


def test_copies_of_its_own_are_respected(repo: str, forkserver: int):
    """A module that copies itself in its own way does so: it may return itself, or refuse."""
    single, odd = isohub.load(repo, "single"), isohub.load(repo, "odd")

    assert copy.deepcopy(single) is single
    with pytest.raises(RuntimeError, match="not this one"):
        copy.deepcopy(odd)
