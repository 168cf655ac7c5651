"""State dicts of isolated modules, and what `isinstance` says of their parts: as in process."""

from __future__ import annotations

import io
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import isohub
from isohub.model.classes import class_of
from isohub.model.module import IsolatedModule
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same

REPO = """
    import torch
    from torch import nn


    class Block(nn.Sequential):
        pass


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.block = Block(nn.ReLU(), nn.Dropout(0.1))
            self.parts = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.block(self.norm(self.conv(x))).mean((2, 3))
            return self.head(self.parts[1](self.parts[0](x)))


    def net():
        return Net()


    class Renaming(Net):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            for key in [key for key in state_dict if key.startswith(prefix + "fc.")]:
                state_dict[key.replace("fc.", "head.")] = state_dict.pop(key)
            super()._load_from_state_dict(state_dict, prefix, *rest)


    def renaming():
        return Renaming()


    def hooked():
        net = Net()

        def before(module, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
            for key in [key for key in state_dict if key.startswith(prefix + "fc.")]:
                state_dict[key.replace("fc.", "head.")] = state_dict.pop(key)

        def after(module, keys):
            module.seen = list(keys.missing_keys)
            keys.missing_keys[:] = [key for key in keys.missing_keys if "norm" not in key]

        def saved(module, state_dict, prefix, local_metadata):
            state_dict[prefix + "doubled"] = state_dict[prefix + "head.bias"] * 2
            local_metadata["saved"] = True

        net.register_load_state_dict_pre_hook(before)
        net.register_load_state_dict_post_hook(after)
        net.register_state_dict_post_hook(saved)
        return net


    class Extra(Net):
        steps = 0

        def get_extra_state(self):
            return {"steps": self.steps}

        def set_extra_state(self, state):
            self.steps = state["steps"]


    def extra():
        return Extra()


    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def forward(self, x):
            return self.inner(x)

        def load_state_dict(self, state_dict, strict=True):
            renamed = {key.replace("fc.", "head."): value for key, value in state_dict.items()}
            return self.inner.load_state_dict(renamed, strict=strict)

        def state_dict(self, *args, **kwargs):
            return self.inner.state_dict(*args, **kwargs)


    def wrapper():
        return Wrapper()
"""

ENTRIES = ["net", "renaming", "hooked", "extra", "wrapper"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("state") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def both(repo: str, entry: str) -> tuple[Any, Any]:
    """Return the module in process, and isolated, with the same weights."""
    torch.manual_seed(0)
    here = isohub.load(repo, entry, isolate=False)
    torch.manual_seed(0)
    return here, isohub.load(repo, entry)


def other_state(repo: str, entry: str) -> OrderedDict[str, Any]:
    """Return a state dict of another seed, in memory of this process's own."""
    torch.manual_seed(7)
    state = isohub.load(repo, entry, isolate=False).state_dict()
    for value in state.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.uniform_()
    return state


def renamed(state: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
    result = OrderedDict((key.replace("head.", "fc."), value) for key, value in state.items())
    result._metadata = state._metadata
    return result


def outcome(action: Callable[[], Any]) -> tuple[str, str]:
    try:
        result = action()
    except (RuntimeError, IndexError) as error:
        return type(error).__name__, str(error)
    return type(result).__name__, str(result)


def test_parts_are_instances_of_torch_classes(repo: str, forkserver: int):
    """`isinstance` and the class's name say of each module what they say in process, for every class of torch.nn."""
    here, model = both(repo, "net")
    classes = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]

    def said(one: Any) -> list[Any]:
        return [
            (name, part.__class__.__name__, [kind.__name__ for kind in classes if isinstance(part, kind)])
            for name, part in one.named_modules()
        ]

    assert said(here) == said(model)
    assert all(isinstance(part, IsolatedModule) and issubclass(type(part), IsolatedModule) for part in model.modules())
    assert "isohub" in dir(model)
    assert repr(here) == repr(model).rpartition("\n# ")[0]


def test_norms_can_be_frozen_and_layers_initialised(repo: str, forkserver: int):
    """The loops that look for batch norms, or for layers by the name of their class, find them."""
    here, model = both(repo, "net")
    for one in (here, model):
        torch.manual_seed(3)
        for part in one.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)
            if part.__class__.__name__.find("Norm") != -1:
                nn.init.constant_(part.weight, 0.5)
    x = torch.rand(2, 3, 6, 6)
    torch.manual_seed(1)
    expected = here(x).detach()
    torch.manual_seed(1)

    with torch.no_grad():
        assert_same(expected, model(x))
    assert_same(dict(here.state_dict()), dict(model.state_dict()))
    assert not model.norm.training


