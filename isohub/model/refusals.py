"""What is going on around a call that cannot reach into another process: refused, rather than left out in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from isohub.errors import LocalProtocolError

__all__ = ["check_surroundings", "is_followed"]

_count_of_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

# Modes of torch under which tensors are stand-ins, by the names of their classes: to import them takes long.
_TRACERS = {
    "ProxyTorchDispatchMode": "make_fx",
    "FakeTensorMode": "FakeTensorMode",
    "FunctionalTensorMode": "functionalization",
}


def is_followed() -> bool:
    """Return whether torch here may be following what a call does; asked before each call, so it is quick."""
    return forward_ad._current_level >= 0 or _count_of_modes() > 0


def check_surroundings(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    """Refuse a question to a worker of which torch here would see nothing, though it is to follow it.

    Raises:
        LocalProtocolError: Forward-mode derivatives are asked for, or operations are being recorded.
    """
    for place in range(torch._C._len_torch_dispatch_stack()):
        name = type(torch._C._get_dispatch_stack_at(place)).__name__
        if name in _TRACERS:
            raise LocalProtocolError(
                f"{_TRACERS[name]} cannot follow a module into its worker: have it done there, isohub.run_in(model, "
                'function, ...), or ask for a module that has no worker, isohub.load(..., returns="export")'
            )
    if forward_ad._current_level >= 0:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        parts: list[Any] = [forward_ad.unpack_dual(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
        if any(part.tangent is not None for part in parts):
            raise LocalProtocolError(
                "derivatives of forward mode (torch.func.jvp, torch.autograd.forward_ad) do not cross to a worker: "
                "take those of reverse mode, or have them computed there, isohub.run_in(model, lambda module, x, t: "
                "torch.func.jvp(module, (x,), (t,)), x, tangent)"
            )
