"""What happened here to the tensors of a module tree, whose memory the worker shares.

The worker sees the new values by itself. It must be told that there are new ones, for a graph of before may
need the old ones, and which tensors ask for gradients now.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from isohub.errors import LocalProtocolError
from isohub.wire.messages import TreeChange

if TYPE_CHECKING:
    from isohub.model.journal import Build
    from isohub.model.objects import Lease

__all__ = ["Shared", "Survivors"]

_version, _asks, _shape = attrgetter("_version"), attrgetter("requires_grad"), attrgetter("shape")
_address, _strides = torch.Tensor.data_ptr, torch.Tensor.stride


class Shared:
    """The parameters and buffers of one tree, and what the worker knows of them.

    Args:
        handle: The tree.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.take([])

    def take(self, tensors: list[torch.Tensor]) -> None:
        """Look after these from now on, as they are now.

        Args:
            tensors: In the order in which they are counted; see `wire.specs.ModuleSpec`.
        """
        self.tensors = tensors
        self._memory = [tensor.data for tensor in tensors]
        self._places = _places(tensors)
        self._versions = list(map(_version, tensors))
        self._asking = list(map(_asks, tensors))
        self._told: tuple[list[int], list[bool]] | None = None

    def changes(self) -> TreeChange | None:
        """Return what the worker does not know yet; None if there is nothing.

        Raises:
            LocalProtocolError: A tensor has been given memory of another shape or dtype.
        """
        # Looked at before each request, so passes that find nothing to do must be quick: they run in C.
        tensors = self.tensors
        if not tensors:
            return None
        if _places(tensors) != self._places:
            self._bring_back()
        versions = list(map(_version, tensors))
        asking = list(map(_asks, tensors))
        if versions == self._versions and asking == self._asking:
            self._told = None
            return None
        self._told = versions, asking
        written = [place for place, version in enumerate(versions) if version != self._versions[place]]
        switched = [(place, asks) for place, asks in enumerate(asking) if asks != self._asking[place]]
        return TreeChange(self._handle, written, switched)

    def told(self) -> None:
        """Know that the worker is told of what `changes` returned last."""
        if self._told is not None:
            self._versions, self._asking = self._told
            self._told = None

    def _bring_back(self) -> None:
        """Copy what `tensor.data = other` has put elsewhere into the shared memory, and have it stand there."""
        for tensor, memory in zip(self.tensors, self._memory, strict=True):
            if _place(tensor) == _place(memory):
                continue
            if (tensor.shape, tensor.dtype, tensor.device) != (memory.shape, memory.dtype, memory.device):
                raise LocalProtocolError(
                    f"a {_shown(memory)} of an isolated module was made a {_shown(tensor)} by way of its .data, which "
                    "its worker cannot follow: assign a new torch.nn.Parameter to the module's attribute instead"
                )
            with torch.no_grad():
                memory.copy_(tensor.clone())  # it may be another view of the same memory
                tensor.data = memory
            torch.autograd.graph.increment_version(tensor)


class Survivors:
    """Parameters of a tree whose mirrors are gone: an optimizer may hold them, and the worker go on with the tree.

    Args:
        lease: Of the tree, kept as long as any of them lives.
        tensors: All of the tree's.
        gone: Called when the last of them has died.

    Attributes:
        build: The load that the tree came from; None if it came otherwise.
    """

    def __init__(self, lease: Lease, tensors: list[torch.Tensor], gone: Callable[[Survivors], None]) -> None:
        self.lease = lease
        self.build: weakref.ref[Build] | None = None
        self._alive: dict[int, weakref.ref[torch.Tensor]] = {}
        self._known = {place: (tensor._version, tensor.requires_grad) for place, tensor in enumerate(tensors)}
        self._telling: dict[int, tuple[int, bool]] = {}
        alive, me = self._alive, weakref.ref(self)

        def died(place: int) -> None:
            del alive[place]
            survivors = me()
            if not alive and survivors is not None:
                gone(survivors)

        for place, tensor in enumerate(tensors):
            if isinstance(tensor, torch.nn.Parameter):
                alive[place] = weakref.ref(tensor, lambda _, place=place: died(place))  # type: ignore[misc]

    def get(self, place: int) -> torch.Tensor | None:
        """Return the parameter at a place in the tree, if it is alive."""
        found = self._alive.get(place)
        return None if found is None else found()

    def over(self, tensor: torch.Tensor) -> torch.nn.Parameter | None:
        """Return the one that is this tensor: over the same memory, of the same shape."""
        for reference in list(self._alive.values()):
            own = reference()
            if isinstance(own, torch.nn.Parameter) and (own.dtype, _place(own)) == (tensor.dtype, _place(tensor)):
                return own
        return None

    def changes(self) -> TreeChange | None:
        """Return what the worker does not know yet; None if there is nothing."""
        alive = [(place, reference()) for place, reference in list(self._alive.items())]
        now = {place: (own._version, own.requires_grad) for place, own in alive if own is not None}
        written = [place for place, (version, _) in now.items() if version != self._known[place][0]]
        asking = [(place, asks) for place, (_, asks) in now.items() if asks != self._known[place][1]]
        self._telling = now
        return TreeChange(self.lease.handle, written, asking) if written or asking else None

    def told(self) -> None:
        """Know that the worker is told of what `changes` returned last."""
        self._known.update(self._telling)


def _places(tensors: list[torch.Tensor]) -> tuple[list[int], list[torch.Size], list[tuple[int, ...]]]:
    return list(map(_address, tensors)), list(map(_shape, tensors)), list(map(_strides, tensors))


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)} on {tensor.device}"
