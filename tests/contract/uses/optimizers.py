"""Optimizers of torch, stepping here on the memory that the worker computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils

from tests.contract.harness import ALL, EAGER, Inputs, loss_of, use

FEW = ("cnn", "lstm", "tied", "scripted", "stochastic")


def train(model: Any, x: Inputs, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float]:
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        loss = loss_of(x.map(lambda tensor, k=k: tensor * (1 + k)).through(model))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@use()
def sgd_with_momentum(model: Any, x: Inputs) -> Any:
    return train(model, x, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True))


@use(*ALL, "rebinding", "checkpointed")
def adam(model: Any, x: Inputs) -> Any:
    return train(model, x, torch.optim.Adam(model.parameters(), lr=0.01))


@use(*FEW)
def adamw_with_groups_by_name(model: Any, x: Inputs) -> Any:
    plain = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    decayed = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 0.05}]
    return train(model, x, torch.optim.AdamW(groups, lr=0.01))


@use(*EAGER)
def smaller_rate_for_the_trunk(model: Any, x: Inputs) -> Any:
    head = [id(parameter) for parameter in model.fc.parameters()]
    trunk = [parameter for parameter in model.parameters() if id(parameter) not in head]
    groups = [{"params": trunk, "lr": 0.001}, {"params": model.fc.parameters()}]
    return train(model, x, torch.optim.SGD(groups, lr=0.1))


@use(*FEW)
def named_parameters_in_an_optimizer(model: Any, x: Inputs) -> Any:
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    losses = train(model, x, optimizer)
    return losses, optimizer.state_dict()["param_groups"][0]["param_names"]


@use(*FEW)
def foreach_and_fused(model: Any, x: Inputs) -> Any:
    each = train(model, x, torch.optim.Adam(model.parameters(), foreach=True))
    return each, train(model, x, torch.optim.Adam(model.parameters(), fused=True))


@use("cnn", "dicts", "rebinding")
def lbfgs_with_a_closure(model: Any, x: Inputs) -> Any:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(x.through(model))
        loss.backward()
        return loss

    return [optimizer.step(closure), optimizer.step(closure)]


@use("cnn", "stochastic")
def adagrad_and_rmsprop(model: Any, x: Inputs) -> Any:
    return [train(model, x, kind(model.parameters())) for kind in (torch.optim.Adagrad, torch.optim.RMSprop)]


@use()
def gradients_set_to_zero(model: Any, x: Inputs) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(x.through(model)).backward()
    before = [parameter.grad for parameter in model.parameters()]
    optimizer.zero_grad(set_to_none=False)
    after = [parameter.grad for parameter in model.parameters()]
    return [one is other for one, other in zip(before, after, strict=True)]


@use()
def gradients_dropped_by_the_model(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    model.zero_grad()
    dropped = [parameter.grad for parameter in model.parameters()]
    loss_of(x.through(model)).backward()
    return dropped


@use(*FEW)
def gradients_dropped_for_a_part(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    model.fc.zero_grad()


@use(*FEW)
def gradients_written_by_hand(model: Any, x: Inputs) -> Any:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    loss_of(x.through(model)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return x.through(model)


@use(*FEW)
def gradients_kept_by_the_caller(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    kept = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    loss_of(x.map(lambda tensor: tensor * 3).through(model)).backward()
    return kept


@use(*FEW)
def learning_rate_schedules(model: Any, x: Inputs) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=4)
    found = []
    for _ in range(3):
        found += [*train(model, x, optimizer, steps=1), *schedule.get_last_lr()]
        schedule.step()
    return found


@use(*FEW)
def state_of_an_optimizer_saved_and_loaded(model: Any, x: Inputs) -> Any:
    one = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = train(model, x, one)
    two = torch.optim.Adam(model.parameters(), lr=0.5)
    two.load_state_dict(one.state_dict())
    return losses, train(model, x, two), two.state_dict()["state"]


@use(*FEW)
def average_kept_by_torch(model: Any, x: Inputs) -> Any:
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        train(model, x, optimizer, steps=1)
        average.update_parameters(model)
    return dict(average.state_dict()), x.through(average.eval())


@use()
def average_kept_by_hand(model: Any, x: Inputs) -> Any:
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        train(model, x, optimizer, steps=1)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 0.1)
    model.load_state_dict(average)
    return average, x.through(model.eval())


@use()
def parameters_as_one_vector(model: Any, x: Inputs) -> Any:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 0.5, model.parameters())
    output = x.through(model)
    loss_of(output).backward()
    return vector, output


@use()
def values_written_into_data(model: Any, x: Inputs) -> Any:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
        parameter.data.clamp_(-0.2, 0.2)
    return x.through(model)


@use(*EAGER)
def weights_made_anew(model: Any, x: Inputs) -> Any:
    nn.init.normal_(model.fc.weight, std=0.02)
    nn.init.zeros_(model.fc.bias)
    return x.through(model)


@use(*EAGER)
def weights_made_anew_by_apply(model: Any, x: Inputs) -> Any:
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.constant_(module.weight, 0.5)

    return model.apply(init) is model, x.through(model)


@use(*FEW)
def loss_scaled(model: Any, x: Inputs) -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(loss_of(x.through(model)).float()).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return norm, scaler.get_scale()


@use("cnn", "tied", kept_by_torch=True)
def step_inside_of_backward(model: Any, x: Inputs) -> Any:
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    losses = []
    for _ in range(2):
        losses.append(loss_of(x.through(model)))
        losses[-1].backward()
    return losses


@use()
def names_in_order(model: Any, _: Inputs) -> Any:
    walks: Iterable[Callable[[], Any]] = (
        model.named_parameters, model.named_buffers, model.named_modules, model.named_children
    )  # fmt: skip
    found = [[name for name, _ in walk()] for walk in walks]
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return found, every, [name for name, _ in model.fc.named_parameters(prefix="head")]
