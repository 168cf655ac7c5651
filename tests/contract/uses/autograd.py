"""Autograd across the border: the graph in the worker, gradients here."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.contract.harness import ALL, EAGER, GradientsOfInputs, Inputs, caught, loss_of, tensors_in, use

FEW = ("cnn", "lstm", "dicts", "scripted")


def first(output: object) -> torch.Tensor:
    return next(tensor for tensor in tensors_in(output) if tensor.is_floating_point())


@use(*ALL, "checkpointed", "reentrant", "rebinding")
def backward(model: Any, x: Inputs) -> Any:
    output = x.through(model.train())
    loss_of(output).backward()
    return output


@use()
def backward_in_evaluation(model: Any, x: Inputs) -> Any:
    output = x.through(model.eval())
    loss_of(output).backward()
    return output


@use(*ALL, "checkpointed", "reentrant")
def gradients_of_inputs(model: Any, x: Inputs) -> Any:
    asking = x.asking()
    loss_of(asking.through(model)).backward()
    return [tensor.grad for tensor in asking.floats]


@use()
def graph_before_the_model(model: Any, x: Inputs) -> Any:
    asking = x.asking()
    loss_of(asking.map(lambda tensor: (tensor * 2).tanh()).through(model)).backward()
    return [tensor.grad for tensor in asking.floats]


@use()
def input_that_is_a_view(model: Any, x: Inputs) -> Any:
    base = [tensor.detach().unsqueeze(0).repeat(2, *[1] * tensor.dim()).requires_grad_() for tensor in x.floats]
    views = iter(base)
    loss_of(x.map(lambda _: next(views)[1]).through(model)).backward()
    return [tensor.grad for tensor in base]


@use(*FEW, "unet")
def input_that_is_transposed(model: Any, x: Inputs) -> Any:
    asking = x.map(lambda t: t.detach().transpose(0, -1).contiguous().requires_grad_())
    output = asking.map(lambda tensor: tensor.transpose(0, -1)).through(model)
    loss_of(output).backward()
    return output, [tensor.grad for tensor in asking.floats]


@use(*ALL, "checkpointed", "rebinding")
def two_forwards_then_two_backwards(model: Any, x: Inputs) -> Any:
    one = loss_of(x.through(model))
    two = loss_of(x.map(lambda tensor: tensor * 0.5).through(model))
    two.backward()
    after_one = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    one.backward()
    return one, two, after_one


@use(*ALL, "checkpointed", "rebinding", summed_otherwise=("tied",))
def used_twice_in_one_graph(model: Any, x: Inputs) -> Any:
    one, two = x.through(model), x.map(lambda tensor: -tensor).through(model)
    (loss_of(one) * loss_of(two)).backward()
    return one, two


@use(*FEW, "tied", summed_otherwise=("tied",))
def used_four_times_in_one_graph(model: Any, x: Inputs) -> Any:
    losses = [loss_of(x.map(lambda tensor, k=k: tensor * k).through(model)) for k in (1.0, 0.5, -1.0, 2.0)]
    torch.stack(losses).logsumexp(0).backward()
    return losses


@use(*ALL, "checkpointed", "rebinding")
def graph_kept_for_a_second_backward(model: Any, x: Inputs) -> Any:
    loss = loss_of(x.through(model))
    loss.backward(retain_graph=True)
    once = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    loss.backward()
    return once


@use(kept_by_torch=True)
def graph_freed_by_its_backward(model: Any, x: Inputs) -> Any:
    loss = loss_of(x.through(model.eval()))
    loss.backward()
    return caught(RuntimeError, loss.backward)


@use(*ALL, "checkpointed", "rebinding")
def accumulation_over_three_batches(model: Any, x: Inputs) -> Any:
    for k in (1.0, 2.0, 3.0):
        (loss_of(x.map(lambda tensor, k=k: tensor / k).through(model)) / 3).backward()


@use(*EAGER)
def frozen_part(model: Any, x: Inputs) -> Any:
    model.stem.requires_grad_(False)
    loss_of(x.through(model)).backward()
    return [parameter.requires_grad for parameter in model.parameters()]


@use()
def frozen_parameters_one_by_one(model: Any, x: Inputs) -> Any:
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad = False
    loss_of(x.through(model)).backward()


@use()
def frozen_and_thawed(model: Any, x: Inputs) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen = x.through(model)
    for parameter in list(model.parameters())[-2:]:
        parameter.requires_grad_()
    thawed = x.through(model)
    loss_of(thawed).backward()
    return frozen, thawed


@use(*EAGER)
def all_frozen_but_the_input(model: Any, x: Inputs) -> Any:
    model.requires_grad_(False)
    asking = x.asking()
    output = asking.through(model.eval())
    if asking.floats:
        loss_of(output).backward()
    return output, [tensor.grad for tensor in asking.floats]


@use(*ALL, "checkpointed", "rebinding")
def autograd_grad(model: Any, x: Inputs) -> Any:
    asking = x.asking()
    wanted = [*model.parameters(), *asking.floats]
    return torch.autograd.grad(loss_of(asking.through(model)), wanted, allow_unused=True)


@use()
def autograd_grad_of_one_parameter(model: Any, x: Inputs) -> Any:
    return torch.autograd.grad(loss_of(x.through(model)), next(model.parameters()), allow_unused=True)


@use(*FEW)
def backward_into_chosen_tensors(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward(inputs=list(model.parameters())[-1:])


@use()
def backward_with_a_gradient_of_ones_own(model: Any, x: Inputs) -> Any:
    output = first(x.through(model))
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape))


@use("lstm", "dicts", "lists")
def only_one_of_several_outputs(model: Any, x: Inputs) -> Any:
    outputs = [tensor for tensor in tensors_in(x.through(model)) if tensor.requires_grad]
    outputs[-1].sum().backward()
    return len(outputs)


@use("lstm", "dicts", "lists")
def outputs_one_after_the_other(model: Any, x: Inputs) -> Any:
    outputs = [tensor for tensor in tensors_in(x.through(model)) if tensor.requires_grad]
    for i, output in enumerate(outputs):
        output.square().sum().backward(retain_graph=i + 1 < len(outputs))


@use(*ALL, "checkpointed", "rebinding")
def output_dropped_without_backward(model: Any, x: Inputs) -> Any:
    x.through(model)
    output = x.through(model)
    loss_of(output).backward()
    return output


@use()
def without_gradients(model: Any, x: Inputs) -> Any:
    with torch.no_grad():
        output = x.through(model)
    loss = loss_of(output)
    return output, caught(RuntimeError, loss.backward)


@use()
def in_inference_mode(model: Any, x: Inputs) -> Any:
    with torch.inference_mode():
        # What a model only hands back is a copy, and so one of this mode: let it be that in process, too.
        x = Inputs(x.args, {name: value.clone() for name, value in x.kwargs.items()})
        output = x.through(model.eval())
        flags = [tensor.is_inference() for tensor in tensors_in(output)]
        values = [tensor.clone() for tensor in tensors_in(output)]
    return flags, values


@use(*FEW)
def gradients_switched_by_function(model: Any, x: Inputs) -> Any:
    with torch.set_grad_enabled(False):
        off = x.through(model)
        with torch.enable_grad():
            on = x.through(model)
    loss_of(on).backward()
    return off, on


@use(*EAGER)  # TorchScript computes in another order once it has seen some calls
def autocast(model: Any, x: Inputs) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = x.through(model)
        loss = loss_of(output)
    loss.backward()
    return output


@use()
def clipping_by_norm(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    return nn.utils.clip_grad_norm_(model.parameters(), 0.1)


@use(*FEW)
def clipping_by_value(model: Any, x: Inputs) -> Any:
    loss_of(x.through(model)).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01)
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


@use(
    "cnn", "unet", "scripted", "stochastic", "rebinding",
    may_refuse=True, summed_otherwise=("cnn", "unet", "scripted", "stochastic"),
)  # fmt: skip
def double_backward(model: Any, x: Inputs) -> Any:
    asking = x.asking()
    (slope,) = torch.autograd.grad(loss_of(asking.through(model)), asking.floats, create_graph=True)
    slope.square().sum().backward()
    return slope


@use("cnn", "stochastic", "rebinding", summed_otherwise=("cnn", "stochastic", "rebinding"))
def product_with_the_hessian(model: Any, x: Inputs) -> Any:
    """Of the derivatives, of which this takes the third kind, torch alone holds what the second was given."""
    model.eval()
    ones = torch.ones(*x.args[0].shape)
    _, product = torch.autograd.functional.hvp(lambda value: loss_of(model(value)), x.args[0], ones)
    return GradientsOfInputs([product])


@use()
def gradient_hook_on_the_output(model: Any, x: Inputs) -> Any:
    output = first(x.through(model))
    output.retain_grad()
    seen = []
    output.register_hook(lambda gradient: (seen.append(gradient.clone()), gradient * 2)[1])
    loss_of(output).backward()
    return seen, output.grad


@use()
def gradient_hooks_on_parameters(model: Any, x: Inputs) -> Any:
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * 0.5)
    loss_of(x.through(model)).backward()


@use(*FEW, "tied")
def hooks_after_accumulation(model: Any, x: Inputs) -> Any:
    norms = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm()))
    loss_of(x.through(model)).backward()
    return sorted(norms)


@use("transformer", "tied")
def checkpointing_here(model: Any, x: Inputs) -> Any:
    output = checkpoint(lambda *args: Inputs(args, x.kwargs).through(model), *x.args, use_reentrant=False)
    loss_of(output).backward()
    return output


@use(*FEW)
def backward_in_a_thread(model: Any, x: Inputs) -> Any:
    loss = loss_of(x.through(model))
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


@use("cnn", "transformer", "dicts", "scripted", "stochastic", "rebinding")
def output_changed_in_place(model: Any, x: Inputs) -> Any:
    output = first(x.through(model))
    output += 1
    output.mul_(2)
    loss_of(output).backward()
    return output


@use("cnn", "unet", "lists")
def parameter_changed_between_forward_and_backward(model: Any, x: Inputs) -> Any:
    output = x.through(model)
    with torch.no_grad():
        model.fc.weight.add_(1)
    error = caught(RuntimeError, loss_of(output).backward)
    model.zero_grad()  # how far a backward came that failed is nobody's business
    return error


@use(*EAGER)
def part_called_alone(model: Any, x: Inputs) -> Any:
    asking = x.asking()
    hidden = model.stem(*asking.args)
    loss_of(hidden).backward()
    return hidden, asking.args[0].grad


@use("cnn", "lstm", "dicts", "stochastic")
def parts_called_one_after_the_other(model: Any, x: Inputs) -> Any:
    hidden = model.stem(*x.args).flatten(1)[:, :6]
    output = model.fc(hidden.tanh())
    loss_of(output).backward()
    return output


@use(*EAGER)
def method_with_gradients(model: Any, x: Inputs) -> Any:
    (loss_of(model.features(*x.args)) + model.penalty() * 0.5).backward()


@use("cnn", "stochastic", "dicts", "tied")
def penalty_on_weights_written_here(model: Any, x: Inputs) -> Any:
    decay = torch.stack([parameter.abs().sum() for parameter in model.parameters()]).sum()
    (loss_of(x.through(model)) + 0.1 * decay).backward()
