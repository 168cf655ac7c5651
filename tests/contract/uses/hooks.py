"""Hooks registered here, run here, on any part of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import isohub
from isohub.model.module import IsolatedModule
from tests.contract.harness import EAGER, GradientsOfInputs, Inputs, caught, loss_of, use

FEW = ("cnn", "lstm", "tied", "dicts", "stochastic")


def run_in(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function on the real module: in the worker, or here where it is here."""
    return isohub.run_in(model, function, *args) if isinstance(model, IsolatedModule) else function(model, *args)


@use(*EAGER)
def features_of_a_part(model: Any, x: Inputs) -> Any:
    seen = []
    handle = model.stem.register_forward_hook(lambda _, args, output: seen.append((args, output)))
    output = x.through(model.eval())
    handle.remove()
    x.through(model)
    return seen, output


@use(*EAGER, summed_otherwise=("cnn", "unet", "dicts", "lists", "stochastic"))
def gradient_through_a_feature(model: Any, x: Inputs) -> Any:
    asking, seen = x.asking(), []
    model.stem.register_forward_hook(lambda _, __, output: seen.append(output))
    output = asking.through(model)
    (loss_of(seen) + 0.5 * loss_of(output)).backward()
    return GradientsOfInputs(tensor.grad for tensor in asking.floats)


@use(*FEW)
def gradient_of_a_feature(model: Any, x: Inputs) -> Any:
    seen = []
    model.fc.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    loss = loss_of(x.through(model))
    return torch.autograd.grad(loss, seen[0])


@use(*FEW)
def features_of_every_part(model: Any, x: Inputs) -> Any:
    seen = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, ___, name=name: seen.append(name))
    with torch.no_grad():
        x.through(model)
    return seen


@use(*EAGER)
def output_of_a_part_replaced(model: Any, x: Inputs) -> Any:
    model.stem.register_forward_hook(lambda _, __, output: output * 2 + 1)
    output = x.through(model)
    loss_of(output).backward()
    return output


@use(*EAGER, summed_otherwise=("lstm", "dicts", "lists"))
def input_of_a_part_replaced(model: Any, x: Inputs) -> Any:
    model.fc.register_forward_pre_hook(lambda _, args: (args[0].tanh(),))
    output = x.through(model)
    loss_of(output).backward()
    return output


@use(*FEW, summed_otherwise=("lstm", "dicts"))
def replacement_with_weights_of_ones_own(model: Any, x: Inputs) -> Any:
    scale = torch.full((1,), 1.5, requires_grad=True)
    model.fc.register_forward_hook(lambda _, __, output: output * scale)
    loss_of(x.through(model)).backward()
    return scale.grad


@use(*FEW)
def hooks_on_the_whole(model: Any, x: Inputs) -> Any:
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args)))
    model.register_forward_hook(lambda _, __, output: seen.append(output))
    return x.through(model), seen


@use("cnn", "dicts")
def hooks_with_keywords(model: Any, x: Inputs) -> Any:
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    model.fc.register_forward_hook(lambda _, args, kwargs, out: seen.append((args, kwargs)), with_kwargs=True)
    return x.through(model), seen


@use(*FEW)
def order_of_hooks(model: Any, x: Inputs) -> Any:
    seen = []
    model.fc.register_forward_hook(lambda *_: seen.append("second"))
    model.fc.register_forward_hook(lambda *_: seen.append("first"), prepend=True)
    model.fc.register_forward_pre_hook(lambda *_: seen.append("before"))
    x.through(model)
    return seen


@use(*FEW)
def hook_that_raises(model: Any, x: Inputs) -> Any:
    class OwnError(Exception):
        pass

    def hook(*_: Any) -> None:
        raise OwnError("from a hook")

    handle = model.stem.register_forward_hook(hook)
    error = caught(OwnError, lambda: x.through(model))
    handle.remove()
    return error, x.through(model)


