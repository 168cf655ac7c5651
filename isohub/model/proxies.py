"""Everything in this process that stands for the objects of one worker."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.hub.checkout import Checkout
from isohub.model import recovery
from isohub.model.autograd import Numbers, RemoteGraph
from isohub.model.journal import Place
from isohub.model.module import IsolatedModule
from isohub.model.objects import BoundMethod, Lease, RemoteObject, nested, object_class
from isohub.model.records import make_record, parts_of
from isohub.model.tree import Tree
from isohub.shm.tensors import TensorReader
from isohub.supervisor.raised import clean
from isohub.supervisor.worker import Worker
from isohub.wire.messages import Graph, Numbered, TreeChange
from isohub.wire.specs import ModuleSpec
from isohub.wire.values import Record, Ref

__all__ = ["ProxyTable"]

_UNSEEN = torch.empty(0)


class ProxyTable:
    """Everything in this process that stands for objects of one worker; see `supervisor.border.Proxies`."""

    def __init__(self, worker: Worker, checkout: Checkout) -> None:
        self._worker = worker
        self._checkout = checkout
        self._leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()
        self._objects: weakref.WeakValueDictionary[int, RemoteObject] = weakref.WeakValueDictionary()
        self._trees: weakref.WeakValueDictionary[int, Tree] = weakref.WeakValueDictionary()
        self._released: deque[tuple[int, int]] = deque()
        self._mirrors: weakref.WeakValueDictionary[int, IsolatedModule] = weakref.WeakValueDictionary()
        self._numbers = Numbers()
        self._outputs: dict[tuple[int, int], torch.Tensor] = {}  # of graphs of this exchange: (handle, position)
        self.rebuilding = 0  # above 0, what the worker says is of stand-ins: nothing of here is put into them
        self._fresh: list[IsolatedModule] = []  # keeps new roots until the value that names them is made

    def ref_of(self, value: object) -> Ref | None:
        """Return what `value` stands for in its worker; None when it is no proxy."""
        if isinstance(value, torch.nn.Parameter):
            return self._own(value)
        if not isinstance(value, RemoteObject | IsolatedModule | BoundMethod | Place):
            return None
        lease = value._isohub_lease
        if lease.worker is not self._worker:
            raise LocalProtocolError(
                f"{value!r:.200} lives in worker {lease.worker.label}, and cannot go to worker {self._worker.label}: "
                "pass the data instead"
            )
        if isinstance(value, BoundMethod):
            return Ref("method", self.handle_of(lease), value._isohub_path, value.__name__)
        is_module = value.is_module if isinstance(value, Place) else isinstance(value, IsolatedModule)
        return Ref("module" if is_module else "object", self.handle_of(lease), value._isohub_path)

    def handle_of(self, lease: Lease) -> int:
        """Return the handle of a lease; what a process before this one had is built again."""
        return lease.handle if lease.table is self else recovery.handle_of(self, lease)

    def numbered(self, noted: list[tuple[int, torch.Tensor]]) -> list[Numbered]:
        """Number tensors that are being sent; see `Numbers`."""
        return self._numbers.number(noted)

    def module_tree(self, spec: ModuleSpec, tensors: TensorReader, numbered: dict[int, int]) -> None:
        """Take in a module tree, new or changed."""
        tree = self._trees.get(spec.handle)
        if tree is None:
            tree = Tree(self._lease(spec.handle), self._checkout, self._mirrors, self._trees)
            tree.lease.what = f"an isolated module ({clean(spec.nodes[0].type_name, 200) if spec.nodes else '?'})"
            self._trees[spec.handle] = tree
        if spec.parted:
            tree.lease.receive()
        known = {} if self.rebuilding else numbered
        adopted = {place: self._numbers.get(number) for place, number in known.items()}
        # Under the caller's inference mode they would be inference tensors, which nobody can write to after it.
        with torch.inference_mode(False):
            self._fresh.append(tree.update(spec.nodes, tensors, adopted, parted=spec.parted))

    def own_tensors(self, numbered: list[Numbered], tensors: TensorReader) -> None:
        """Have leaves that were sent and come back be the ones that they are here."""
        for one in [] if self.rebuilding else numbered:
            own = self._numbers.get(one.number)
            if one.kind == "leaf" and own is not None and own.is_leaf:
                tensors.put(one.tensor, own)

    def graph(self, graph: Graph, tensors: TensorReader) -> None:
        """Make tensors that the worker computed part of the autograd graph here."""
        places = graph.outputs
        if not places or len(set(places)) != len(places):
            raise RemoteProtocolError("a graph without outputs, or with one of them twice")
        for place in places:
            dtype = tensors[place].dtype
            if tensors[place].requires_grad or not (dtype.is_floating_point or dtype.is_complex):
                raise RemoteProtocolError(f"a graph with tensor {place} of {dtype} as an output")
        lease = self._lease(graph.handle)
        lease.what = "the graph of a call, which a backward pass goes through"
        lease.receive()
        found = [self._leaf(*leaf) for leaf in graph.leaves]
        leaves = [(position, leaf) for position, leaf in enumerate(found) if leaf is not None and leaf.requires_grad]
        remote = RemoteGraph(lease, self._parameter, leaves, lost=any(leaf is None for leaf in found))
        remote.join(graph, [leaf for _, leaf in leaves], tensors)
        for position, place in enumerate(graph.outputs):
            self._outputs[graph.handle, position] = tensors[place]

    def call(self, handle: int, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the mirror of a module, with its hooks."""
        tree = self._trees.get(handle)
        mirror = None if tree is None else tree.mirror(path)
        if mirror is None:
            raise RemoteProtocolError(f"a call of module {handle}:{path[:200]!r}, which has no hooks here")
        return mirror(*args, **kwargs)

    def settled(self) -> None:
        """Know that an exchange is over, with all that was asked within it."""
        self._numbers.settled()
        self._outputs.clear()

    def changes(self) -> list[TreeChange]:
        """Return what was done here to module trees since the worker was last told."""
        return [change for change in [tree.changes() for tree in list(self._trees.values())] if change is not None]

    def changes_told(self) -> None:
        """Know that the worker is told of the changes last returned."""
        for tree in list(self._trees.values()):
            tree.changes_told()

    def proxy(self, ref: Ref) -> object:
        """Return what stands for `ref`."""
        lease = self._lease(ref.handle)
        if ref.kind == "method":
            return BoundMethod(lease, ref.path, ref.name)
        lease.receive()
        if ref.kind == "module":
            return self._module(ref)
        if ref.kind == "parameter":
            parameter = self._module(ref)._parameters.get(ref.name)
            if parameter is None:
                raise RemoteProtocolError(f"a parameter {ref.name[:200]!r}, which its module does not have")
            return parameter
        found = self._objects.get(ref.handle)
        if found is None:
            found = object_class(RemoteObject, ref.protocols)(lease, ref.type_name)
            lease.what, lease.stands_for = f"a RemoteObject ({clean(ref.type_name, 200)})", weakref.ref(found)
            self._objects[ref.handle] = found
        return found

    def put_object(self, found: RemoteObject) -> None:
        """Have `found` stand for the object of its lease from now on."""
        lease = found._isohub_lease
        self._leases[lease.handle], self._objects[lease.handle] = lease, found

    def put_tree(self, tree: Tree) -> None:
        """Have the lease of a tree be the one of its handle from now on."""
        self._leases[tree.lease.handle] = tree.lease

    def record(self, record: Record, members: list[Any]) -> object:
        """Return the record."""
        return make_record(record, members)

    def parts(self, value: object) -> tuple[Record, list[Any]] | None:
        """Take a record apart, its members unsaid; None for what is no record."""
        return parts_of(value)

    def released(self) -> list[tuple[int, int]]:
        """Return the handles that nobody holds any more, and how often each had been received."""
        found = []
        while self._released:
            found.append(self._released.popleft())
        return found

    def put_back(self, released: list[tuple[int, int]]) -> None:
        """Return these by the next `released` again: they could not be told."""
        self._released.extend(released)

    def unpacked(self) -> None:
        """Let go of what was only kept until the value was made."""
        self._fresh.clear()

    def _own(self, parameter: torch.nn.Parameter) -> Ref | None:
        """Return where the worker has a parameter of one of its trees; None for any other parameter."""
        for handle, tree in list(self._trees.items()):
            place = tree.find(parameter)
            if place is not None:
                return Ref("parameter", handle, *place)
        return None

    def _leaf(self, handle: int, place: int) -> torch.Tensor | None:
        """Return the tensor here at which a graph begins; None if it is gone and would be missed.

        Raises:
            RemoteProtocolError: There never was one.
        """
        if handle < 0:
            if (-handle, place) not in self._outputs:
                raise RemoteProtocolError(f"a graph that goes on from output {place} of graph {-handle}, which is none")
            return self._outputs[-handle, place]
        return self._parameter(handle, place) if handle else self._numbers.get(place)

    def _parameter(self, handle: int, place: int) -> torch.Tensor:
        tree = self._trees.get(handle)
        # Of a module that nobody here holds any more nobody can see a gradient.
        return _UNSEEN if tree is None else tree.tensor(place)

    def _lease(self, handle: int) -> Lease:
        lease = self._leases.get(handle)
        if lease is None:
            worker, released = self._worker, self._released

            def gone(handle: int, received: int) -> None:
                # May run inside the garbage collector: only a deque and a wake-up.
                if received:
                    released.append((handle, received))
                    worker.release_soon()

            lease = self._leases[handle] = Lease(worker, handle, gone)
            lease.table = self
        return lease

    def _module(self, ref: Ref) -> IsolatedModule:
        tree = self._trees.get(ref.handle)
        mirror = None if tree is None else tree.mirror(ref.path)
        if mirror is None:
            # The mirror died here while the worker still knew the module.
            with nested():
                self._worker.request("describe", handle=ref.handle)
            tree = self._trees.get(ref.handle)
            mirror = None if tree is None else tree.mirror(ref.path)
        if mirror is None:
            raise RemoteProtocolError(f"a module {ref.handle}:{ref.path[:200]!r}, which is in no tree")
        return mirror
