"""What the repository's code returned, described: modules, records, and objects that stay here."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from isohub.shm.tensors import why_not
from isohub.shm.values import Packer
from isohub.wire.specs import ModuleNode, ModuleSpec, places_of
from isohub.wire.tree import Where
from isohub.wire.values import Record, Ref, Value
from isohub.worker import state
from isohub.worker.objects import Objects, protocols
from isohub.worker.records import has_own, type_name

__all__ = ["describe", "in_order", "say_other"]


def say_other(packer: Packer, value: Any, where: Where, objects: Objects) -> Value:
    """Say what is neither builtin nor of torch or NumPy."""
    if isinstance(value, torch.nn.Module):
        return _module(packer, value, objects)
    parts = objects.records.parts(value)
    if parts is not None:
        record, members = parts
        said = [packer.say(member, (where, ".{}", name)) for name, member in zip(record.keys, members, strict=True)]
        return Record(record.kind, record.type_name, record.keys, said)
    plain = next((base for base in (str, bytes, float, int) if isinstance(value, base)), None)
    if plain is not None and not has_own(value):
        return packer.say(plain(value), where)
    handle = objects.export(value)
    return Ref("object", handle, "", "", type_name(value), protocols(value))


def _module(packer: Packer, module: torch.nn.Module, objects: Objects) -> Ref:
    place = objects.find(module)
    if place is None:
        handle = objects.export(module)
        packer.modules.append(describe(packer, module, handle, objects))
        return Ref("module", handle)
    root, path = place
    objects.export(objects.get(root))  # counts it as sent
    return Ref("module", root, path)


def describe(
    packer: Packer, root: torch.nn.Module, handle: int, objects: Objects, *, parted: bool = False
) -> ModuleSpec:
    """Describe a module tree, and note its tensors to be moved into shared memory.

    Modules that have left the tree since it was last described become trees of their own, which are
    noted in the packer: somebody in the parent may go on using them.
    """
    before = objects.trees.modules(handle)
    places = {id(module): (index, path, module) for index, (path, module) in enumerate(_walk(root))}
    nodes: list[ModuleNode] = []
    tensors: dict[int, torch.Tensor] = {}
    for _, path, module in places.values():
        objects.place(handle, path, module)
        children = [(name, -1 if child is None else places[id(child)][0]) for name, child in module._modules.items()]
        nodes.append(_node(packer, module, children, objects.number(module), tensors))
    modules = [module for _, _, module in places.values()]
    objects.trees.described(handle, modules, [tensors[place] for place in places_of(nodes)])
    packer.parameters += [(place, tensors[place]) for node in nodes for _, place in node.parameters if place != -1]
    for module in _roots([module for module in before if id(module) not in places]):
        if objects.find(module) is None:
            own = objects.export(module)
            packer.modules.append(describe(packer, module, own, objects, parted=True))
    return ModuleSpec(handle, nodes, parted)


def _roots(modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return those of `modules` that are in no other of them."""
    below = {id(child) for module in modules for child in module._modules.values()}
    return [module for module in modules if id(module) not in below]


def in_order(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules of a tree in the order of `ModuleSpec.nodes`."""
    return [module for _, module in _walk(root)]


def _walk(root: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Return each module of a tree once, with the first path that leads to it, parents first."""
    found: dict[int, tuple[str, torch.nn.Module]] = {}
    _visit(root, "", found)
    return list(found.values())


def _visit(module: torch.nn.Module, path: str, found: dict[int, tuple[str, torch.nn.Module]]) -> None:
    # Not a function inside `_walk`: that would refer to itself, and keep the modules until the next collection.
    if id(module) in found:
        return
    found[id(module)] = (path, module)
    for name, child in module._modules.items():
        if child is not None:
            _visit(child, f"{path}.{name}" if path else name, found)


def _node(
    packer: Packer,
    module: torch.nn.Module,
    children: list[tuple[str, int]],
    number: int,
    tensors: dict[int, torch.Tensor],
) -> ModuleNode:
    """Describe one module; its tensors are added to `tensors`, by their place in the payload."""

    def place_of(tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return -1
        place = _tensor(packer, tensor)
        tensors[place] = tensor
        return place

    transient = getattr(module, "_non_persistent_buffers_set", ())
    version = getattr(module, "_version", 1)
    own_repr = type(module).__repr__ is not torch.nn.Module.__repr__
    try:
        text = repr(module) if own_repr else module.extra_repr()
    except Exception:  # noqa: BLE001 - a repr that raises must not fail the load
        text, own_repr = "", False
    return ModuleNode(
        number=number,
        type_name=type_name(module),
        training=bool(module.training),
        text=text,
        own_repr=own_repr,
        parameters=[(name, place_of(value)) for name, value in module._parameters.items()],
        buffers=[(name, place_of(value), name not in transient) for name, value in module._buffers.items()],
        children=children,
        protocols=[name for name in protocols(module) if name not in ("call", "eq")],
        version=version if type(version) is int else 1,
        torch_type=state.torch_type(module),
        own_state=state.own_state(module),
    )


def _tensor(packer: Packer, tensor: torch.Tensor) -> int:
    if why_not(tensor) is not None or isinstance(tensor, UninitializedTensorMixin):
        # The parent sees its name, shape and dtype; the values stay here.
        shape = () if isinstance(tensor, UninitializedTensorMixin) else tensor.shape
        dtype = tensor.dtype if why_not(torch.empty(0, dtype=tensor.dtype)) is None else torch.uint8
        return packer.tensors.add(torch.empty(shape, dtype=dtype, device="meta"))
    return packer.tensors.add(tensor, moving=True)
