"""A module that was built again, put on the weights that the parent holds: nothing is copied, or written there."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from isohub.shm.tensors import why_not
from isohub.worker.objects import submodule
from isohub.worker.weights import give_back, repoint

__all__ = ["adopt"]


def adopt(
    root: torch.nn.Module,
    given: tuple[list[torch.Tensor], list[bool]],
    where: tuple[list[tuple[str, str, int, bool | None]], list[tuple[str, str]]],
    modes: list[tuple[str, bool]],
) -> None:
    """Take over tensors and modes.

    Args:
        root: The module.
        given: The parent's tensors, over the shared memory, and which of them ask for gradients.
        where: For each parameter and buffer its path, name, number among these or -1 for None, and for a buffer
            whether it is persistent; and path and name of buffers that there are no more.
        modes: Path and mode of each module.
    """
    tensors, flags = given
    places, gone = where
    with torch.inference_mode(False), torch.no_grad():
        ours: dict[int, torch.Tensor] = {}
        pairs: list[tuple[torch.Tensor, int]] = []
        for path, name, number, persistent in places:
            module = _part(root, path)
            if number == -1:
                _empty(module, name, persistent)
            elif number in ours and not isinstance(module, torch.jit.ScriptModule):
                if getattr(module, name, None) is not ours[number]:
                    setattr(module, name, ours[number])  # tied here, as it is in the parent
            else:
                ours[number] = _place(module, name, tensors[number], persistent)
                pairs.append((ours[number], number))
        for path, name in gone:
            _part(root, path)._buffers.pop(name, None)
        _point([(one, tensors[number]) for one, number in pairs if one is not tensors[number]])
        for one, number in pairs:
            if one.requires_grad is not flags[number]:
                one.requires_grad_(flags[number])
        for path, mode in modes:
            _part(root, path).training = mode


def _empty(module: torch.nn.Module, name: str, persistent: bool | None) -> None:
    table: Any = dict(module._parameters if persistent is None else module._buffers)
    if table.get(name) is not None:
        setattr(module, name, None)
    elif persistent is not None and name not in table:
        module.register_buffer(name, None, persistent)


def _place(module: torch.nn.Module, name: str, tensor: torch.Tensor, persistent: bool | None) -> torch.Tensor:
    """Return the module's own tensor of that name, which is going to look where `tensor` does; that, if it has none."""
    mine: Any = dict(module._parameters if persistent is None else module._buffers).get(name)
    if mine is None and persistent is not None:
        module.register_buffer(name, tensor, persistent)
        return tensor
    if isinstance(mine, UninitializedTensorMixin) and not tensor.is_meta:
        mine.materialize(tensor.shape, dtype=tensor.dtype)
    if persistent is not None and not isinstance(module, torch.jit.ScriptModule):
        transient = module._non_persistent_buffers_set
        transient.discard(name) if persistent else transient.add(name)
    return mine  # type: ignore[no-any-return]


def _part(root: torch.nn.Module, path: str) -> torch.nn.Module:
    return submodule(root, path) if path else root


def _point(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Have each tensor look where the parent's does, and all others that look into the same storage as well."""
    storages: dict[int, torch.UntypedStorage] = {}
    alone = []
    for mine, theirs in pairs:
        if theirs.is_meta or isinstance(mine, UninitializedTensorMixin):
            continue
        if why_not(mine) is None and mine.is_cpu and mine.numel() and _is_alike(mine, theirs):
            storages.setdefault(mine.untyped_storage().data_ptr(), theirs.untyped_storage())
        else:
            alone.append((mine, theirs))
    repoint([mine for mine, _ in pairs], storages)
    for mine, theirs in pairs:
        # Also where two that shared a storage no longer do.
        if not theirs.is_meta and mine.numel() and mine.data_ptr() != theirs.data_ptr():
            alone.append((mine, theirs))
    for mine, theirs in alone:
        mine.data = theirs
    give_back()


def _is_alike(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return (mine.dtype, mine.shape, mine.stride(), mine.storage_offset(), mine.untyped_storage().nbytes()) == (
        theirs.dtype, theirs.shape, theirs.stride(), theirs.storage_offset(), theirs.untyped_storage().nbytes(),
    )  # fmt: skip
