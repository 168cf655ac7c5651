"""What stands for a worker's objects in this process, as the border needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from isohub.shm.tensors import TensorReader
    from isohub.wire.messages import Graph, Numbered, TreeChange
    from isohub.wire.specs import ModuleSpec
    from isohub.wire.values import Record, Ref

__all__ = ["Proxies"]


class Proxies(Protocol):
    """What makes the things that stand for a worker's objects here; the layer above provides it."""

    def ref_of(self, value: object) -> Ref | None:
        """Return what a proxy stands for in its worker; None for what is no proxy.

        Raises:
            LocalProtocolError: It stands for something in another worker.
        """

    def numbered(self, noted: list[tuple[int, torch.Tensor]]) -> list[Numbered]:
        """Number tensors that are being sent: parameters, and those that ask for gradients.

        Args:
            noted: Each with its place in the payload.
        """

    def module_tree(self, spec: ModuleSpec, tensors: TensorReader, numbered: dict[int, int]) -> None:
        """Take in a module tree, new or changed.

        Args:
            spec: The tree.
            tensors: The payload's.
            numbered: Numbers, by their place there, of the parameters that came from here.

        Raises:
            RemoteProtocolError: It makes no sense.
        """

    def own_tensors(self, numbered: list[Numbered], tensors: TensorReader) -> None:
        """Have tensors that were sent and come back be the ones that they are here.

        Raises:
            RemoteProtocolError: They were never sent.
        """

    def graph(self, graph: Graph, tensors: TensorReader) -> None:
        """Make tensors that the worker computed part of the autograd graph here.

        Raises:
            RemoteProtocolError: It makes no sense.
        """

    def find(self, handle: int, path: str) -> Any:
        """Return what stands for a module here: to call it calls its hooks.

        Raises:
            RemoteProtocolError: There is no such module.
        """

    def settled(self) -> None:
        """Know that an exchange is over, with all that was asked within it."""

    def changes(self, *, live: bool = True) -> list[TreeChange]:
        """Return what was done here to module trees since the worker was last told.

        Args:
            live: Whether to look at those that are alive, or else only at those that are gone.
        """

    def changes_told(self) -> None:
        """Know that the worker is told of the changes last returned."""

    def proxy(self, ref: Ref) -> object:
        """Return what stands for `ref`."""

    def record(self, record: Record, members: list[Any]) -> object:
        """Return the record."""

    def parts(self, value: object) -> tuple[Record, list[Any]] | None:
        """Take a record apart, its members unsaid; None for what is no record."""

    def making(self) -> AbstractContextManager[None]:
        """Keep what is made here until the value of an answer is, which holds it then."""

    @property
    def has_released(self) -> bool:
        """Whether there is anything that `released` would return."""

    def released(self) -> list[tuple[int, int]]:
        """Return the handles that nobody holds any more, and how often each had been received."""

    def held(self) -> int:
        """Return how many of the worker's objects are held here."""

    def put_back(self, released: list[tuple[int, int]]) -> None:
        """Return these by the next `released` again: they could not be told."""

    def handle_of(self, lease: Any) -> int:
        """Return the handle of what somebody here holds; what a worker that died had is built again.

        Raises:
            LostObjectError: It cannot be built again.
            RestartError: It could not be built again now.
        """
