"""Modules and objects built again in a new worker, on the weights that this process still holds.

::

    handle_of(lease) ─> the load once more ─> what changed the shape since ─> adopt the tensors ─> the same mirrors

A load is built again when something of it is used next. The modules and parameters here stay the objects that they
are, and no byte of the shared memory is written meanwhile: the new worker's own tensors are pointed to it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from isohub.errors import IsohubError, LostObjectError, RemoteProtocolError, RestartError, WorkerError
from isohub.hub.lock import using
from isohub.model.journal import Build, Operation, Part
from isohub.model.objects import Lease, RemoteObject
from isohub.model.tree import Tree
from isohub.supervisor.worker import Worker
from isohub.wire.framing import MAX_DESCRIPTORS
from isohub.wire.messages import TorchState
from isohub.wire.texts import clean

if TYPE_CHECKING:
    import torch

    from isohub.model.proxies import ProxyTable

__all__ = ["handle_of"]

# Of a message about differences: a tree that has nothing in common with the old one has as many as it has modules.
_SHOWN_DIFFERENCES = 8


def handle_of(table: ProxyTable, lease: Lease) -> int:
    """Return the handle that a lease of a process before this one has now; its load is done again if need be.

    Raises:
        LostObjectError: No load returned what it stood for.
        RestartError: The load fails, or makes something else than it did.
    """
    part = lease.part
    if part is None:
        raise LostObjectError(
            f"{lease.what} died with its worker ({lease.worker.label}), and cannot be built again, since no load "
            "returned it as it is: get it once more from the model that it came from",
            worker=lease.worker.label,
            lost=lease.what,
        )
    if part.stand_in is not None:
        return part.stand_in.handle
    if lease.table.has_survivors(part.build):
        raise RestartError(
            f"{lease.what} died with its worker ({lease.worker.label}), and parameters of a module in it are held here "
            "without the module: what would be built again could not be put on them. They stay readable. Hold on to "
            "the module (model = trainer.model), as long as an optimizer has its parameters",
            worker=lease.worker.label,
            entrypoint=part.build.call[0],
        )
    _build_again(table, lease.worker, part.build)
    return lease.handle


def _build_again(table: ProxyTable, worker: Worker, build: Build) -> None:
    entrypoint, args, kwargs = build.call
    parts = [part for part in build.parts if part.lease is not None]
    restart = worker.restart
    assert restart is not None, "a lease of a process before this one"
    table.rebuilding += 1
    try:
        with using(build.lock), restart.replaying(worker, build.modes):
            fields: dict[str, Any] = {"name": entrypoint, "metadata": build.metadata}
            result = worker.request("build", args, kwargs, muted=True, **fields)
        found = [(part, _find(worker, part, result)) for part in parts]
        del result
        for part, new in found:
            part.stand_in = new._isohub_lease
        operations = sorted(((one, part) for part in parts for one in part.operations), key=lambda two: two[0].order)
        for one, part in operations:
            assert part.stand_in is not None, "given to all of them"
            _do_again(worker, part.stand_in, one)
        with restart.replaying(worker, TorchState()):
            for part, new in found:
                _take_place(table, worker, part, new)
    except (RestartError, RemoteProtocolError):
        raise
    except Exception as error:
        again = "The next call tries again" if worker.alive else "Load it again"
        raise RestartError(
            f"{entrypoint} could not be built again in the new worker {worker.label}: {type(error).__name__}: {error}. "
            f"{again}; its weights stay readable here",
            worker=worker.label,
            stderr_tail=error.stderr_tail if isinstance(error, WorkerError) else (),
            entrypoint=entrypoint,
        ) from error
    finally:
        table.rebuilding -= 1
        for part in parts:
            part.stand_in = None


def _do_again(worker: Worker, lease: Lease, one: Operation) -> None:
    assert worker.restart is not None, "it has been started again"
    with worker.restart.replaying(worker, one.modes):
        worker.request(one.verb, one.args, one.kwargs, muted=True, of=lease, path=one.path, name=one.name)


def _find(worker: Worker, part: Part, result: Any) -> Any:
    """Return what was built again at the place of a part."""
    new = result
    for key in part.place:
        try:
            new = new[key]
        except (LookupError, TypeError):
            raise _differs(worker, part, [f"there is nothing at {list(part.place)!r:.200} of the result"]) from None
    for operations, path in part.copied:
        for one in operations:
            _do_again(worker, new._isohub_lease, one)
        new = copy.deepcopy(new.get_submodule(path)) if path else new
    if not (isinstance(new, RemoteObject) or "_isohub_tree" in getattr(new, "__dict__", ())):
        raise _differs(worker, part, [f"at {list(part.place)!r:.200} of the result is a {type(new).__name__}"])
    return new


def _take_place(table: ProxyTable, worker: Worker, part: Part, new: Any) -> None:
    """Have what stood for something of the dead process stand for its like in the new one."""
    lease = part.lease
    old = None if lease is None or lease.stands_for is None else lease.stands_for()
    if lease is None or old is None:
        return  # nobody has it any more
    if isinstance(old, Tree) is isinstance(new, RemoteObject):
        raise _differs(worker, part, ["a module in one and another object in the other"])
    if isinstance(old, Tree):
        _adopt(table, worker, part, old, new._isohub_tree)
    elif type(old) is not type(new) or old._isohub_type != new._isohub_type:
        raise _differs(worker, part, [f"a {clean(new._isohub_type, 200)}, not a {clean(old._isohub_type, 200)}"])
    else:
        lease.take_over(new._isohub_lease)
        table.put_object(old)


def _adopt(table: ProxyTable, worker: Worker, part: Part, old: Tree, new: Tree) -> None:
    old.changes()  # memory that was put elsewhere by way of `.data` is brought back
    mine, theirs = _Look(old), _Look(new)
    differences = mine.differences(theirs)
    if differences:
        raise _differs(worker, part, differences)
    tensors = list({id(tensor): tensor for tensor in mine.tensors.values() if tensor is not None}.values())
    index = {id(tensor): number for number, tensor in enumerate(tensors)}
    places = [(path, name, -1 if one is None else index[id(one)], mine.persistent.get((path, name)))
              for (path, name), one in mine.tensors.items()]  # fmt: skip
    gone = [(path, name) for path, name in theirs.tensors if (path, name) not in mine.tensors]
    while given := worker.border.give(tensors, MAX_DESCRIPTORS // 2):
        worker.request("state", (given,), muted=True, of=new.lease, name="segments")
    plain = [tensor.detach() for tensor in tensors]
    flags = [tensor.requires_grad for tensor in tensors]
    worker.request(
        "state", ((plain, flags), (places, gone), mine.modes), muted=True, of=new.lease, name="adopt"
    )  # fmt: skip
    theirs = _Look(new)
    kept: dict[int, torch.Tensor] = {}
    for key, place in theirs.places.items():
        one, now = mine.tensors.get(key), theirs.tensors[key]
        if one is None or now is None or not _is_same(one, now):
            fault = RemoteProtocolError(f"weights of {key[0][:200]!r} that were not taken over")
            raise worker.refuse(fault) from fault
        kept[place] = one
    old.move_to(new, kept)
    table.put_tree(old)


class _Look:
    """A module tree by paths: its shape, its tensors and its modes."""

    def __init__(self, tree: Tree) -> None:
        paths, tensors = tree.paths(), tree.tensors()
        self.types = {path: node.type_name for path, node in zip(paths, tree.nodes, strict=True)}
        self.children = {
            path: {name: None if child == -1 else paths[child] for name, child in node.children}
            for path, node in zip(paths, tree.nodes, strict=True)
        }
        self.places: dict[tuple[str, str], int] = {}
        self.tensors: dict[tuple[str, str], torch.Tensor | None] = {}
        self.persistent: dict[tuple[str, str], bool] = {}  # of buffers alone
        self.modes: list[tuple[str, bool]] = []
        for path, node in zip(paths, tree.nodes, strict=True):
            mirror = tree.mirror(path)
            self.modes.append((path, node.training if mirror is None else mirror.training))
            self.persistent.update({(path, name): persistent for name, _, persistent in node.buffers})
            for name, place in (*node.parameters, *((name, place) for name, place, _ in node.buffers)):
                if place != -1:
                    self.places[path, name] = place
                mine = None if mirror is None else mirror._parameters.get(name, mirror._buffers.get(name))
                self.tensors[path, name] = None if place == -1 else tensors[place] if mine is None else mine

    def differences(self, new: _Look) -> list[str]:
        """Return in what a tree that was built again is not like this one."""
        found = [f"it has no part {path!r:.200}" for path in self.types if path not in new.types]
        found += [f"it has a part {path!r:.200}" for path in new.types if path not in self.types]
        for path in self.types.keys() & new.types.keys():
            where = f"its part {path!r:.200}" if path else "it"
            if self.children[path] != new.children[path]:
                found.append(f"{where} has other parts: {sorted(new.children[path])!r:.200}")
            is_lazy = "Lazy" in new.types[path]
            if self.types[path] != new.types[path] and not is_lazy:
                found.append(f"{where} is a {new.types[path]!r:.200}, not a {self.types[path]!r:.200}")
        for key in self.tensors.keys() | new.tensors.keys():
            found += self._unlike(new, key)
        return [clean(text) for text in sorted(found)]

    def _unlike(self, new: _Look, key: tuple[str, str]) -> list[str]:
        name = ".".join(filter(None, key))
        one = self.tensors.get(key)
        is_lazy = "Lazy" in new.types.get(key[0], "")
        if one is not None and one.is_meta and not is_lazy:
            return [f"the values of {name!r:.200} were in the dead worker alone"]
        if key in self.persistent or key in new.persistent or is_lazy or key[0] not in new.types:
            return []  # a buffer may come, go and change while the model runs
        other = new.tensors.get(key)
        if (key in self.tensors) is not (key in new.tensors) or _size(one) != _size(other):
            return [f"its parameter {name!r:.200} is {_size(other)}, not {_size(one)}"]
        return []


def _size(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether these are two views of the same memory."""
    if (one.shape, one.dtype, one.is_meta) != (other.shape, other.dtype, other.is_meta):
        return False
    if one.is_meta or not one.numel():
        return True
    return (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride())


def _differs(worker: Worker, part: Part, differences: list[str]) -> IsohubError:
    entrypoint = part.build.call[0]
    shown = "; ".join(differences[:_SHOWN_DIFFERENCES])
    return RestartError(
        f"what {entrypoint} built again in the new worker {worker.label} is not what died: {shown}. Its weights stay "
        "readable here: save its state_dict(), and load it again",
        worker=worker.label,
        entrypoint=entrypoint,
        differences=tuple(differences),
    )