@pytest.mark.parametrize("told", ["os.PathLike", "torch.nn.Module", "torch.jit.ScriptModule", "", "x" * 1000])
def test_class_that_a_worker_tells_is_of_a_closed_set(told: str):
    """A name that is no class of torch.nn's own is a plain module, and a class of the repository makes no objects."""
    kind = class_of("repo.Net", told)

    assert (nn.Module,) == kind.__bases__
    assert kind.__name__ == "Net"
    assert class_of("a\0b.\0", told).__name__ == "Module"
    assert class_of("torch.nn.modules.linear.Linear", "torch.nn.modules.linear.Linear") is nn.Linear
    with pytest.raises(TypeError, match="the class Net is in a worker"):
        kind()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        renamed,
        lambda state: OrderedDict(list(state.items())[2:]),
        lambda state: OrderedDict([*state.items(), ("more", torch.ones(1))]),
        lambda state: OrderedDict((key, torch.ones(9, 9)) for key in state),
    ],
    ids=["whole", "renamed", "missing, without versions", "unexpected", "other shapes"],
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_state_dict_is_loaded_as_in_process(repo: str, forkserver: int, entry: str, change: Any, strict: bool):
    """Loading gives the keys, the error and the values that it gives in process, whatever the repository does in it."""
    here, model = both(repo, entry)
    state = change(other_state(repo, entry))

    expected = outcome(lambda: here.load_state_dict(state, strict=strict))
    actual = outcome(lambda: model.load_state_dict(state, strict=strict))
    assert expected == actual
    assert_same(dict(here.state_dict()), dict(model.state_dict()))
    if entry == "hooked" and expected[0] == "_IncompatibleKeys":
        assert here.seen == model.seen
    if entry == "extra":
        assert here.steps == model.steps


@pytest.mark.parametrize("entry", ["net", "renaming", "hooked", "extra"])
def test_part_of_a_container_is_loaded_as_in_process(repo: str, forkserver: int, entry: str):
    """A local container loads and saves an isolated part by the part's own code."""
    here, model = (nn.Sequential(OrderedDict(net=one, tail=nn.Identity())) for one in both(repo, entry))
    state = OrderedDict((f"net.{key}", value) for key, value in renamed(other_state(repo, entry)).items())

    expected = outcome(lambda: here.load_state_dict(state, strict=False))
    assert expected == outcome(lambda: model.load_state_dict(state, strict=False))
    assert_same(dict(here.state_dict()), dict(model.state_dict()))
    assert here.state_dict()._metadata == model.state_dict()._metadata


def test_hooks_of_this_side_run_too(repo: str, forkserver: int):
    """Load hooks that the user registers here run as in process, before and after the repository's own."""
    told: list[list[Any]] = []
    for one in both(repo, "hooked"):
        seen: list[Any] = []
        one.register_load_state_dict_pre_hook(lambda module, state, prefix, *_, seen=seen: seen.append(list(state)))
        one.register_load_state_dict_post_hook(lambda module, keys, seen=seen: seen.append(list(keys.missing_keys)))
        state = OrderedDict(list(renamed(other_state(repo, "net")).items())[3:])
        one.load_state_dict(state, strict=False)
        told.append([seen, one.seen])

    here, there = told
    assert here[0][1] == there[0][1]
    assert here[1] == there[1]
    assert set(here[0][0]) == {key.replace("fc.", "head.") for key in there[0][0]}  # before the renaming there


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("keep", [False, True], ids=["tensors", "parameters"])
def test_assigned_parameters_are_other_objects(repo: str, forkserver: int, keep: bool, frozen: bool):
    """`assign=True` puts other parameters in place of those named, with flags and dtypes as in process."""
    here, model = both(repo, "net")
    source = isohub.load(repo, "net", isolate=False).double()
    results = []
    for one in (here, model):
        one.head.weight.requires_grad_(not frozen)
        before = dict(one.named_parameters())
        values = {key: value.detach().clone() for key, value in before.items()}
        state = source.state_dict(keep_vars=keep)
        del state["conv.bias"]
        keys = one.load_state_dict(state, strict=False, assign=True)
        same = {name: before[name] is parameter for name, parameter in one.named_parameters()}
        flags = {name: (p.requires_grad, p.dtype, p.is_leaf) for name, p in one.named_parameters()}
        results.append([str(keys), same, flags, dict(one.state_dict())])
        assert_same(values, {key: value.detach() for key, value in before.items()})

    results[1][3] = {key: value.clone() for key, value in results[1][3].items()}
    assert_same(results[0], results[1])
    with torch.no_grad():
        model.head.weight.fill_(2.0)
        model.head.bias.fill_(1.0)
        assert torch.equal(torch.full((1, 2), 9.0, dtype=torch.float64), model.head(torch.ones(1, 4).double()))


