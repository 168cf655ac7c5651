"""Training and evaluation, and one random stream for caller and worker."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.contract.harness import ALL, EAGER, Inputs, loss_of, use

RANDOM = ("transformer", "lstm", "unet", "scripted", "stochastic", "checkpointed")
NORMED = ("cnn", "dicts", "stochastic", "scripted")


@use(*ALL, "rebinding", "checkpointed")
def train_then_evaluate(model: Any, x: Inputs) -> Any:
    return x.through(model.train()), x.through(model.eval()), x.through(model.train(True)), model.training


@use(*ALL, "rebinding")
def running_statistics(model: Any, x: Inputs) -> Any:
    seen = []
    with torch.no_grad():
        for k in (1.0, 2.0):
            x.map(lambda tensor, k=k: tensor * k).through(model)
            seen.append([buffer.clone() for buffer in model.buffers()])
    return seen, x.through(model.eval())


@use(*RANDOM)
def random_numbers_drawn_in_between(model: Any, x: Inputs) -> Any:
    return x.through(model), torch.rand(3), x.through(model), torch.randn(2), torch.randperm(5)


@use(*RANDOM)
def seed_set_again(model: Any, x: Inputs) -> Any:
    with torch.no_grad():
        torch.manual_seed(7)
        one = x.through(model)
        torch.manual_seed(7)
        two = x.through(model)
    return one, two


@use(*RANDOM)
def generator_put_back(model: Any, x: Inputs) -> Any:
    before = torch.get_rng_state()
    one = x.through(model)
    torch.set_rng_state(before)
    return one, x.through(model), torch.rand(2)


@use(*RANDOM)
def generator_forked(model: Any, x: Inputs) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        inside = x.through(model)
    return inside, torch.rand(2), x.through(model)


@use(*RANDOM)
def backward_leaves_the_generator(model: Any, x: Inputs) -> Any:
    loss = loss_of(x.through(model))
    drawn = torch.rand(2)
    loss.backward()
    return drawn, torch.rand(2)


@use(*EAGER)
def one_part_in_evaluation(model: Any, x: Inputs) -> Any:
    model.train()
    model.stem.eval()
    return x.through(model), [module.training for module in model.modules()]


@use(*NORMED)
def frozen_norms(model: Any, x: Inputs) -> Any:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, kinds):
            module.eval()
            module.weight.requires_grad_(False)
    output = x.through(model)
    loss_of(output).backward()
    return output, [isinstance(module, kinds) for module in model.modules()]


@use("cnn", "dicts", "stochastic")
def momentum_of_the_norms(model: Any, x: Inputs) -> Any:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
            module.eps = 1e-2
    output = x.through(model)
    return output, [module.momentum for module in model.modules() if hasattr(module, "running_mean")]


@use("cnn", "dicts", "stochastic")
def statistics_forgotten(model: Any, x: Inputs) -> Any:
    x.through(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    return x.through(model.eval())


@use("transformer", "unet", "stochastic", "checkpointed")
def dropout_set_by_kind(model: Any, x: Inputs) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.9
    output = x.through(model)
    return output, [module.p for module in model.modules() if type(getattr(module, "p", None)) is float]


@use("stochastic", "cnn", "rebinding")
def default_dtype(model: Any, x: Inputs) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return x.through(model), torch.rand(2)
    finally:
        torch.set_default_dtype(before)


@use("rebinding")
def state_replaced_by_the_models_own_code(model: Any, x: Inputs) -> Any:
    before = model.mean
    output = x.through(model)
    changed = model.mean is before
    model.renew()
    loss_of(x.through(model)).backward()
    return output, changed, before, model.scale.grad, model.extra.weight, model.calls, list(model.state_dict())


@use("rebinding", "stochastic")
def plain_attributes(model: Any, x: Inputs) -> Any:
    model.temperature = 0.5
    model.note = {"a": [1, 2]}
    found = model.temperature, model.note, hasattr(model, "nowhere")
    del model.note
    return found, hasattr(model, "note"), x.through(model)
