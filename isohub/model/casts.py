"""Casts and moves of isolated modules, done in the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from isohub.errors import LocalProtocolError
from isohub.model.objects import ask
from isohub.model.scripts import look_again

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = ["apply", "move", "named_cast", "to", "to_empty"]

_Function = Callable[[torch.Tensor], torch.Tensor]


def named_cast(module: IsolatedModule, method: str, dtype: torch.dtype) -> None:
    """Do `module.half()` and its like, by the method of that name of the worker's module."""
    # Complex tensors stay as they are, unlike in `to`.
    if not all(tensor.dtype is dtype for tensor in _tensors(module) if tensor.is_floating_point()):
        with _gradients_too(module, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor):
            ask(module, "apply", name=method)


def to(module: IsolatedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Do `module.to(*args, **kwargs)`.

    Raises:
        TypeError: As torch raises it, for arguments that make no sense.
        RuntimeError: The worker has no such device.
    """
    nn.Module().to(*args, **kwargs)  # torch's own errors and warnings
    parsed: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype, non_blocking, memory_format = parsed
    options: dict[str, Any] = {"non_blocking": non_blocking} if non_blocking else {}
    if memory_format is not None:
        options["memory_format"] = memory_format
    tensors = _tensors(module)

    def convert(gradient: torch.Tensor) -> torch.Tensor:
        if memory_format is not None and gradient.dim() in (4, 5):
            return gradient.to(device, dtype, memory_format=memory_format)
        return gradient.to(device, dtype)

    if device is not None and (device.type != "cpu" or any(tensor.is_meta for tensor in tensors)):
        # A gradient of this side cannot go to the worker's own device.
        with _gradients_too(module, convert if device.type == "meta" else None):
            move(module, "to", device, device, *([] if dtype is None else [dtype]), **options)
        return
    cast = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    if memory_format is not None:
        with _gradients_too(module, convert):
            ask(module, "apply", name="to", kwargs={"dtype": dtype, **options})
    elif dtype is not None and not all(tensor.dtype is dtype for tensor in cast):
        with _gradients_too(module, convert):
            ask(module, "apply", dtype, name="to")


def move(module: IsolatedModule, method: str, device: torch.device, /, *args: Any, **kwargs: Any) -> None:
    """Have the worker's module move itself to a device, by one of its own methods.

    Raises:
        RuntimeError: The worker has no such device.
    """
    ask(module, "state", method, device, *args, name="move", kwargs=kwargs)
    look_again(module)


def to_empty(module: IsolatedModule, device: torch.device, *, recurse: bool) -> None:
    """Do `module.to_empty(device=device, recurse=recurse)`.

    Raises:
        RuntimeError: The worker has no such device.
    """

    def empty(gradient: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(gradient, device=device)

    with _gradients_too(module, empty if device.type in ("cpu", "meta") else None, recurse=recurse):
        move(module, "to_empty", device, device=device, recurse=recurse)


def apply(module: IsolatedModule, function: _Function, *, recurse: bool) -> None:
    """Do to all tensors what `function` does; it is what a container calls for `.half()`, `.cpu()` and so on.

    A function can only run here. So it is tried on small tensors first: where it casts, or moves to another
    device, the worker's module is cast or moved in the same way; where it gives back what it got, it runs on the
    tensors themselves, and may write there.

    Raises:
        LocalProtocolError: It makes other values, or shapes.
        Exception: What `function` raises.
    """
    tensors = [tensor for part in (module.modules() if recurse else [module])
               for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]  # fmt: skip
    effects = {key: _effect(function, *key) for key in {(one.dtype, one.dim(), one.is_meta) for one in tensors}}
    if all(effect is None for effect in effects.values()):
        with torch.no_grad(), _gradients_too(module, function, recurse=recurse):
            for tensor in {id(one): one for one in tensors}.values():
                function(tensor)
        return
    changed = {key: effect for key, effect in effects.items() if effect is not None}
    dtypes = {(key[0], effect.dtype) for key, effect in changed.items() if effect.dtype is not key[0]}
    devices = {effect.device for effect in effects.values() if effect is not None and effect.device is not None}
    formats = {effect.memory_format for effect in changed.values() if effect.memory_format is not None}
    if len({old for old, _ in dtypes}) != len(dtypes) or len(devices) > 1 or len(formats) > 1:
        raise _unlike("it casts tensors of one dtype to several")
    if dtypes or devices or formats:
        where = next(iter(devices), None)
        with _gradients_too(module, function if where is None or where.type == "meta" else None, recurse=recurse):
            ask(
                module, "state", sorted(dtypes, key=str), where, next(iter(formats), None), recurse, name="cast"
            )  # fmt: skip
            look_again(module)


@contextmanager
def _gradients_too(module: IsolatedModule, function: _Function | None, *, recurse: bool = True) -> Iterator[None]:
    """Do to the gradients, which only this side has, what is done to the parameters meanwhile; as nn.Module does.

    Args:
        module: The module.
        function: What to do; None to leave them alone.
        recurse: Whether to the parts below, too.
    """
    before = {
        id(parameter): (part, name, parameter, parameter.grad)
        for part in (module.modules() if recurse else [module])
        for name, parameter in part._parameters.items() if parameter is not None
    }  # fmt: skip
    yield
    for part, name, parameter, gradient in before.values():
        now = part._parameters.get(name)
        if function is None or gradient is None or now is None:
            continue
        with torch.no_grad():
            changed = function(gradient)
        if now is parameter:
            gradient.data = changed
        else:
            now.grad = changed.requires_grad_(gradient.requires_grad)


class _Effect(NamedTuple):
    """What a function made of a tensor, other than the tensor itself."""

    dtype: torch.dtype
    device: torch.device | None
    memory_format: torch.memory_format | None


def _effect(function: _Function, dtype: torch.dtype, dimensions: int, is_meta: bool) -> _Effect | None:
    probe = torch.zeros([2] * dimensions, dtype=torch.uint8).add_(1).to(dtype)
    before = probe.to("meta") if is_meta else probe.clone()
    address = before.data_ptr()
    with torch.no_grad():
        after = function(before)
    if getattr(after, "shape", None) != probe.shape:
        raise _unlike("it makes something else of a tensor")
    device = None if after.device.type == before.device.type else after.device
    if not is_meta and device is None and (after.data_ptr(), after.dtype) == (address, dtype):
        return None  # it may have written there
    if is_meta and device is None and after.dtype is dtype:
        return None
    # What it computes must be what a cast computes: one for each element of the probe.
    if not is_meta and after.is_cpu and not torch.equal(after.contiguous(), probe.to(after.dtype)):
        raise _unlike("it computes other values")
    memory_format = None
    if dimensions in (4, 5) and after.stride() != probe.stride():
        memory_format = torch.channels_last if dimensions == 4 else torch.channels_last_3d
        if not after.is_contiguous(memory_format=memory_format):
            raise _unlike("it lays tensors out in a way of its own")
    return _Effect(after.dtype, device, memory_format)


def _tensors(module: IsolatedModule) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _unlike(what: str) -> LocalProtocolError:
    return LocalProtocolError(
        f"this function would change the tensors here and leave the worker's as they are: {what}. Casts and moves are "
        "done on both sides (.to(dtype), .half() and their like, alone or in a container); write other values into "
        "the tensors in place, under torch.no_grad()"
    )
