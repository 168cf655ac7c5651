"""What is put around a module: containers, compilers, functional calls; and looks at its structure."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from tests.contract.harness import EAGER, Inputs, caught, loss_of, use

SIMPLE = ("cnn", "transformer", "stochastic", "rebinding", "scripted")


class Lightning(nn.Module):
    """As a LightningModule holds the model that it trains."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Inputs) -> torch.Tensor:
        return loss_of(x.through(self.model)) * self.scale


@use(*SIMPLE)
def inside_of_a_sequence(model: Any, x: Inputs) -> Any:
    whole = nn.Sequential(model, nn.Linear(4, 2), nn.Tanh())
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    output = x.through(whole.train())
    loss_of(output).backward()
    optimizer.step()
    return output, dict(whole.state_dict()), [name for name, _ in whole.named_modules()]


@use()
def attribute_of_another_module(model: Any, x: Inputs) -> Any:
    whole = Lightning(model).eval()
    modes = model.training
    whole.train()
    loss = whole(x)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in whole.parameters() if parameter.grad is not None]
    whole.zero_grad()
    whole.requires_grad_(False)
    return modes, loss, gradients, list(whole.state_dict())


@use("cnn", "dicts", "stochastic")
def data_parallel(model: Any, x: Inputs) -> Any:
    output = x.through(nn.DataParallel(model))
    loss_of(output).backward()
    return output


@use("cnn", "lstm", "dicts", "stochastic", may_refuse=True)
def functional_call(model: Any, x: Inputs) -> Any:
    weights = {name: (parameter.detach() * 0.5).requires_grad_() for name, parameter in model.named_parameters()}
    output = torch.func.functional_call(model.eval(), weights, x.args, x.kwargs)
    loss_of(output).backward()
    return output, [value.grad for value in weights.values()], x.through(model)


@use("cnn", "rebinding", may_refuse=True)
def gradients_of_each_sample(model: Any, x: Inputs) -> Any:
    model.eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (sample.unsqueeze(0),)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, *x.args)


@use("cnn", "stochastic", may_refuse=True)
def jacobian(model: Any, x: Inputs) -> Any:
    return torch.autograd.functional.jacobian(lambda value: model.eval()(value).sum(0), x.args[0])


@use("cnn", "rebinding", may_refuse=True)
def compiled(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = x.through(torch.compile(model.eval(), backend="eager"))
    loss_of(output).backward()
    return output


@use("cnn", "rebinding")
def compiled_in_place(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = model.eval().compile(backend="eager")
        output = x.through(model)
    loss_of(output).backward()
    return nothing, output


@use("cnn", "stochastic", may_refuse=True)
def scripted(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.through(torch.jit.script(nn.Sequential(model.eval())))


@use("cnn", "stochastic", may_refuse=True)
def recorded_as_operations(model: Any, x: Inputs) -> Any:
    return make_fx(model.eval())(*x.args)(*x.args)


@use("cnn", "unet", may_refuse=True)
def shapes_alone(model: Any, x: Inputs) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return list(model.eval()(torch.ones(*x.args[0].shape)).shape)


@use("cnn", "stochastic", may_refuse=True)
def derivatives_of_forward_mode(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        output = model.eval()(forward_ad.make_dual(x.args[0], torch.ones(*x.args[0].shape)))
        return tuple(forward_ad.unpack_dual(output))


@use("cnn", "stochastic", may_refuse=True)
def traced_to_torchscript(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.through(torch.jit.trace(model.eval(), x.args)).detach()


@use("cnn", "rebinding", may_refuse=True)
def exported(model: Any, x: Inputs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.through(torch.export.export(model.eval(), x.args, strict=False).module()).detach()


@use("cnn", "unet", may_refuse=True)
def traced_to_a_graph(model: Any, x: Inputs) -> Any:
    return x.through(torch.fx.symbolic_trace(model.eval()))


@use(*EAGER)
def structure_as_text(model: Any, _: Inputs) -> Any:
    return re.sub(r"\n#.*", "", repr(model)), repr(model.fc), repr(model.stem), model.fc.extra_repr()


@use(*EAGER)
def parts_by_path(model: Any, x: Inputs) -> Any:
    return (
        model.get_submodule("stem") is model.stem,
        model.get_parameter("fc.weight") is model.fc.weight,
        caught(AttributeError, lambda: model.get_submodule("fc.nowhere")),
        caught(AttributeError, lambda: model.nowhere),
        [name for name, module in model.named_modules() if module is model.fc],
        sum(parameter.numel() for parameter in model.parameters()),
        len(list(model.modules())), "stem" in dir(model),
    )  # fmt: skip


@use(*EAGER)
def kinds_of_parts(model: Any, x: Inputs) -> Any:
    kinds = (
        nn.Module, nn.Linear, nn.Sequential, nn.ModuleList, nn.Conv2d, nn.BatchNorm2d, nn.LSTM, nn.Embedding,
        nn.Dropout, nn.TransformerEncoderLayer, nn.modules.batchnorm._BatchNorm,
    )  # fmt: skip
    return [[kind.__name__ for kind in kinds if isinstance(module, kind)] for module in model.modules()]


@use("cnn", "transformer", "lists", "stochastic")
def sequences_walked(model: Any, x: Inputs) -> Any:
    return (
        len(model.stem), model.stem[0] is next(iter(model.stem)), model.stem[-1] is list(model.stem)[-1],
        [name for name, _ in model.stem.named_parameters()], model.stem[:1](*x.args),
    )  # fmt: skip


@use("cnn", "lstm", "unet", "dicts", "scripted")
def wrong_shape_of_an_input(model: Any, x: Inputs) -> Any:
    return caught(RuntimeError, lambda: model(torch.ones(2, 99, 7))), x.through(model)


@use()
def wrong_number_of_inputs(model: Any, x: Inputs) -> Any:
    kind = RuntimeError if isinstance(model, torch.jit.ScriptModule) else (TypeError, RuntimeError)
    return caught_any(kind, lambda: model(*x.args, *x.args, *x.args)), x.through(model)


def caught_any(kinds: Any, run: Any) -> str:
    try:
        run()
    except kinds as error:
        return type(error).__name__
    raise AssertionError("nothing was raised")
