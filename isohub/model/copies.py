"""`copy.copy` and `copy.deepcopy` of isolated modules: the worker copies its module, and a mirror of that is made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from isohub.model import journal
from isohub.model.objects import ask
from isohub.model.recipe import inherit, members_of
from isohub.model.state import flags_of

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = ["duplicate"]


def duplicate(module: IsolatedModule, memo: dict[Any, Any] | None) -> Any:
    """Copy a module in its worker.

    Args:
        module: The module.
        memo: That of the `copy.deepcopy` that is under way, into which all that is copied here goes; None for a
            shallow copy, which shares parameters, buffers and sub-modules with the original.

    Raises:
        Exception: What the module's own `__deepcopy__` or `__copy__` raises, or torch for what it cannot copy.
        BrokenWorkerError: The worker is dead.
    """
    known = [] if memo is None else _known(module, memo)
    result = ask(module, "state", memo is not None, known, flags_of(module), name="copy")
    if not isinstance(result, torch.nn.Module) or result is module:
        return result  # its class has copies of its own kind
    inherit(module, result)  # type: ignore[arg-type]
    journal.inherit(module, result)  # type: ignore[arg-type]
    parts = dict(result.named_modules(remove_duplicate=False))
    for path, before in module.named_modules():
        after = parts.get(path)
        if after is None:
            continue
        if memo is not None:
            memo[id(before)] = after
        for old, new in ((before._parameters, after._parameters), (before._buffers, after._buffers)):
            for name in old.keys() & new.keys():
                if old[name] is not None and new[name] is not None:
                    # Past the guard of a mirror's tensors: this is the copy's own memory all the same.
                    dict.__setitem__(new, name, _same(old[name], new[name], memo))
        if memo is not None or before is module:
            for name, value in members_of(before).items():
                after.__dict__[name] = value if memo is None else copy.deepcopy(value, memo)
            after.note_hooks()
    if memo is not None:
        memo.setdefault("isohub", []).append((module, result))
    return result


def _known(module: IsolatedModule, memo: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the modules of this one's worker that were copied before, and their copies."""
    lease = module._isohub_lease
    return [pair for pair in memo.get("isohub", ()) if pair[0]._isohub_lease.worker is lease.worker]


def _same(old: torch.Tensor, new: torch.Tensor, memo: dict[Any, Any] | None) -> torch.Tensor:
    """Return the one object that stands for a copied tensor."""
    if memo is None:
        return old if old.data_ptr() == new.data_ptr() and old.dtype is new.dtype else new
    there: torch.Tensor = memo.setdefault(id(old), new)
    if there is not new:
        # Something outside of the module has the tensor too, and was copied first: this is the one to keep.
        there.data = new.data
    return there
