"""Module trees of a worker, mirrored here."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from isohub.errors import RemoteProtocolError
from isohub.hub.checkout import Checkout
from isohub.model.changes import Shared, Survivors
from isohub.model.module import Info, IsolatedModule, check_modes
from isohub.model.objects import Lease, judged, object_class
from isohub.model.registered import Registered
from isohub.shm.tensors import TensorReader
from isohub.wire.messages import TreeChange
from isohub.wire.specs import ModuleNode, places_of

__all__ = ["Tree", "stamp"]

# Deeper than any module, and far from Python's recursion limit, which a hostile tree must not reach.
MAX_TREE_DEPTH = 200
# Modules, parameters and buffers, each as often as a path leads there: what a state dict walks over. Where
# each module has the next one twice, that doubles with each level.
MAX_TREE_SIZE = 1_000_000


class Tree:
    """A module tree that lives in a worker, and its mirror here.

    The mirrors keep the tree, and with it the worker's handle, alive; the tree knows them weakly, so that
    the last mirror that dies frees the module in the worker without waiting for the collector.

    Args:
        lease: Of its root.
        checkout: Where its code is from.
        known: All mirrors of modules in this worker, by the worker's number. A module may move from one
            tree to another, and its mirror with it.
        trees: All trees in this worker, by handle.
        survivors: Parameters of this tree that are here although it was gone.
        died: Called with the lease, and what there was of the tree, when it dies.
    """

    def __init__(
        self,
        lease: Lease,
        checkout: Checkout,
        known: weakref.WeakValueDictionary[int, IsolatedModule],
        trees: weakref.WeakValueDictionary[int, Tree],
        *,
        survivors: Survivors | None = None,
        died: Callable[[Lease, Shared], None] = lambda *_: None,
    ) -> None:
        self.lease = lease
        self._known = known
        self._trees = trees
        self.shared = Shared(lease.handle)
        self._survivors = survivors
        self._died = died
        self.entrypoint: str | None = None
        self.hookable: weakref.WeakSet[IsolatedModule] = weakref.WeakSet()  # those that ever had a hook
        self._hooked: list[str] = []  # paths of those that have one, as the worker knows it
        self._hooked_now: list[str] = []
        self._checkout = checkout
        self._mirrors: weakref.WeakValueDictionary[str, IsolatedModule] = weakref.WeakValueDictionary()
        self._paths: list[str] = []
        self.nodes: list[ModuleNode] = []
        lease.stands_for = weakref.ref(self)

    def __del__(self, _ends: Callable[[], bool] = sys.is_finalizing) -> None:
        # Not a finalizer of weakref's, which would keep the tensors, and with their hooks perhaps the tree, for good.
        if not _ends():  # else there is nobody to tell, and modules may be empty already
            self._died(self.lease, self.shared)

    def mirror(self, path: str) -> IsolatedModule | None:
        """Return the mirror of the module at `path`, if it is alive."""
        return self._mirrors.get(path)

    def home_of(self, mirror: IsolatedModule, path: str, *, parted: bool = False) -> dict[str, Any]:
        """Return the members of a mirror that say where it lives: here, unless it is in another tree already.

        A slice of a container is a tree of its own, made of modules of another.
        """
        home = mirror._isohub_tree
        if not parted and home is not self and home.mirror(mirror._isohub_path) is mirror:
            return {}
        return {"_isohub_lease": self.lease, "_isohub_tree": self, "_isohub_path": path}

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
        with judged(self.lease.worker):
            checked = check_modes(modes, len(self._paths))
        for path, mode in zip(self._paths, checked, strict=True):
            mirror = self._mirrors.get(path)
            if mirror is not None:
                mirror.__dict__["training"] = mode

    def tensor(self, place: int) -> torch.Tensor:
        """Return the parameter or buffer at a place, counted as in `wire.specs.ModuleSpec`.

        Raises:
            RemoteProtocolError: There is none.
        """
        tensors = self.shared.tensors
        if not 0 <= place < len(tensors):
            raise RemoteProtocolError(f"tensor {place} of a module tree of {len(tensors)}")
        return tensors[place]

    def find(self, parameter: nn.Parameter) -> tuple[str, str] | None:
        """Return the path of a module and the name there of `parameter`, if it is in this tree."""
        if not any(parameter is tensor for tensor in self.shared.tensors):
            return None
        for path, mirror in list(self._mirrors.items()):
            for name, own in mirror._parameters.items():
                if own is parameter:
                    return path, name
        return None

    def tensors(self) -> dict[int, torch.Tensor]:
        """Return the parameters and buffers, as they are numbered in `nodes`."""
        return dict(zip(places_of(self.nodes), self.shared.tensors, strict=True))

    def paths(self) -> list[str]:
        """Return the paths of the modules, in the order of `nodes`."""
        return list(self._paths)

    def move_to(self, other: Tree, tensors: dict[int, torch.Tensor]) -> None:
        """Be what `other` is in another process: the same modules, on the tensors that are here.

        Args:
            other: A tree of the same shape, just made. It is not used any more.
            tensors: Those of here, as they are numbered in the nodes of `other`.
        """
        self.lease.take_over(other.lease)
        self._known, self._trees = other._known, other._trees
        self._died, other._died = other._died, lambda *_: None  # the end of a stand-in is nobody's
        self.nodes, self._paths = other.nodes, other._paths
        for path, node in zip(self._paths, self.nodes, strict=True):
            mirror = self._mirrors.get(path)
            if mirror is not None:
                mirror.__dict__["_isohub_node"] = node
                self._known[node.number] = mirror
        self.shared = Shared(self.lease.handle)
        self.shared.take([tensors[place] for place in places_of(self.nodes)])
        self._hooked = []
        self._trees[self.lease.handle] = self

    def changes(self) -> TreeChange | None:
        """Return what was done here to the tree since the worker was last told; None if nothing."""
        change = self.shared.changes()
        # Asked first: to go through a set of weak references takes ten times as long.
        if not self.hookable and not self._hooked:
            self._hooked_now = self._hooked
            return change
        self._hooked_now = sorted(mirror._isohub_path for mirror in list(self.hookable) if mirror.has_hooks())
        if self._hooked_now == self._hooked:
            return change
        return TreeChange(
            self.lease.handle,
            [] if change is None else change.written,
            [] if change is None else change.asking,
            self._hooked_now,
        )

    def told(self) -> None:
        """Know that the worker is told of the changes last returned."""
        self.shared.told()
        self._hooked = self._hooked_now

    def update(
        self,
        nodes: list[ModuleNode],
        tensors: TensorReader,
        adopted: dict[int, torch.Tensor | None],
        *,
        parted: bool = False,
    ) -> IsolatedModule:
        """Make the mirror what `nodes` say, keeping every module and parameter that stays; return the root.

        Args:
            nodes: The modules.
            tensors: The payload's.
            adopted: Parameters of this program that are now in the tree, by place among the tensors; None for
                one that is gone.
            parted: Whether its modules have just left the tree in which they were.

        Raises:
            RemoteProtocolError: The nodes are no tree.
        """
        return _Update(self, nodes, tensors, adopted, parted).root()

    def _mirror_for(self, path: str, node: ModuleNode) -> IsolatedModule:
        """Return the mirror that there is, as it was before, or else a new one, which the tree does not know yet."""
        kind = object_class(IsolatedModule, node.protocols)
        mirror = self._known.get(node.number)
        return mirror if mirror is not None and type(mirror) is kind else kind(self, path, node)


class _Update:
    """One pass over the nodes of a tree. Nothing changes until all of them have turned out to make sense."""

    def __init__(
        self,
        tree: Tree,
        nodes: list[ModuleNode],
        tensors: TensorReader,
        adopted: dict[int, torch.Tensor | None],
        parted: bool,
    ) -> None:
        self._tree = tree
        self._parted = parted
        self._adopted = adopted
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
        if len({node.number for node in self._nodes}) != len(self._nodes):
            raise RemoteProtocolError("a module tree with two modules of one number")
        for stays, now in self._renewed.values():
            stays.data = now.data
            stays.requires_grad_(now.requires_grad)
        made = [self._made[index] for index in range(len(self._nodes))]
        for one in made:
            one.mirror.__dict__.update(one.members)
        tree = self._tree
        before = dict(tree._mirrors)
        tree._mirrors = weakref.WeakValueDictionary({one.path: one.mirror for one in made})
        tree._known.update((one.members["_isohub_node"].number, one.mirror) for one in made)
        tree._paths = [one.path for one in made]
        tree.nodes = self._nodes
        tree.shared.take([self._parameters.get(place, self._tensors[place]) for place in places_of(self._nodes)])
        tree._survivors = None
        # The worker goes by the paths of before; it is told those of now.
        tree._hooked = ["?"] if tree._hooked else []
        for one in made:
            one.mirror.note_hooks()  # which it may have from another tree
        for mirror in before.values():
            if tree.mirror(mirror._isohub_path) is not mirror:
                self._rehome(mirror)
        return root.mirror

    def _rehome(self, mirror: IsolatedModule) -> None:
        """Have a mirror that left the tree live in another one that has it, if there is one."""
        for tree in list(self._tree._trees.values()):
            for path, one in list(tree._mirrors.items()):
                if one is mirror:
                    mirror.__dict__.update(tree.home_of(mirror, path))
                    return

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
            **self._tree.home_of(mirror, path, parted=self._parted),
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
            adopted = self._adopted.get(index)
            now = nn.Parameter(self._tensors[index], requires_grad=self._tensors.spec(index).requires_grad)
            if isinstance(adopted, nn.Parameter) and (adopted.shape, adopted.dtype) == (now.shape, now.dtype):
                before = adopted
            elif before is None and self._tree._survivors is not None:
                before = self._tree._survivors.over(now)
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


def _by_name(parts: list[tuple[str, Any]]) -> Registered:
    # By its path each module is found here: two of one path would be one.
    for name, _ in parts:
        if not name or "." in name:
            raise RemoteProtocolError(f"a part of a module named {name[:100]!r}")
    named = Registered(parts)
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
