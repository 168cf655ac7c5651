"""The worker's table of objects that the parent holds handles of."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from isohub.errors import LocalProtocolError
from isohub.wire.values import MAX_HANDLES
from isohub.worker.records import Records
from isohub.worker.trees import Trees

if TYPE_CHECKING:
    import torch

__all__ = ["Objects", "protocols"]

_BY_METHOD = {
    "__call__": "call", "__len__": "len", "__iter__": "iter", "__next__": "next", "__getitem__": "getitem",
    "__setitem__": "setitem", "__delitem__": "delitem", "__contains__": "contains", "__enter__": "with",
    "__bool__": "bool",
}  # fmt: skip


def protocols(value: object) -> list[str]:
    """Return what can be done with `value` by its type, in the words of `wire.values.PROTOCOLS`."""
    kind = type(value)
    found = [name for method, name in _BY_METHOD.items() if _defines(kind, method)]
    if kind.__eq__ is not object.__eq__:
        found.append("eq")
    return found


def _defines(kind: type, method: str) -> bool:
    # Not by getattr, which would find `__call__` on every class: that of its metaclass.
    base = next((base for base in kind.__mro__ if method in vars(base)), None)
    return base is not None and vars(base)[method] is not None


class Objects:
    """Objects by handle.

    An object has one handle as long as it has one at all, so that `is` in the worker is `is` in the
    parent. Each time a handle is sent it counts; the parent says how many of those it is done with.

    Attributes:
        trees: The module trees among them.
        records: Classes of the records that were sent.
    """

    def __init__(self) -> None:
        self._next = 1
        self._by_handle: dict[int, Any] = {}
        self._by_id: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        # Sub-modules of the module trees that the parent has: id -> (handle of the root, path).
        self._places: dict[int, tuple[int, str]] = {}
        self._numbers: dict[int, tuple[weakref.ref[torch.nn.Module], int]] = {}  # of modules, by id
        self._next_number = 1
        self._exported: list[int] = []
        self.trees = Trees()
        self.records = Records()

    def __len__(self) -> int:
        return len(self._by_handle)

    def export(self, value: object) -> int:
        """Return the handle of `value` and count it as sent once more.

        Raises:
            LocalProtocolError: There are too many.
        """
        handle = self._by_id.get(id(value))
        if handle is None:
            if len(self._by_handle) >= MAX_HANDLES:
                raise LocalProtocolError(
                    f"more than {MAX_HANDLES} objects of this worker would have to be held: let go of some, or take "
                    "the data out of them in the worker, by isohub.run_in"
                )
            handle = self._next
            self._next += 1
            self._by_handle[handle] = value
            self._by_id[id(value)] = handle
            self._sent[handle] = 0
        self._sent[handle] += 1
        self._exported.append(handle)
        return handle

    def exported(self) -> list[int]:
        """Return the handles that were counted as sent since the last call."""
        exported, self._exported = self._exported, []
        return exported

    def get(self, handle: int, path: str = "") -> Any:
        """Return the object, or the sub-module that `path` leads to from it.

        Raises:
            ReferenceError: The parent had given the handle back.
            AttributeError: The module has no such sub-module any more.
        """
        try:
            value = self._by_handle[handle]
        except KeyError:
            raise ReferenceError(f"the object with handle {handle} is gone from its worker") from None
        return submodule(value, path) if path else value

    def release(self, handle: int, count: int) -> None:
        """Take back `count` of the times that the handle was sent."""
        self._sent[handle] -= count
        if self._sent[handle] > 0:
            return
        del self._sent[handle]
        value = self._by_handle.pop(handle)
        del self._by_id[id(value)]
        self._places = {key: place for key, place in self._places.items() if place[0] != handle}
        self.trees.forget(handle)

    def number(self, module: torch.nn.Module) -> int:
        """Return the number by which the parent knows `module`, wherever it is."""
        found = self._numbers.get(id(module))
        if found is not None and found[0]() is module:
            return found[1]
        numbers, key = self._numbers, id(module)
        numbers[key] = (weakref.ref(module, lambda _: numbers.pop(key, None)), self._next_number)
        self._next_number += 1
        return numbers[key][1]

    def find_parameter(self, parameter: torch.nn.Parameter) -> tuple[int, str, str] | None:
        """Return where the parent has `parameter`: handle of a tree, path of a module, name in it."""
        place = self.trees.place_of(parameter)
        if place is None:
            return None
        for path, module in self.get(place[0]).named_modules():
            for name, one in module._parameters.items():
                if one is parameter:
                    return place[0], path, name
        return None

    def place(self, root: int, path: str, module: torch.nn.Module) -> None:
        """Remember where in a tree that the parent has a sub-module is found; its first place stays."""
        if self.find(module) is None:
            self._places[id(module)] = (root, path)

    def find(self, module: torch.nn.Module) -> tuple[int, str] | None:
        """Return where the parent finds `module`, if it has it."""
        found = self._places.get(id(module))
        if found is None:
            return None
        try:
            # An id alone proves nothing: the module may have been taken out of the tree and freed.
            return found if self.get(*found) is module else None
        except (AttributeError, ReferenceError):
            return None


def submodule(module: Any, path: str) -> Any:
    """Return the sub-module at a dotted path; names with dots in them do not exist in torch."""
    for name in path.split("."):
        module = module._modules[name] if name in module._modules else getattr(module, name)
    return module
