"""What has to be done again to have the same objects in a new worker: `Isolation(restart="on-crash")`.

That is the loads, with their arguments, and what changed the shape of a module since: parts, parameters, buffers
and attributes that were set or removed from here, and functions and methods after which the tree had another
shape. Values are not in it: they are in shared memory, and stay there.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from isohub.options import Isolation
from isohub.supervisor.state import state_now
from isohub.wire.messages import TorchState, Verb
from isohub.wire.specs import ModuleNode

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule
    from isohub.model.objects import Lease

__all__ = ["VERBS", "Build", "Operation", "Part", "Place", "begin", "inherit", "kept", "noting"]

# What may change the shape of a module, other than a call: that makes lazy parameters and caches, which are
# taken over as they are.
VERBS = frozenset(("setattr", "delattr", "method", "apply", "run", "setitem", "delitem"))
_REGISTERING = ("add_module", "register_parameter", "register_buffer")

_order = itertools.count()


@dataclass(eq=False, kw_only=True)
class Build:
    """One load.

    Attributes:
        call: Name of the entrypoint, its positional and its keyword arguments, kept as they were.
        metadata: What it writes into files that it saves.
        lock: The lock file that holds for what it downloads.
        modes: torch's modes of then, and the state of the random generator.
        parts: What of its result is still held here.
    """

    call: tuple[str, tuple[Any, ...], dict[str, Any]]
    metadata: dict[str, str]
    lock: str | os.PathLike[str] | None
    modes: TorchState
    parts: weakref.WeakSet[Part] = field(default_factory=weakref.WeakSet)


@dataclass(frozen=True, eq=False)
class Operation:
    """Something that changed the shape of a module, or an attribute.

    Attributes:
        order: Its place among all of them.
        verb, path, name, args, kwargs: The request.
        modes: As in `Build`.
        key: Path and name of what was set; None for anything else.
    """

    order: int
    verb: Verb
    path: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    modes: TorchState
    key: tuple[str, str] | None


class Part:
    """How one handle is built again.

    Args:
        lease: The handle.
        build: The load that it came from.
        place: Indices and keys that lead to it in the result.

    Attributes:
        operations: What was done to it since.
        copied: For a copy: what had been done to its original, and the path there of what was copied; first for the
            original's original.
        stand_in: While it is being built again, the lease of what it is going to be.
    """

    def __init__(self, lease: Lease, build: Build, place: tuple[Any, ...]) -> None:
        self._lease = weakref.ref(lease)
        self.build = build
        self.place = place
        self.operations: list[Operation] = []
        self.copied: list[tuple[list[Operation], str]] = []
        self.stand_in: Lease | None = None
        build.parts.add(self)

    @property
    def lease(self) -> Lease | None:
        """The handle; None when nobody holds it any more."""
        return self._lease()


@dataclass(frozen=True, eq=False)
class Place:
    """Stands for a module or object of a worker's among arguments that are kept: where it was then."""

    _isohub_lease: Lease
    _isohub_path: str
    is_module: bool


def begin(
    isolation: Isolation | None,
    call: tuple[str, tuple[Any, ...], dict[str, Any]],
    metadata: dict[str, str],
    lock: str | os.PathLike[str] | None,
) -> Build | None:
    """Return what a load that is about to be done needs to be done again; None where that is not wanted."""
    if isolation is None or isolation.restart == "never":
        return None
    name, args, kwargs = call
    return Build(call=(name, kept(args), kept(kwargs)), metadata=metadata, lock=lock, modes=state_now())


def kept(value: Any, *, copying: bool = True) -> Any:
    """Return arguments as they are now, whatever the caller does to them later.

    Containers, tensors and arrays are copied, modules and objects of a worker are known by their place then. Other
    objects, and parameters, which go on being the caller's, are kept themselves.

    Args:
        value: The arguments.
        copying: Whether to copy tensors and arrays.
    """
    kind = type(value)
    if kind in (list, tuple, set):
        return kind(kept(member, copying=copying) for member in value)
    if kind is dict:
        return {key: kept(member, copying=copying) for key, member in value.items()}
    if issubclass(kind, tuple) and hasattr(kind, "_make"):
        return kind._make(kept(member, copying=copying) for member in value)
    if hasattr(kind, "_isohub_type") or "_isohub_tree" in getattr(value, "__dict__", ()):
        return Place(value._isohub_lease, value._isohub_path, not hasattr(kind, "_isohub_type"))
    if copying and kind is torch.Tensor and value.is_leaf:
        return value.detach().clone().requires_grad_(value.requires_grad)
    if copying and kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return value.copy()
    return value


def inherit(original: IsolatedModule, duplicate: IsolatedModule) -> None:
    """Have a copy built again as its original would be: by a load of its own, and what was done to that so far."""
    part = original._isohub_lease.part
    if part is None:
        return
    build = Build(
        call=part.build.call, metadata=part.build.metadata, lock=part.build.lock, modes=part.build.modes
    )  # fmt: skip
    copied = duplicate._isohub_lease.part = Part(duplicate._isohub_lease, build, part.place)
    copied.copied = [*part.copied, (list(part.operations), original._isohub_path)]


@contextmanager
def noting(
    proxy: Any, verb: Verb, args: tuple[Any, ...], kwargs: dict[str, Any] | None, name: str
) -> Iterator[None]:  # fmt: skip
    """Note what is done in the body, if it goes well and would have to be done again."""
    part: Part = proxy._isohub_lease.part
    path: str = proxy._isohub_path
    key = _key(verb, path, name, args)
    if key is None and "_isohub_tree" not in getattr(proxy, "__dict__", ()) and verb != "method":
        yield  # objects have no shape that is known here
        return
    frozen = kept((args, kwargs), copying=False)
    before = _shape(part)
    modes = state_now()
    yield
    if key is not None or (before is not None and before != _shape(part)):
        args, kwargs = kept(frozen)
        if verb in ("setattr", "method") and key is not None:
            _forget(part, key)
        part.operations.append(Operation(next(_order), verb, path, name, args, kwargs, modes, key))


def _key(verb: Verb, path: str, name: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
    if verb in ("setattr", "delattr") and name != "training":  # modes are taken over as they are
        return path, name
    if verb == "method" and name in _REGISTERING and args and isinstance(args[0], str):
        return path, args[0]
    return None


def _forget(part: Part, key: tuple[str, str]) -> None:
    """Forget what was set before where something else is set now: a program may do that at each step."""
    last = max((index for index, one in enumerate(part.operations) if one.key is None), default=-1)
    below = ".".join(filter(None, key))
    part.operations[last + 1 :] = [
        one for one in part.operations[last + 1 :]
        if one.key is None or not (one.key == key or one.key[0] == below or one.key[0].startswith(f"{below}."))
    ]  # fmt: skip


def _shape(part: Part) -> Any:
    """Return what can be compared to tell whether the tree of a handle has another shape; None for no tree."""
    lease = part.lease
    tree = None if lease is None or lease.stands_for is None else lease.stands_for()
    return None if tree is None or not hasattr(tree, "nodes") else _Shape(tree.nodes)


class _Shape:
    """The nodes of a tree, compared by their shape; that is seldom needed."""

    def __init__(self, nodes: list[ModuleNode]) -> None:
        self._nodes = nodes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and (self._nodes is other._nodes or self._looks() == other._looks())

    __hash__ = None  # type: ignore[assignment]

    def _looks(self) -> list[Any]:
        return [
            (node.type_name, node.children, [(name, place == -1) for name, place in node.parameters])
            for node in self._nodes
        ]
