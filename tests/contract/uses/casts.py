"""Other dtypes, layouts and devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.contract.harness import ALL, EAGER, Inputs, caught, loss_of, use

FEW = ("cnn", "lstm", "tied", "dicts", "scripted")


def in_dtype(model: Any, x: Inputs, dtype: torch.dtype) -> Any:
    output = x.map(lambda tensor: tensor.to(dtype)).through(model)
    loss_of(output).backward()
    return output


@use()
def double(model: Any, x: Inputs) -> Any:
    return model.double() is model, in_dtype(model, x, torch.float64)


@use(*EAGER)
def bfloat16(model: Any, x: Inputs) -> Any:
    return in_dtype(model.bfloat16(), x, torch.bfloat16)


@use("transformer", "tied", "dicts", "stochastic", "rebinding", "checkpointed", "unet")
def half(model: Any, x: Inputs) -> Any:
    return in_dtype(model.half(), x, torch.float16)


@use()
def there_and_back(model: Any, x: Inputs) -> Any:
    parameters = list(model.parameters())
    model.half().float()
    same = [one is other for one, other in zip(parameters, model.parameters(), strict=True)]
    return same, in_dtype(model, x, torch.float32)


@use(*FEW)
def to_dtype(model: Any, x: Inputs) -> Any:
    return in_dtype(model.to(torch.float64), x, torch.float64)


@use(*FEW)
def to_dtype_of_a_tensor(model: Any, x: Inputs) -> Any:
    return in_dtype(model.to(torch.ones(1, dtype=torch.float64)), x, torch.float64)


@use(*FEW)
def to_device_and_dtype(model: Any, x: Inputs) -> Any:
    return in_dtype(model.to("cpu", torch.float64, non_blocking=True).cpu(), x, torch.float64)


@use(*FEW)
def to_its_own_kind(model: Any, x: Inputs) -> Any:
    before = [parameter.data_ptr() for parameter in model.parameters()]
    model.to("cpu").float().to(torch.float32)
    return [one == parameter.data_ptr() for one, parameter in zip(before, model.parameters(), strict=True)]


@use(*FEW)
def by_type(model: Any, x: Inputs) -> Any:
    return in_dtype(model.type(torch.float64), x, torch.float64)


@use("cnn", "lstm", "unet", "dicts", "stochastic", summed_otherwise=("lstm", "dicts"))
def one_part_cast(model: Any, x: Inputs) -> Any:
    model.fc.double()
    model.fc.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    return [parameter.dtype for parameter in model.parameters()], in_dtype(model, x, torch.float32)


@use(*FEW)
def gradients_cast_with_their_parameters(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    model.double()
    return [None if p.grad is None else p.grad.dtype for p in model.parameters()]


@use("cnn", "lstm", "stochastic")
def optimizer_after_a_cast(model: Any, x: Inputs) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.double()
    output = in_dtype(model, x, torch.float64)
    optimizer.step()
    return output


@use("cnn", "lstm", "dicts", "tied")
def inside_of_a_container(model: Any, x: Inputs) -> Any:
    box = nn.ModuleDict({"model": model, "head": nn.Linear(2, 2)})
    box.to(torch.float64)
    return [parameter.dtype for parameter in box.parameters()], in_dtype(model, x, torch.float64)


@use("cnn", "unet")
def channels_last(model: Any, x: Inputs) -> Any:
    model.to(memory_format=torch.channels_last)
    last = x.map(lambda tensor: tensor.to(memory_format=torch.channels_last).requires_grad_())
    output = last.through(model)
    loss_of(output).backward()
    return output, last.floats[0].grad


@use(*FEW)
def to_meta(model: Any, x: Inputs) -> Any:
    model.to("meta")
    return [(name, value.device.type, value.dtype, value.shape) for name, value in model.state_dict().items()]


@use("cnn", "dicts", "stochastic")
def forward_on_meta(model: Any, x: Inputs) -> Any:
    output = x.map(lambda tensor: tensor.to("meta")).through(model.eval().to("meta"))
    return [(tensor.device.type, tensor.shape) for tensor in [output["logits"] if isinstance(output, dict) else output]]


@use(*FEW)
def to_integers(model: Any, x: Inputs) -> Any:
    return caught(TypeError, lambda: model.to(torch.int32)), x.through(model)


@use(*ALL, may_refuse=True)
def to_cuda_where_there_is_none(model: Any, x: Inputs) -> Any:
    assert not torch.cuda.is_available(), "this use is for machines without CUDA"
    return caught(Exception, lambda: model.to("cuda")), x.through(model)


@use(*FEW)
def wrong_dtype_of_an_input(model: Any, x: Inputs) -> Any:
    if not x.floats:
        return caught(Exception, lambda: model(torch.ones(2, 3)))
    wrong = x.map(lambda tensor: tensor.double())
    return caught(RuntimeError, lambda: wrong.through(model.float()))
