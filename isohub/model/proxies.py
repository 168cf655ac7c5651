"""Everything in this process that stands for the objects of one worker."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.hub.checkout import Checkout
from isohub.model import recovery
from isohub.model.autograd import Numbers, RemoteGraph
from isohub.model.changes import Shared, Survivors
from isohub.model.journal import Build, Place
from isohub.model.module import IsolatedModule
from isohub.model.objects import BoundMethod, Lease, RemoteObject, nested, object_class
from isohub.model.records import make_record, parts_of
from isohub.model.tree import Tree
from isohub.shm.tensors import TensorReader
from isohub.supervisor.worker import Worker
from isohub.wire import structs
from isohub.wire.messages import Graph, Numbered, TreeChange
from isohub.wire.specs import ModuleSpec
from isohub.wire.texts import clean
from isohub.wire.values import MAX_HANDLES, Record, Ref

__all__ = ["ProxyTable"]

_UNSEEN = torch.empty(0)


class ProxyTable:
    """Everything in this process that stands for objects of one worker; see `supervisor.proxies.Proxies`."""

    def __init__(self, worker: Worker, checkout: Checkout) -> None:
        self._worker = worker
        self._checkout = checkout
        self._leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()
        self._objects: weakref.WeakValueDictionary[int, RemoteObject] = weakref.WeakValueDictionary()
        self._trees: weakref.WeakValueDictionary[int, Tree] = weakref.WeakValueDictionary()
        self._survivors: dict[int, Survivors] = {}
        self._last_changes: deque[TreeChange] = deque()  # of trees that are gone
        self._telling: list[Tree | Survivors] = []  # whose changes were returned last,
        self._telling_last = 0  # and how many of the above
        self._released: deque[tuple[int, int]] = deque()
        self._mirrors: weakref.WeakValueDictionary[int, IsolatedModule] = weakref.WeakValueDictionary()
        self._numbers = Numbers()
        self._outputs: dict[tuple[int, int], torch.Tensor] = {}  # of graphs of this exchange: (handle, position)
        self._making = 0
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
            lease, survivors = self._lease(spec.handle), self._survivors.pop(spec.handle, None)
            tree = Tree(lease, self._checkout, self._mirrors, self._trees, survivors=survivors, died=self._tree_died)
            lease.what = f"an isolated module ({clean(spec.nodes[0].type_name, 200) if spec.nodes else '?'})"
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
        shown = set(places)
        for place, of in graph.views:
            view, output = tensors.spec(place), tensors.spec(of)
            if of not in places or place in shown or (view.block, view.dtype) != (output.block, output.dtype):
                raise RemoteProtocolError(f"tensor {place} as a view of tensor {of}, which it cannot be")
            shown.add(place)
        lease = self._lease(graph.handle)
        lease.what = "the graph of a call, which a backward pass goes through"
        lease.receive()
        found = [self._leaf(*leaf) for leaf in graph.leaves]
        leaves = [(position, leaf) for position, leaf in enumerate(found) if leaf is not None and leaf.requires_grad]
        remote = RemoteGraph(lease, self._leaf, leaves, lost=any(leaf is None for leaf in found))
        remote.join(graph, [leaf for _, leaf in leaves], tensors)
        for position, place in enumerate(graph.outputs):
            self._outputs[graph.handle, position] = tensors[place]

    def find(self, handle: int, path: str) -> Callable[..., Any]:
        """Return the mirror of a module: to call it calls its hooks."""
        tree = self._trees.get(handle)
        mirror = None if tree is None else tree.mirror(path)
        if mirror is None and any(change.handle == handle for change in self._last_changes):
            # It has just died, and its hooks with it, which the worker could not be told yet.
            return lambda *args, **kwargs: self._worker.request("call", args, kwargs, handle=handle, path=path)
        if mirror is None:
            raise RemoteProtocolError(f"a call of module {handle}:{path[:200]!r}, which has no hooks here")
        return mirror

    def settled(self) -> None:
        """Know that an exchange is over, with all that was asked within it."""
        self._numbers.settled()
        self._outputs.clear()
        self._telling.clear()  # what could not be told would be kept, and with it the worker

    def changes(self, *, live: bool = True) -> list[TreeChange]:
        """Return what was done here to module trees since the worker was last told.

        Args:
            live: Whether to look at those that are alive, or else only at those that are gone.
        """
        # By `valuerefs`: before each request, and `values` takes ten times as long for one tree.
        telling: list[Tree | Survivors] = []
        if live:
            telling += [tree for tree in [known() for known in self._trees.valuerefs()] if tree is not None]
            if self._survivors:
                telling += self._survivors.values()
        self._telling = telling
        changes = list(self._last_changes)
        self._telling_last = len(changes)
        for one in telling:
            change = one.changes()
            if change is not None:
                changes.append(change)
        return changes

    def changes_told(self) -> None:
        """Know that the worker is told of the changes last returned."""
        for one in self._telling:
            one.told()
        for _ in range(self._telling_last):
            self._last_changes.popleft()
        self._telling, self._telling_last = [], 0

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

    @property
    def has_released(self) -> bool:
        """Whether there is anything that `released` would return."""
        return bool(self._released)

    def released(self) -> list[tuple[int, int]]:
        """Return the handles that nobody holds any more, and how often each had been received."""
        found = []
        while self._released:
            found.append(self._released.popleft())
        return found

    def held(self) -> int:
        """Return how many of the worker's objects are held here."""
        return len(self._leases)

    def put_back(self, released: list[tuple[int, int]]) -> None:
        """Return these by the next `released` again: they could not be told."""
        self._released.extend(released)
        self._telling.clear()

    @contextmanager
    def making(self) -> Iterator[None]:
        """Keep new trees until the value that names them is made; to make it another answer may be needed."""
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1
            if not self._making:
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
        tree, survivors = self._trees.get(handle), self._survivors.get(handle)
        if tree is not None:
            return tree.tensor(place)
        found = None if survivors is None else survivors.get(place)
        # Of a parameter that nobody here holds any more nobody can see a gradient.
        return _UNSEEN if found is None else found

    def has_survivors(self, build: Build) -> bool:
        """Whether there are parameters here, without their module, that may be of what this load returned."""
        origins = [survivors.build for survivors in list(self._survivors.values())]
        return any(origin is None or origin() is build for origin in origins)

    def _tree_died(self, lease: Lease, shared: Shared) -> None:
        # May run inside the garbage collector.
        with suppress(LocalProtocolError):
            change = shared.changes() or TreeChange(lease.handle, [], [])
            self._last_changes.append(structs.replace(change, hooked=[]))

        def gone(survivors: Survivors) -> None:
            if self._survivors.get(lease.handle) is survivors:
                del self._survivors[lease.handle]

        part = lease.part
        lease.origin = lease.part = None  # they may lead to modules of the caller's with some of the parameters
        if any(isinstance(tensor, torch.nn.Parameter) for tensor in shared.tensors):
            # Those that die now leave the table at once.
            survivors = self._survivors[lease.handle] = Survivors(lease, shared.tensors, gone)
            survivors.build = None if part is None else weakref.ref(part.build)

    def _lease(self, handle: int) -> Lease:
        lease = self._leases.get(handle)
        if lease is None:
            if len(self._leases) >= MAX_HANDLES:
                raise RemoteProtocolError(f"more than {MAX_HANDLES} handles")
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
