"""State dicts, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from tests.contract.harness import ALL, EAGER, Inputs, caught, loss_of, use

FEW = ("cnn", "lstm", "tied", "dicts", "scripted")


def saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def other_state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() * 0.5 for name, value in model.state_dict().items()}


@use()
def state_dict(model: Any, x: Inputs) -> Any:
    state = model.state_dict(prefix="model.")
    return type(state).__name__, dict(state), dict(state._metadata), [*model.state_dict(keep_vars=True).values()]


@use()
def state_dict_of_a_part(model: Any, x: Inputs) -> Any:
    into: dict[str, Any] = {}
    model.fc.state_dict(destination=into, prefix="head.")
    return into, dict(model.stem.state_dict())


@use()
def state_dict_is_live(model: Any, x: Inputs) -> Any:
    for value in model.state_dict().values():
        value.zero_()
    return x.through(model.eval())


@use()
def state_loaded(model: Any, x: Inputs) -> Any:
    result = model.load_state_dict(other_state(model))
    return result.missing_keys, result.unexpected_keys, x.through(model.eval())


@use()
def state_loaded_in_parts(model: Any, x: Inputs) -> Any:
    state = other_state(model)
    del state[next(iter(state))]
    state["nowhere.weight"] = torch.ones(2)
    strict = caught(RuntimeError, lambda: model.load_state_dict(state))
    result = model.load_state_dict(state, strict=False)
    return strict, result.missing_keys, result.unexpected_keys, x.through(model.eval())


@use()
def state_of_another_shape(model: Any, x: Inputs) -> Any:
    state = {name: torch.ones(3, 3, 3) for name in model.state_dict()}
    return caught(RuntimeError, lambda: model.load_state_dict(state, strict=False)), x.through(model.eval())


@use()
def state_assigned(model: Any, x: Inputs) -> Any:
    parameters, state = list(model.parameters()), other_state(model)
    model.load_state_dict(state, assign=True)
    same = [any(one is parameter for parameter in parameters) for one in model.parameters()]
    output = x.through(model)
    loss_of(output).backward()
    return same, output


@use(*FEW)
def state_of_another_dtype_loaded(model: Any, x: Inputs) -> Any:
    model.load_state_dict({name: value.double() for name, value in other_state(model).items()})
    return x.through(model.eval())


@use(*EAGER)
def state_of_a_part_loaded(model: Any, x: Inputs) -> Any:
    model.fc.load_state_dict(nn.Linear(model.fc.in_features, model.fc.out_features).state_dict())
    return x.through(model.eval())


@use()
def state_saved_by_torch(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    file = saved(model.state_dict())
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    loaded = torch.load(file, weights_only=True)
    model.load_state_dict(loaded)
    return dict(loaded), x.through(model.eval())


@use("cnn", "lstm", "tied", "dicts")
def hooks_on_state_dicts(model: Any, x: Inputs) -> Any:
    seen = []
    model.register_state_dict_post_hook(lambda _, state, prefix, __: seen.append((len(state), prefix)))
    model.register_load_state_dict_post_hook(lambda _, keys: seen.append(list(keys.missing_keys)))
    model.load_state_dict(model.state_dict())
    return seen


@use(*ALL, "rebinding", "checkpointed")
def deep_copy(model: Any, x: Inputs) -> Any:
    copied = copy.deepcopy(model)
    before = x.through(copied.eval())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    return before, x.through(copied), x.through(model.eval()), copied.training, dict(copied.state_dict())


@use(*EAGER)  # a copy of a ScriptModule has no leaves
def deep_copy_trained(model: Any, x: Inputs) -> Any:
    copied = copy.deepcopy(model)
    loss_of(x.through(copied)).backward()
    torch.optim.SGD(copied.parameters(), lr=0.1).step()
    return {name: parameter.grad for name, parameter in copied.named_parameters()}, x.through(copied.eval())


@use(*EAGER)
def deep_copy_of_a_part(model: Any, x: Inputs) -> Any:
    copied = copy.deepcopy(model.fc)
    with torch.no_grad():
        copied.weight.zero_()
    return x.through(model.eval()), copied(torch.ones(2, copied.in_features)), type(copied.weight).__name__


@use("cnn", "lstm", "tied", "dicts")
def deep_copy_inside_of_a_container(model: Any, x: Inputs) -> Any:
    box = nn.ModuleDict({"one": model, "again": model})
    copied = copy.deepcopy(box)
    return copied["one"] is copied["again"], copied["one"] is model, x.through(copied["one"].eval())


@use("cnn", "stochastic", "dicts")
def deep_copy_keeps_flags_and_modes(model: Any, x: Inputs) -> Any:
    model.stem.eval()
    model.stem.requires_grad_(False)
    loss_of(x.through(model)).backward()
    copied = copy.deepcopy(model)
    return (
        [module.training for module in copied.modules()],
        [parameter.requires_grad for parameter in copied.parameters()],
        [parameter.grad for parameter in copied.parameters()],
    )


@use(*EAGER, "rebinding", "checkpointed")
def pickled(model: Any, x: Inputs) -> Any:
    with torch.no_grad():
        model.fc.weight.mul_(0.5)
    model.stem.eval()
    loaded = pickle.loads(pickle.dumps(model))
    return [module.training for module in loaded.modules()], x.through(loaded), dict(loaded.state_dict())


@use("cnn", "tied", "dicts")
def pickled_with_its_surroundings(model: Any, x: Inputs) -> Any:
    model.requires_grad_(False)
    file = saved({"model": model, "head": nn.Linear(2, 2)})
    loaded = torch.load(file, weights_only=False)["model"]
    return [parameter.requires_grad for parameter in loaded.parameters()], x.through(loaded.eval())


@use("cnn", "lstm", "tied", "dicts", may_refuse=True)
def shallow_copy(model: Any, x: Inputs) -> Any:
    copied = copy.copy(model)
    return copied.fc.weight is model.fc.weight, x.through(copied.eval())
