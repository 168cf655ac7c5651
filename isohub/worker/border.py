"""The worker's side of the border: requests' values in, results out."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from isohub.shm.arena import Arena
from isohub.shm.copying import copy_all
from isohub.shm.plans import MISSING, Plans
from isohub.shm.segment import Segment
from isohub.shm.tensors import (
    Residents,
    TensorReader,
    bytes_of,
    is_dense,
    storage_over,
    tensor_over,
    why_not,
)
from isohub.shm.values import Packer, Unpacker
from isohub.shm.watch import Watch
from isohub.wire import codec, structs
from isohub.wire.messages import Granted, Payload, Request
from isohub.wire.specs import Block
from isohub.wire.tree import Where
from isohub.wire.values import Ref, TensorAt
from isohub.worker import export, weights
from isohub.worker.autograd import Graphs
from isohub.worker.nursery import Nursery
from isohub.worker.objects import Objects

__all__ = ["Border", "Use"]

Use = Literal["arena", "weights", "frozen"]


class Border:
    """What this worker has in common with its parent: segments, blocks and handles.

    Args:
        need_segment: Asks the parent for a segment; returns the grant and its descriptor.

    Attributes:
        frozen: Whether the parent wants large results where nobody can change them any more.
        residents: The segments of weights.
        nursery: Memory for the large tensors of a build that is under way; None if there is none.
    """

    def __init__(self, need_segment: Callable[[int, Use], tuple[Granted, int]]) -> None:
        self._need = need_segment
        self.frozen = False
        self._lock = threading.RLock()  # hooked modules may be called in several threads of the repository's
        self.objects = Objects()
        self.graphs = Graphs(self.objects)
        self._arena = Arena(lambda nbytes: self._new_segment(nbytes, "arena"))
        self.residents = Residents()
        self._inbox: dict[int, Segment] = {}
        self._watch = Watch()
        self._plans = Plans()
        self._sent: tuple[Payload, list[int]] = Payload(), []  # what was said last, and the handles counted for it
        self._common: dict[tuple[int, int], int] = {}  # blocks in use that other workers have as well: their bytes
        self._living: Counter[int] = Counter()  # blocks in use here, by segment of weights
        self.nursery: Nursery | None = None

    def accept(self, request: Request, descriptors: list[int]) -> None:
        """Take in what comes along with a request: new segments, and what the parent gives back."""
        with self._lock:
            if request.segments or descriptors:
                for (number, nbytes), fd in zip(request.segments, descriptors, strict=True):
                    self._inbox[number] = Segment(number, fd, nbytes, frozen=number in request.common)
                    os.close(fd)
            for number, offset in request.freed:
                self._arena.release(number, offset)
            # Before what is released: the last change of a tree may be told when nobody holds it any more.
            for change in request.changes:
                self.objects.trees.change(change)
            for handle, count in request.released:
                self.objects.release(handle, count)

    def news(self) -> dict[str, Any]:
        """Return what goes along with an answer: blocks and segments of which nothing lives here."""
        freed: list[tuple[int, int]] = []
        dropped: list[int] = []
        dead = self._watch.take()
        if not dead:
            return {"freed": freed, "dropped": dropped}
        with self._lock:
            for number, offset in dead:
                if number in self._inbox:
                    nbytes = self._common.pop((number, offset), 0) if self._common else 0
                    if nbytes:  # what the repository's code wrote there must not stand before the next input
                        self._inbox[number].forget_writes(offset, nbytes)
                    freed.append((number, offset))
                    continue
                self._living[number] -= 1
                if not self._living[number]:
                    del self._living[number]
                    self.residents.remove(number)
                    dropped.append(number)
        return {"freed": freed, "dropped": dropped}

    def unpack(self, payload: Payload) -> Any:
        """Return the value that the parent sent."""
        form = payload.form
        if form:
            value = self._plans.read(payload, self._inbox.get, self._watched)
            if value is not MISSING:
                return value
            payload = codec.whole(payload)
            self._plans.learn(form, payload)
        reader = TensorReader(payload.blocks, payload.tensors, self._segment, self._watched, checked=False)
        for one in payload.numbered:
            reader.put(one.tensor, self.graphs.enter(reader[one.tensor], one, reader.spec(one.tensor).requires_grad))
        return Unpacker(payload, reader, self._handle).unpack()

    def pack(self, value: object, *, moving: bool = False, only_forward: bool = False) -> Payload:
        """Say a result, and what has changed in module trees that the parent has.

        Args:
            value: The result.
            moving: Whether its tensors move into shared memory for good.
            only_forward: Whether nothing else than the forward of a module has run; see `Trees.changed`.

        Raises:
            LocalProtocolError: It cannot be said.
        """
        with self._lock:
            told = self.objects.trees.changed(None if only_forward else self._is_astray)
            if not (told or moving or self.frozen):
                planned = self._plans.write(value, self._arena, self.residents)
                if planned is not None:
                    self._sent = planned, []
                    return planned

            def other(packer: Packer, value: Any, where: Where) -> Any:
                return export.say_other(packer, value, where, self.objects)

            return self._packed(self._packer(other, moving=moving), told, value)

    def _packer(self, other: Callable[[Packer, Any, Where], Any], *, moving: bool = False) -> Packer:
        freeze = self._freeze if self.frozen else None
        return Packer(
            self._arena, self.residents, other, self._move, self._own,
            moving=moving and not self.frozen, keeps_views=not moving, freeze=freeze,
        )  # fmt: skip

    def _freeze(self, nbytes: int) -> tuple[int, int]:
        granted, fd = self._need(nbytes, "frozen")
        return granted.segment, fd

    def _packed(self, packer: Packer, told: list[int], value: object = None) -> Payload:
        """Return what says a value and the trees of these handles, with the graph behind the tensors."""
        self.objects.exported()  # what is of another payload
        payload = Payload()
        try:
            for handle in told:
                packer.modules.append(export.describe(packer, self.objects.get(handle), handle, self.objects))
            payload = packer.pack(value, "result")
            if packer.modules:
                self.objects.trees.moved()
            graph = self.graphs.leave(packer.noted, packer.views) if packer.noted else None
            numbered = self.graphs.numbered(packer.parameters + packer.noted)
            if graph is not None or numbered:
                payload = structs.replace(payload, graph=graph, numbered=numbered)
        except BaseException:
            self._sent = payload, self.objects.exported()
            self.unsend(payload)
            self.objects.trees.untold(told)
            raise
        self._sent = payload, self.objects.exported()
        return payload

    def _own(self, parameter: torch.nn.Parameter) -> Ref | None:
        """Say a parameter of a module tree that the parent has."""
        place = self.objects.find_parameter(parameter)
        if place is None:
            return None
        handle, path, name = place
        self.objects.export(self.objects.get(handle))  # counts it as sent
        return Ref("parameter", handle, path, name)

    def unsend(self, payload: Payload) -> None:
        """Take back all that a result has along, since it is not sent after all."""
        self.objects.trees.untold(spec.handle for spec in payload.modules)
        if payload.graph is not None:
            self.graphs.unsend(payload.graph)
        if self._sent[0] is payload:
            for handle in self._sent[1]:
                self.objects.release(handle, 1)
        self._sent = Payload(), []
        for block in payload.blocks:
            if self._arena.has(block.segment):  # not a frozen one, which the parent forgets, nor one of weights
                self._arena.release(block.segment, block.offset)

    @contextlib.contextmanager
    def placing(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Give what copies tensors into blocks ahead of time; blocks that are not sent meanwhile are freed."""
        placed: list[int] = []

        def place(tensor: torch.Tensor) -> torch.Tensor:
            if why_not(tensor) is not None or not is_dense(tensor):
                return tensor
            with self._lock:
                block = self._arena.allocate(tensor.numel() * tensor.itemsize)
            segment = self._arena.segment(block.segment)
            placed.append(self._arena.address(block))
            self._arena.placed[placed[-1]] = block
            memory = storage_over(segment.view(block.offset, block.nbytes))
            copy = tensor_over(memory, tensor.dtype, 0, tensor.shape, tensor.stride())
            if tensor.is_conj() or tensor.is_neg():  # its numbers are not what its memory says
                return copy.copy_(tensor)
            copy_all([(placed[-1], tensor.data_ptr(), block.nbytes)])
            return copy

        try:
            yield place
        finally:
            for address in placed:
                block = self._arena.placed.pop(address, None)
                if block is not None:
                    self._arena.release(block.segment, block.offset)

    def leaves(self) -> list[tuple[int, int, torch.Tensor]]:
        """Return all leaves that the parent knows.

        Each is (handle of a tree, place in it, parameter) or (0, number, tensor).
        """
        return [*self.objects.trees.parameters(), *self.graphs.entered()]

    def describe(self, handle: int) -> Payload:
        """Describe the module of that handle as it is now."""
        packer = self._packer(lambda *_: None)
        with self._lock:
            return self._packed(packer, [handle])

    def move(self, tensors: list[Any]) -> None:
        """Move tensors into shared memory for good, under the feet of whoever holds them."""
        self._move(tensors)

    @contextlib.contextmanager
    def building(self) -> Iterator[Nursery]:
        """Give memory for the large tensors of a build, which ends with the body."""
        before = self.nursery  # of a build that waits for a hook in the parent, which has asked for this one
        nursery = self.nursery = Nursery(lambda nbytes: self._need(nbytes, "weights"), self.residents, self._watched)
        try:
            yield nursery
        finally:
            nursery.close()
            self.nursery = before

    def has_input(self, value: Any) -> bool:
        """Return whether a plain tensor in a value lies in memory of an input, which goes back with the answer."""
        places = [leaf.untyped_storage().data_ptr() for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        return any(
            segment.address <= place < segment.address + segment.nbytes
            for segment in self._inbox.values()
            for place in places
        )

    def take_weights(self, numbers: list[int]) -> None:
        """Know that segments which have just come hold weights, of a module that a worker before this one had."""
        for number in numbers:
            self.residents.add(self._inbox.pop(number))

    def method(self, handle: int, path: str, name: str) -> Payload:
        """Say a bound method of an object that the parent has a handle of."""
        return Payload(Ref("method", handle, path, name))

    def _is_astray(self, tensor: Any) -> bool:
        """Return whether a tensor could lie in shared memory and does not."""
        if why_not(tensor) is not None or tensor.device.type != "cpu" or not tensor.numel():
            return False
        storage = tensor.untyped_storage()
        return self.residents.find(storage.data_ptr(), storage.nbytes()) is None

    def _move(self, tensors: Any) -> None:
        room = None if self.nursery is None else self.nursery.room
        weights.move(tensors, self.residents, lambda n: self._new_segment(n, "weights"), self._watched, room)

    def _watched(self, block: Block, view: memoryview) -> None:
        segment = self._inbox.get(block.segment)
        if segment is None:
            self._living[block.segment] += 1
        elif segment.frozen:
            self._common[block.segment, block.offset] = block.nbytes
        self._watch(block, view)

    def _segment(self, number: int) -> Segment | None:
        return self._inbox.get(number) or self.residents.get(number)

    def _new_segment(self, nbytes: int, use: Use) -> Segment:
        granted, fd = self._need(nbytes, use)
        try:
            return Segment(granted.segment, fd, granted.nbytes)
        finally:
            os.close(fd)

    def _handle(self, unpacker: Unpacker, value: Any) -> Any:
        if isinstance(value, Ref):
            found = self.objects.get(value.handle, value.path)
            return getattr(found, value.name) if value.kind in ("method", "parameter") else found
        if isinstance(value, TensorAt):
            return _Unpickler(unpacker, self, bytes_of(unpacker.tensors[value.index])).load()
        return self.objects.records.make(*value)


class _Unpickler(pickle.Unpickler):
    """Reads what the parent pickled; its tensors and handles came beside the pickle."""

    def __init__(self, unpacker: Unpacker, border: Border, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._unpacker = unpacker
        self._border = border

    def persistent_load(self, key: Any) -> Any:
        kind, *rest = key
        if kind in ("tensor", "parameter"):
            return self._unpacker.tensors[rest[0]]
        if kind == "own":
            handle, path, name = rest
            return self._border.objects.get(handle, path)._parameters[name]
        if kind == "method":
            handle, path, name = rest
            return getattr(self._border.objects.get(handle, path), name)
        return self._border.objects.get(*rest)