@use(*FEW)
def hook_removed_by_itself(model: Any, x: Inputs) -> Any:
    seen: list[Any] = []
    handle = model.stem.register_forward_hook(lambda *_: (seen.append(1), handle.remove(), None)[2])
    x.through(model)
    x.through(model)
    return seen


@use(*EAGER, summed_otherwise=("lstm", "dicts", "lists"))
def backward_hook_on_a_part(model: Any, x: Inputs) -> Any:
    seen = []
    model.fc.register_full_backward_hook(lambda _, inputs, outputs: seen.append((inputs, outputs)))
    loss_of(x.through(model)).backward()
    return seen


@use(*FEW, summed_otherwise=("lstm", "dicts"))
def gradient_replaced_by_a_backward_hook(model: Any, x: Inputs) -> Any:
    model.fc.register_full_backward_hook(lambda _, inputs, __: tuple(gradient * 0.5 for gradient in inputs))
    loss_of(x.through(model)).backward()


@use(*FEW, summed_otherwise=("lstm", "dicts"))
def gradient_replaced_before_a_part(model: Any, x: Inputs) -> Any:
    model.fc.register_full_backward_pre_hook(lambda _, outputs: tuple(gradient.sign() for gradient in outputs))
    loss_of(x.through(model)).backward()


@use("cnn", "stochastic")
def backward_hook_on_the_whole(model: Any, x: Inputs) -> Any:
    asking, seen = x.asking(), []
    model.register_full_backward_hook(lambda _, inputs, outputs: seen.append((inputs, outputs)))
    loss_of(asking.through(model)).backward()
    return seen, [tensor.grad for tensor in asking.floats]


@use("stochastic", "cnn")
def random_numbers_in_a_hook(model: Any, x: Inputs) -> Any:
    model.stem.register_forward_hook(lambda _, __, output: output + torch.rand(()))
    return x.through(model), torch.rand(2)


@use("cnn", "lists", kept_by_torch=True)
def activation_maps_weighted_by_gradients(model: Any, x: Inputs) -> Any:
    """As Grad-CAM does."""
    asking, seen = x.asking(), {}
    model.stem.register_forward_hook(lambda _, __, output: seen.update(activation=output))
    model.stem.register_full_backward_hook(lambda _, __, outputs: seen.update(gradient=outputs[0]))
    loss_of(asking.through(model.eval())).backward()
    weights = seen["gradient"].mean(dim=tuple(range(2, seen["gradient"].dim())), keepdim=True)
    return (seen["activation"] * weights).sum(1).relu()


@use()
def function_run_where_the_module_is(model: Any, x: Inputs) -> Any:
    def shift(module: Any, amount: float) -> list[str]:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(amount)
        return [name for name, _ in module.named_modules()]

    return run_in(model, shift, 0.125), x.through(model.eval())


@use(*FEW)
def function_run_on_a_part(model: Any, x: Inputs) -> Any:
    return run_in(model.fc, lambda module, value: (module.in_features, value * module.weight.sum()), torch.ones(2))


@use(*FEW)
def error_of_a_function_run_there(model: Any, x: Inputs) -> Any:
    def fail(module: Any) -> None:
        raise LookupError(f"nothing in {len(list(module.parameters()))}")

    return caught(LookupError, lambda: run_in(model, fail)), x.through(model)


@use(*FEW)
def hooks_of_a_copy(model: Any, x: Inputs) -> Any:
    seen: list[Any] = []
    model.fc.register_forward_hook(lambda _, __, output: seen.append(output))
    copied = copy.deepcopy(model)
    x.through(copied)
    return len(seen), x.through(model), len(seen)


@use(*FEW)
def hook_of_a_part_that_is_put_back(model: Any, x: Inputs) -> Any:
    seen: list[Any] = []
    part = model.fc
    part.register_forward_hook(lambda _, __, output: seen.append(output))
    del model.fc
    model.fc = part
    return x.through(model), len(seen)
