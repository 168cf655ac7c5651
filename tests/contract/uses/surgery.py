"""Parts added, replaced and removed here, in the worker as well."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.contract.harness import EAGER, Inputs, caught, loss_of, use

FEW = ("cnn", "lstm", "dicts", "stochastic")


def new_head(model: Any) -> nn.Linear:
    return nn.Linear(model.fc.in_features, model.fc.out_features)


def names(model: Any) -> list[str]:
    return [name for name, _ in [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]]


def forward_and_backward(model: Any, x: Inputs) -> Any:
    output = x.through(model)
    loss_of(output).backward()
    return names(model), output


@use(*EAGER)
def new_head_set(model: Any, x: Inputs) -> Any:
    model.fc = new_head(model)
    return forward_and_backward(model, x)


@use(*EAGER)
def new_head_trained(model: Any, x: Inputs) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = new_head(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss_of(x.through(model)))
        losses[-1].backward()
        optimizer.step()
    return losses


@use(*FEW)
def head_held_by_the_caller(model: Any, x: Inputs) -> Any:
    """The module handed over stays the model's: what is written into it counts."""
    head = new_head(model)
    model.fc = head
    with torch.no_grad():
        head.weight.fill_(0.25)
        head.bias.zero_()
    return x.through(model.eval()), model.fc.weight


@use(*FEW)
def optimizer_made_before_the_head_was_set(model: Any, x: Inputs) -> Any:
    head = new_head(model)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    model.fc = head
    loss_of(x.through(model)).backward()
    optimizer.step()
    return x.through(model.eval())


@use(*EAGER)
def head_of_several_layers(model: Any, x: Inputs) -> Any:
    width, out = model.fc.in_features, model.fc.out_features
    model.fc = nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Dropout(0.2),
                             nn.Linear(5, out))  # fmt: skip
    return forward_and_backward(model.train(), x)


@use("cnn", "transformer", "dicts", "stochastic")
def head_removed(model: Any, x: Inputs) -> Any:
    model.fc = nn.Identity()
    return forward_and_backward(model, x)


@use("cnn", "unet", "tied", "lists")
def part_of_a_sequence_replaced(model: Any, x: Inputs) -> Any:
    model.stem[len(model.stem) - 1] = (
        nn.Tanh() if len(model.stem) > 2 else nn.LayerNorm(7 if hasattr(model, "blocks") else 6)
    )
    return forward_and_backward(model, x)


@use("cnn")
def part_deep_down_replaced(model: Any, x: Inputs) -> Any:
    model.layer1[1].conv = nn.Conv2d(6, 6, 1)
    model.layer1[0].bn = nn.Identity()
    return forward_and_backward(model, x)


@use("cnn", "dicts", "stochastic")
def norms_replaced_in_a_loop(model: Any, x: Inputs) -> Any:
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm1d):
                setattr(module, name, nn.GroupNorm(2, child.num_features))
    return forward_and_backward(model, x)


@use(*EAGER)
def part_added_and_deleted(model: Any, x: Inputs) -> Any:
    model.add_module("extra", nn.Linear(2, 2))
    added = names(model), model.extra(torch.ones(2))
    del model.extra
    return added, names(model), hasattr(model, "extra"), x.through(model)


@use("cnn", "lists")
def part_that_is_needed_deleted(model: Any, x: Inputs) -> Any:
    del model.fc
    return names(model), caught(AttributeError, lambda: x.through(model))


