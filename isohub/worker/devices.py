"""Modules that their worker has on a device of its own, such as a GPU.

The parent stays on the CPU: what it gives goes to the module's device here, and what comes out comes back.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

__all__ = ["check", "is_elsewhere", "to_cpu", "to_device_of"]

_used: list[torch.device] = []  # to which modules were moved: until then nothing need be looked at


def check(device: torch.device) -> None:
    """Raise if a module cannot be moved there.

    Raises:
        RuntimeError: This worker cannot use the device.
    """
    if device.type in ("cpu", "meta"):
        return
    try:
        torch.empty(0, device=device)
    except Exception as error:  # noqa: BLE001 - each backend has its own
        raise RuntimeError(
            f"the worker has no device {str(device)!r}: {type(error).__name__}: {error}. Keep the module on the CPU, "
            "or use a torch that has that device"
        ) from None
    _used.append(device)


def is_elsewhere(tensor: torch.Tensor | None) -> bool:
    """Return whether a tensor lies where only this worker can reach it."""
    return tensor is not None and tensor.device.type not in ("cpu", "meta")


def to_device_of(module: object, value: Any) -> Any:
    """Return `value` with its tensors on the device of `module`, if it is a module that has one."""
    if not _used or not isinstance(module, torch.nn.Module):
        return value
    first = next(iter((*module.parameters(), *module.buffers())), None)
    return _to(value, first.device) if first is not None and is_elsewhere(first) else value


def to_cpu(value: Any) -> Any:
    """Return `value` with those of its tensors on the CPU that lie elsewhere."""
    return _to(value, torch.device("cpu"), only=is_elsewhere) if _used else value


def _to(value: Any, device: torch.device, only: Any = lambda _: True) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device) if only(value) else value
    if type(value) in (list, set):
        return type(value)(_to(member, device, only) for member in value)
    if type(value) is tuple or hasattr(value, "_fields"):
        members = [_to(member, device, only) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    if isinstance(value, dict):  # and mapping-like outputs, which keep their class
        result = copy.copy(value)
        for key, member in value.items():
            result[key] = _to(member, device, only)
        return result
    return value
