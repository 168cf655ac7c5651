"""Whether the module trees that the parent mirrors are still what it was told they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from isohub.wire.messages import TreeChange

__all__ = ["Trees"]


class Trees:
    """The trees that the parent mirrors, by handle.

    Code of the repository may put another tensor in the place of a buffer, fuse layers, or initialise lazy
    parameters. The parent must hear of it: its state dict would be that of before, and what it writes
    there would go nowhere.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Tree | None] = {}  # None: the parent was not told after all
        self._places: dict[int, tuple[int, int]] = {}  # id of a tensor -> (handle of its tree, place in it)

    def described(self, handle: int, modules: list[torch.nn.Module], tensors: list[torch.Tensor]) -> None:
        """Remember that the parent is being told of this tree as it is now.

        Args:
            handle: Of its root.
            modules: All of its modules.
            tensors: All of its tensors, in the order in which they are counted; see `wire.specs.ModuleSpec`.
        """
        self._known[handle] = _Tree(modules, tensors)
        self._count()

    def moved(self) -> None:
        """Know that the tensors of trees just described lie in shared memory by now."""
        for tree in self._known.values():
            if tree is not None:
                tree.remember_memory()

    def modules(self, handle: int) -> list[torch.nn.Module]:
        """Return the modules that a tree had when the parent was last told of it."""
        tree = self._known.get(handle)
        return [] if tree is None else tree.modules

    def place_of(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """Return the handle of the tree of which `tensor` is a parameter or buffer, and its place there."""
        return self._places.get(id(tensor))

    def parameters(self) -> list[tuple[int, int, torch.Tensor]]:
        """Return all parameters that the parent has, as (handle of the tree, place in it, parameter)."""
        return [
            (handle, place, tensor)
            for handle, tree in self._known.items() if tree is not None
            for place, tensor in enumerate(tree.tensors)
            if isinstance(tensor, torch.nn.Parameter) and self._places.get(id(tensor)) == (handle, place)
        ]  # fmt: skip

    def change(self, change: TreeChange) -> None:
        """Take in what the parent did to the tensors of a tree, whose memory it shares."""
        tree = self._known.get(change.handle)
        if tree is None:
            return  # the parent is going to be told of it anew
        for place in change.written:
            # A backward pass that needs what stood there before must fail here as it would in one process.
            increment_version(tree.tensors[place])
        for place, asks in change.asking:
            tree.tensors[place].requires_grad_(asks)
        tree.asking = tree.asking_now()

    def modes_told(self, handle: int) -> None:
        """Remember that the parent is being told the training flags of this tree as they are now."""
        tree = self._known.get(handle)
        if tree is not None:
            tree.modes = tree.modes_now()

    def untold(self, handles: Iterable[int]) -> None:
        """Have the parent told of these trees with the next answer, since this one failed."""
        self._known.update(dict.fromkeys(handles))
        self._count()

    def forget(self, handle: int) -> None:
        """Forget a tree, if it is one: the parent has given it back."""
        if self._known.pop(handle, None) is not None:
            self._count()

    def _count(self) -> None:
        # Each tree keeps its tensors, so that no id is another's.
        self._places = {
            id(tensor): (handle, place)
            for handle, tree in self._known.items() if tree is not None
            for place, tensor in enumerate(tree.tensors)
        }  # fmt: skip

    def changed(self, astray: Callable[[torch.Tensor], bool] | None) -> list[int]:
        """Return the handles of the trees that are not as they were.

        Args:
            astray: Says of a tensor that its memory is no longer the shared one; None for not to look,
                which is much quicker, and enough where only `forward` has run.
        """
        return [handle for handle, tree in self._known.items() if tree is None or tree.has_changed(astray)]


class _Tree:
    """One tree as it was described. Asked after each call, so its check is a few passes that run in C."""

    def __init__(self, modules: list[torch.nn.Module], tensors: list[torch.Tensor]) -> None:
        scripts = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
        self.modules = modules = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self.tensors = tensors
        # TorchScript makes its tensors anew at each look, over the same memory; only buffers can be replaced there.
        buffers: list[Any] = [torch._C.BufferDict(module._c) for module in scripts]
        self._scripts = [of_one for of_one in buffers if of_one.items()]
        self._memory: list[tuple[int, torch.Size]] = []
        places = [
            place for module in modules for place in (module._modules, module._parameters, module._buffers)
        ]  # fmt: skip
        self._filled: list[dict[str, Any]] = [place for place in places if place]
        self._empty: list[dict[str, Any]] = [place for place in places if not place]
        self._buffers: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module._buffers, dict(module._buffers)) for module in modules if module._buffers
        ]
        self._then = self._now()
        # One whose tensors were made for it becomes another class with its first call.
        self._is_lazy = any(isinstance(value, UninitializedTensorMixin) for value in self._then) or any(
            isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook") for module in modules
        )
        self.modes = self.modes_now()
        self.asking = self.asking_now()

    def remember_memory(self) -> None:
        """Take where the buffers of TorchScript lie now for where they belong."""
        self._memory = self._memory_now()

    def asking_now(self) -> list[bool]:
        """Return which of the tensors ask for gradients."""
        return [tensor.requires_grad for tensor in self.tensors]

    def modes_now(self) -> list[bool]:
        """Return the training flags."""
        return [module.training for module in self.modules]

    def has_changed(self, astray: Callable[[torch.Tensor], bool] | None) -> bool:
        """Return whether it is not as it was; see `Trees.changed`."""
        if self._is_lazy or any(self._empty) or self.modes_now() != self.modes:
            return True
        if self._scripts and self._memory_now() != self._memory:
            return True
        if not self._is_same() and not (self._put_counters_back() and self._is_same()):
            return True
        if astray is None:
            return False
        tensors = [value for value in self._then if isinstance(value, torch.Tensor)]
        return self.asking_now() != self.asking or any(map(astray, tensors))

    def _memory_now(self) -> list[tuple[int, torch.Size]]:
        return [(buffer.data_ptr(), buffer.shape) for of_one in self._scripts for _, buffer in of_one.items()]

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._filled)))

    def _is_same(self) -> bool:
        now = self._now()
        return len(now) == len(self._then) and all(map(is_, now, self._then))

    def _put_counters_back(self) -> bool:
        """Write counters that were replaced (`self.steps = self.steps + 1`) into the shared ones, and put these back.

        A step of training may replace one in each layer: to describe the tree for it would be slow. Other
        tensors cannot be written to: the graph of a backward pass to come may need what they held.
        """
        for now, then in self._buffers:
            if now.keys() != then.keys():
                return False
            for name, old in then.items():
                new = now[name]
                if new is old:
                    continue
                if not (_is_counter(old) and _is_counter(new) and old.dtype is new.dtype):
                    return False
                with torch.no_grad():
                    old.copy_(new)
                now[name] = old
        return True


def _is_counter(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dim() == 0 and not tensor.is_floating_point()