@use("stochastic", "checkpointed")
def list_of_modules_changed(model: Any, x: Inputs) -> Any:
    model.blocks.append(nn.Linear(6, 6))
    model.blocks.insert(0, nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    del model.blocks[1]
    model.blocks.extend([nn.Tanh()])
    return len(model.blocks), forward_and_backward(model.eval(), x)


@use("stochastic", "checkpointed")
def list_of_modules_shortened(model: Any, x: Inputs) -> Any:
    model.blocks = model.blocks[:1]
    return len(model.blocks), forward_and_backward(model.eval(), x)


@use("stochastic", "checkpointed")
def lists_of_modules_joined(model: Any, x: Inputs) -> Any:
    before = model.blocks
    model.blocks += [nn.Linear(6, 6)]
    longer = model.blocks + nn.ModuleList([nn.Tanh()])
    return model.blocks is before, len(model.blocks), len(longer), forward_and_backward(model.eval(), x)


@use("cnn", "unet")
def sequences_joined(model: Any, x: Inputs) -> Any:
    model.stem = model.stem + nn.Sequential(nn.Tanh())
    longer = nn.Sequential(nn.Identity()) + model.stem
    return len(longer), caught(TypeError, lambda: model.fc + nn.Tanh()), forward_and_backward(model, x), longer(*x.args)


@use(*FEW)
def forward_wrapped(model: Any, x: Inputs) -> Any:
    before = model.fc.forward
    model.fc.forward = lambda value: before(value) * 2
    return forward_and_backward(model, x)


@use(*FEW)
def method_of_a_part_given_to_another(model: Any, x: Inputs) -> Any:
    features = model.features
    model.fc.forward = lambda value: value.sum() + features(*x.args).sum()
    return x.through(model.eval())


@use("cnn", "dicts")
def sequence_grown(model: Any, x: Inputs) -> Any:
    model.stem.append(nn.Tanh())
    model.stem.insert(1, nn.Identity())
    return forward_and_backward(model, x)


@use(*EAGER)
def parameter_replaced(model: Any, x: Inputs) -> Any:
    model.fc.weight = nn.Parameter(torch.full_like(model.fc.weight, 0.1))
    return forward_and_backward(model, x)


@use(*EAGER)
def parameter_removed(model: Any, x: Inputs) -> Any:
    model.fc.bias = None
    return forward_and_backward(model, x)


@use(*EAGER)
def parameter_given_other_data(model: Any, x: Inputs) -> Any:
    model.fc.weight.data = torch.full_like(model.fc.weight, 0.1)
    model.fc.bias.data = torch.arange(float(model.fc.bias.numel()))
    return forward_and_backward(model, x)


@use("cnn", "dicts", "stochastic", "lstm")
def parameters_tied(model: Any, x: Inputs) -> Any:
    model.other = new_head(model)
    model.fc.weight = model.other.weight
    return model.fc.weight is model.other.weight, forward_and_backward(model, x)


@use("tied")
def parameters_untied(model: Any, x: Inputs) -> Any:
    model.decoder.weight = nn.Parameter(model.stem[0].weight.detach().clone())
    return forward_and_backward(model, x)


@use(*FEW)
def parameter_and_buffer_registered(model: Any, x: Inputs) -> Any:
    model.register_parameter("temperature", nn.Parameter(torch.full((2,), 0.5)))
    model.register_buffer("seen", torch.zeros(3))
    model.register_buffer("hidden", torch.ones(1), persistent=False)
    model.seen += 1
    model.nothing = None
    model.register_parameter("absent", None)
    return forward_and_backward(model, x), list(model.state_dict())


@use("rebinding", "cnn")
def buffer_replaced(model: Any, x: Inputs) -> Any:
    if hasattr(model, "mean"):
        model.mean = torch.full((5,), 0.5)
    else:
        model.stem[1].running_mean = torch.full((6,), 0.5)
    return forward_and_backward(model.eval(), x)


@use(*FEW)
def name_that_is_taken(model: Any, x: Inputs) -> Any:
    return [
        caught(KeyError, lambda: model.register_parameter("training", nn.Parameter(torch.ones(1)))),
        caught(KeyError, lambda: model.add_module("a.b", nn.ReLU())),
        caught(TypeError, lambda: model.add_module("extra", 3)),
        caught(TypeError, lambda: setattr(model.fc, "weight", torch.ones(2))),
        caught(AttributeError, lambda: delattr(model, "nowhere")),
    ]


@use("scripted")
def surgery_on_a_script(model: Any, x: Inputs) -> Any:
    model.fc.weight = nn.Parameter(torch.full_like(model.fc.weight, 0.1))
    return x.through(model.eval())


@use(*FEW, may_refuse=True)
def head_wrapped(model: Any, x: Inputs) -> Any:
    model.fc = nn.Sequential(model.fc, nn.Tanh())
    return forward_and_backward(model, x)


@use("cnn", may_refuse=True)
def parts_exchanged(model: Any, x: Inputs) -> Any:
    model.layer1[0], model.layer1[1] = model.layer1[1], model.layer1[0]
    return forward_and_backward(model, x)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.tanh()


@use(*FEW, may_refuse=True)
def parametrization_registered(model: Any, x: Inputs) -> Any:
    parametrize.register_parametrization(model.fc, "weight", Symmetric())
    done = forward_and_backward(model, x)
    parametrize.remove_parametrizations(model.fc, "weight")
    return done, x.through(model)


@use("cnn", "dicts", may_refuse=True)
def weight_and_spectral_norm(model: Any, x: Inputs) -> Any:
    parametrizations.weight_norm(model.fc)
    parametrizations.spectral_norm(model.stem[0])
    return forward_and_backward(model, x)


@use("cnn", "dicts", may_refuse=True)
def pruning(model: Any, x: Inputs) -> Any:
    prune.l1_unstructured(model.fc, "weight", 0.5)
    done = forward_and_backward(model, x)
    prune.remove(model.fc, "weight")
    return done, x.through(model)


@use("cnn", may_refuse=True)
def norm_fused_into_its_convolution(model: Any, x: Inputs) -> Any:
    model.eval()
    model.stem[0] = nn.utils.fuse_conv_bn_eval(model.stem[0], model.stem[1])
    model.stem[1] = nn.Identity()
    return x.through(model)


@use("cnn", "transformer")
def part_of_a_copy_put_in(model: Any, x: Inputs) -> Any:
    head = copy.deepcopy(nn.Linear(model.fc.in_features, model.fc.out_features))
    model.fc = head
    model.fc.weight.requires_grad_(False)
    return forward_and_backward(model, x)