def test_failed_assignment_leaves_what_it_leaves_in_process(repo: str, forkserver: int):
    """An assignment that fails on one key has replaced the others, and the parameters seen are those used."""
    here, model = both(repo, "net")
    state = other_state(repo, "net")
    state["head.weight"] = torch.ones(1)

    expected = outcome(lambda: here.load_state_dict(state, assign=True))
    assert expected == outcome(lambda: model.load_state_dict(state, assign=True))
    assert_same(dict(here.state_dict()), {key: value.clone() for key, value in model.state_dict().items()})


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "options", [{}, {"prefix": "a.b."}, {"keep_vars": True}, {"destination": OrderedDict(first=1)}], ids=str
)
def test_state_dict_is_that_in_process(repo: str, forkserver: int, entry: str, options: dict[str, Any]):
    """A state dict has the keys, order, values and metadata that it has in process, and shares the memory."""
    here, model = both(repo, entry)
    expected, actual = ({**options} for _ in range(2))
    for mine in (expected, actual):
        if "destination" in mine:
            mine["destination"] = OrderedDict(mine["destination"])
    expected, actual = here.state_dict(**expected), model.state_dict(**actual)

    assert_same(dict(expected), dict(actual))
    assert getattr(expected, "_metadata", None) == getattr(actual, "_metadata", None)
    key = f"{options.get('prefix', '')}head.weight"
    inner = model.inner if entry == "wrapper" else model
    assert inner.head.weight.data_ptr() == actual[key].data_ptr()
    assert bool(options.get("keep_vars")) is (actual[key] is inner.head.weight)


@pytest.mark.parametrize("entry", ["net", "hooked", "wrapper"])
def test_state_outlives_the_worker(repo: str, forkserver: int, entry: str):
    """When the worker is dead, the weights are read and loaded in shared memory, without the repository's code."""
    model = isohub.load(repo, entry)
    expected = {key: value.clone() for key, value in model.state_dict().items() if key != "doubled"}
    os.kill(model.isohub.pid, signal.SIGKILL)
    with pytest.raises(isohub.errors.BrokenWorkerError):
        model(torch.ones(1))
    names = {key.removeprefix("inner."): value for key, value in model.state_dict().items()}

    assert_same(expected, names)
    model.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
    assert not any(value.any() for value in model.state_dict().values())


def test_state_dict_goes_into_files(repo: str, forkserver: int, tmp_path: Path):
    """What torch.save and safetensors write of a state dict is what they write in process, and loads again."""
    here, model = both(repo, "net")
    expected, actual = (dict(one.state_dict()) for one in (here, model))
    written, again = io.BytesIO(), io.BytesIO()
    torch.save(here.state_dict(), written)
    torch.save(model.state_dict(), again)
    safetensors.torch.save_file(actual, tmp_path / "model.safetensors")
    loaded = torch.load(io.BytesIO(again.getvalue()), weights_only=True)

    assert len(written.getvalue()) == len(again.getvalue())
    assert_same(dict(torch.load(io.BytesIO(written.getvalue()), weights_only=True)), dict(loaded))
    assert here.state_dict()._metadata == loaded._metadata
    assert safetensors.torch.save(expected) == (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert_same(expected, dict(model.state_dict()))
