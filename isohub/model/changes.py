"""What happened here to the tensors of a module tree, whose memory the worker shares.

The worker sees the new values by itself. It must be told that there are new ones, for a graph of before may
need the old ones, and which tensors ask for gradients now.
"""

from __future__ import annotations

import torch

from isohub.errors import LocalProtocolError
from isohub.wire.messages import TreeChange

__all__ = ["Shared"]


class Shared:
    """The parameters and buffers of one tree, and what the worker knows of them.

    Args:
        handle: The tree.
        tensors: In the order in which they are counted; see `wire.specs.ModuleSpec`.
    """

    def __init__(self, handle: int, tensors: list[torch.Tensor]) -> None:
        self._handle = handle
        self.tensors = tensors
        self._memory = [tensor.data for tensor in tensors]
        self._places = list(map(_place, tensors))
        self._versions = [tensor._version for tensor in tensors]
        self._asking = [tensor.requires_grad for tensor in tensors]
        self._told: tuple[list[int], list[bool]] | None = None

    def changes(self) -> TreeChange | None:
        """Return what the worker does not know yet; None if there is nothing.

        Raises:
            LocalProtocolError: A tensor has been given memory of another shape or dtype.
        """
        # Looked at before each request, so three passes that find nothing to do must be quick.
        tensors = self.tensors
        if list(map(_place, tensors)) != self._places:
            self._bring_back()
        versions = [tensor._version for tensor in tensors]
        asking = [tensor.requires_grad for tensor in tensors]
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
        for tensor, memory, place in zip(self.tensors, self._memory, self._places, strict=True):
            if _place(tensor) == place:
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


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} tensor of shape {tuple(tensor.shape)} on {tensor.device}"
