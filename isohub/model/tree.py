"""Module trees of a worker, mirrored here, and everything else that stands for its objects."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.hub.checkout import Checkout
from isohub.model.module import Info, IsolatedModule, check_modes
from isohub.model.objects import BoundMethod, Lease, RemoteObject, nested, object_class
from isohub.model.records import make_record, parts_of
from isohub.shm.tensors import TensorReader
from isohub.supervisor.worker import Worker
from isohub.wire.specs import ModuleNode, ModuleSpec
from isohub.wire.values import Record, Ref

__all__ = ["ProxyTable", "Tree", "stamp"]

# Deeper than any module, and far from Python's recursion limit, which a hostile tree must not reach.
MAX_TREE_DEPTH = 200
# Modules, parameters and buffers, each as often as a path leads there: what a state dict walks over. Where
# each module has the next one twice, that doubles with each level.
MAX_TREE_SIZE = 1_000_000

_Part = TypeVar("_Part")


class Tree:
    """A module tree that lives in a worker, and its mirror here.

    The mirrors keep the tree, and with it the worker's handle, alive; the tree knows them weakly, so that
    the last mirror that dies frees the module in the worker without waiting for the collector.
    """

    def __init__(self, lease: Lease, checkout: Checkout) -> None:
        self.lease = lease
        self.entrypoint: str | None = None
        self._checkout = checkout
        self._mirrors: weakref.WeakValueDictionary[str, IsolatedModule] = weakref.WeakValueDictionary()
        self._paths: list[str] = []

    def mirror(self, path: str) -> IsolatedModule | None:
        """Return the mirror of the module at `path`, if it is alive."""
        return self._mirrors.get(path)

    def info(self) -> Info:
        """Return where the tree comes from."""
        repo, worker = self._checkout.repo, self.lease.worker
        return Info(
            host=repo.host,
            repo=f"{repo.owner}/{repo.name}" if repo.owner else repo.name,
            ref=self._checkout.ref_name,
            commit=self._checkout.commit,
            entrypoint=self.entrypoint,
            pid=worker.pid,
            state=worker.state,
        )

    def describe(self) -> str:
        """Return one line for people: entrypoint, repository, worker."""
        worker = self.lease.worker
        return f"{self.entrypoint or 'module'} of {worker.label}, worker pid={worker.pid} {worker.state}"

    def take_modes(self, modes: object) -> None:
        """Take over the training flags of all modules, as the worker tells them, in order."""
        for path, mode in zip(self._paths, check_modes(modes, len(self._paths)), strict=True):
            mirror = self._mirrors.get(path)
            if mirror is not None:
                mirror.__dict__["training"] = mode

    def update(self, nodes: list[ModuleNode], tensors: TensorReader) -> IsolatedModule:
        """Make the mirror what `nodes` say, keeping every module and parameter that stays; return the root.

        Raises:
            RemoteProtocolError: The nodes are no tree.
        """
        return _Update(self, nodes, tensors).root()

    def _mirror_for(self, path: str, node: ModuleNode) -> IsolatedModule:
        """Return the mirror that there is, as it was before, or else a new one, which the tree does not know yet."""
        kind = object_class(IsolatedModule, node.protocols)
        mirror = self._mirrors.get(path)
        return mirror if mirror is not None and type(mirror) is kind else kind(self, path, node)


class _Update:
    """One pass over the nodes of a tree. Nothing changes until all of them have turned out to make sense."""

    def __init__(self, tree: Tree, nodes: list[ModuleNode], tensors: TensorReader) -> None:
        self._tree = tree
        self._nodes = nodes
        self._tensors = tensors
        self._begun: set[int] = set()
        self._made: dict[int, _Made] = {}
        self._parameters: dict[int, nn.Parameter] = {}  # tied ones are one object here as there
        # What stays, and whose memory and flag it takes on, by the id of what stays.
        self._renewed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def root(self) -> IsolatedModule:
        """Visit everything from the root on, then change the tree; return the root."""
        root = self._visit(0, "", 0)
        if len(self._made) != len(self._nodes):
            raise RemoteProtocolError("a module tree with nodes that nothing leads to")
        for before, now in self._renewed.values():
            before.data = now.data
            before.requires_grad_(now.requires_grad)
        made = [self._made[index] for index in range(len(self._nodes))]
        for one in made:
            one.mirror.__dict__.update(one.members)
        self._tree._mirrors.update((one.path, one.mirror) for one in made)
        self._tree._paths = [one.path for one in made]
        return root.mirror

    def _visit(self, index: int, path: str, depth: int) -> _Made:
        if not 0 <= index < len(self._nodes) or depth > MAX_TREE_DEPTH:
            raise RemoteProtocolError(f"a module tree with node {index} of {len(self._nodes)} at depth {depth}")
        if index in self._made:
            return self._made[index]
        if index in self._begun:
            raise RemoteProtocolError("a module that contains itself")
        self._begun.add(index)
        node = self._nodes[index]
        mirror = self._tree._mirror_for(path, node)
        parameters = [(name, self._parameter(place, mirror._parameters.get(name))) for name, place in node.parameters]
        below = [
            (name, None if child == -1 else self._visit(child, f"{path}.{name}" if path else name, depth + 1))
            for name, child in node.children
        ]
        parts = [part for _, part in below if part is not None]
        height = 1 + max((part.height for part in parts), default=0)
        size = 1 + len(node.parameters) + len(node.buffers) + sum(part.size for part in parts)
        if height > MAX_TREE_DEPTH + 1 or size > MAX_TREE_SIZE:
            raise RemoteProtocolError(f"a module tree of {size} places, {height} deep")
        members = {
            "_isohub_node": node,
            "_version": node.version,
            "training": node.training,
            "_modules": _by_name([(name, None if part is None else part.mirror) for name, part in below]),
            "_parameters": _by_name(parameters),
            "_buffers": _by_name(
                [(name, None if place == -1 else self._tensors[place]) for name, place, _ in node.buffers]
            ),
            "_non_persistent_buffers_set": {name for name, _, persistent in node.buffers if not persistent},
        }
        self._made[index] = _Made(path, mirror, members, height, size)
        return self._made[index]

    def _parameter(self, index: int, before: nn.Parameter | None) -> nn.Parameter | None:
        if index == -1:
            return None
        if index not in self._parameters:
            now = nn.Parameter(self._tensors[index], requires_grad=self._tensors.spec(index).requires_grad)
            # A lazy parameter stood here without memory, and torch cannot give it any. Of tied ones that are
            # no longer, one stays.
            if before is None or before.device != now.device or id(before) in self._renewed:
                self._parameters[index] = now
            else:
                # Optimizers know a parameter by its identity, so the object stays and looks elsewhere.
                self._renewed[id(before)] = (before, now)
                self._parameters[index] = before
        return self._parameters[index]


class _Made(NamedTuple):
    """What a node becomes: its mirror, and what goes into that in the end."""

    path: str
    mirror: IsolatedModule
    members: dict[str, Any]
    height: int
    size: int


class ProxyTable:
    """Everything in this process that stands for objects of one worker; see `supervisor.border.Proxies`."""

    def __init__(self, worker: Worker, checkout: Checkout) -> None:
        self._worker = worker
        self._checkout = checkout
        self._leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()
        self._objects: weakref.WeakValueDictionary[int, RemoteObject] = weakref.WeakValueDictionary()
        self._trees: weakref.WeakValueDictionary[int, Tree] = weakref.WeakValueDictionary()
        self._released: deque[tuple[int, int]] = deque()
        self._fresh: list[IsolatedModule] = []  # keeps new roots until the value that names them is made

    def ref_of(self, value: object) -> Ref | None:
        """Return what `value` stands for in its worker; None when it is no proxy."""
        if not isinstance(value, RemoteObject | IsolatedModule | BoundMethod):
            return None
        lease = value._isohub_lease
        if lease.worker is not self._worker:
            raise LocalProtocolError(
                f"{value!r:.200} lives in worker {lease.worker.label}, and cannot go to worker {self._worker.label}: "
                "pass the data instead"
            )
        if isinstance(value, BoundMethod):
            return Ref("method", lease.handle, value._isohub_path, value.__name__)
        return Ref("module" if isinstance(value, IsolatedModule) else "object", lease.handle, value._isohub_path)

    def module_tree(self, spec: ModuleSpec, tensors: TensorReader) -> None:
        """Take in a module tree, new or changed."""
        tree = self._trees.get(spec.handle)
        if tree is None:
            tree = Tree(self._lease(spec.handle), self._checkout)
            self._trees[spec.handle] = tree
        # Under the caller's inference mode they would be inference tensors, which nobody can write to after it.
        with torch.inference_mode(False):
            self._fresh.append(tree.update(spec.nodes, tensors))

    def proxy(self, ref: Ref) -> object:
        """Return what stands for `ref`."""
        lease = self._lease(ref.handle)
        if ref.kind == "method":
            return BoundMethod(lease, ref.path, ref.name)
        lease.receive()
        if ref.kind == "module":
            return self._module(ref)
        found = self._objects.get(ref.handle)
        if found is None:
            found = object_class(RemoteObject, ref.protocols)(lease, ref.type_name)
            self._objects[ref.handle] = found
        return found

    def record(self, record: Record, members: list[Any]) -> object:
        """Return the record."""
        return make_record(record, members)

    def parts(self, value: object) -> tuple[Record, list[Any]] | None:
        """Take a record apart, its members unsaid; None for what is no record."""
        return parts_of(value)

    def with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` as one that asks for gradients, and refuses to have them computed."""
        if not torch.is_grad_enabled():
            return tensor
        result: torch.Tensor = _Refuse.apply(  # type: ignore[no-untyped-call]
            torch.empty(0, requires_grad=True), tensor
        )
        return result

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


class _Refuse(torch.autograd.Function):
    """The end of the graph here: what came before it is in the worker."""

    @staticmethod
    def forward(_: Any, __: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    @staticmethod
    def backward(_: Any, *__: Any) -> Any:
        raise LocalProtocolError(
            "gradients do not cross the border to a worker yet: train with isolate=False, or call the module "
            "under torch.no_grad() where only the values are needed"
        )


def _by_name(parts: list[tuple[str, _Part]]) -> dict[str, _Part]:
    # By its path each module is found here: two of one path would be one.
    for name, _ in parts:
        if not name or "." in name:
            raise RemoteProtocolError(f"a part of a module named {name[:100]!r}")
    named = dict(parts)
    if len(named) != len(parts):
        raise RemoteProtocolError("two parts of a module with one name")
    return named


def stamp(value: object, entrypoint: str) -> None:
    """Tell the module trees in an entrypoint's result where they come from."""
    if isinstance(value, IsolatedModule):
        value._isohub_tree.entrypoint = value._isohub_tree.entrypoint or entrypoint
    elif isinstance(value, list | tuple):
        for member in value:
            stamp(member, entrypoint)
    elif isinstance(value, dict):
        for member in value.values():
            stamp(member, entrypoint)
