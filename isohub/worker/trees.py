"""Whether the module trees that the parent mirrors are still what it was told they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

__all__ = ["Trees"]


class Trees:
    """The trees that the parent mirrors, by handle.

    Code of the repository may put another tensor in the place of a buffer, fuse layers, or initialise lazy
    parameters. The parent must hear of it: its state dict would be that of before, and what it writes
    there would go nowhere.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Tree | None] = {}  # None: the parent was not told after all

    def described(self, handle: int, modules: Iterable[torch.nn.Module]) -> None:
        """Remember that the parent is being told of this tree as it is now."""
        # TorchScript makes its tensors anew at each look, and cannot put others in their place.
        self._known[handle] = _Tree([module for module in modules if not isinstance(module, torch.jit.ScriptModule)])

    def modes_told(self, handle: int) -> None:
        """Remember that the parent is being told the training flags of this tree as they are now."""
        tree = self._known.get(handle)
        if tree is not None:
            tree.modes = tree.modes_now()

    def untold(self, handles: Iterable[int]) -> None:
        """Have the parent told of these trees with the next answer, since this one failed."""
        self._known.update(dict.fromkeys(handles))

    def forget(self, handle: int) -> None:
        """Forget a tree, if it is one: the parent has given it back."""
        self._known.pop(handle, None)

    def changed(self, astray: Callable[[torch.Tensor], bool] | None) -> list[int]:
        """Return the handles of the trees that are not as they were.

        Args:
            astray: Says of a tensor that its memory is no longer the shared one; None for not to look,
                which is much quicker, and enough where only `forward` has run.
        """
        return [handle for handle, tree in self._known.items() if tree is None or tree.has_changed(astray)]


class _Tree:
    """One tree as it was described. Asked after each call, so its check is a few passes that run in C."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self._modules = modules
        places = [
            place for module in modules for place in (module._modules, module._parameters, module._buffers)
        ]  # fmt: skip
        self._filled: list[dict[str, Any]] = [place for place in places if place]
        self._empty: list[dict[str, Any]] = [place for place in places if not place]
        self._buffers: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module._buffers, dict(module._buffers)) for module in modules if module._buffers
        ]
        self._then = self._now()
        self._is_lazy = any(isinstance(value, UninitializedTensorMixin) for value in self._then)
        self.modes = self.modes_now()

    def modes_now(self) -> list[bool]:
        """Return the training flags."""
        return [module.training for module in self._modules]

    def has_changed(self, astray: Callable[[torch.Tensor], bool] | None) -> bool:
        """Return whether it is not as it was; see `Trees.changed`."""
        if self._is_lazy or any(self._empty) or self.modes_now() != self.modes:
            return True
        if not self._is_same() and not (self._put_counters_back() and self._is_same()):
            return True
        return astray is not None and any(astray(value) for value in self._then if isinstance(value, torch.Tensor))

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
