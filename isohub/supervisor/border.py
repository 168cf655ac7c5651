"""The parent's side of the border of one worker: arguments out, results in."""

from __future__ import annotations

import os
from typing import Any

import torch

from isohub.errors import IsohubError, LocalProtocolError, RemoteProtocolError
from isohub.shm.arena import Arena
from isohub.shm.plans import MISSING, Plans
from isohub.shm.segment import KeptSegments, Segment, create_memfd
from isohub.shm.tensors import Residents, TensorReader, why_not
from isohub.shm.values import Packer, Unpacker
from isohub.shm.watch import Watch
from isohub.supervisor.arguments import pickle_argument
from isohub.supervisor.frozen import MAX_LIVING, FrozenSegments
from isohub.supervisor.lending import CommonInputs, Lent
from isohub.supervisor.proxies import Proxies
from isohub.wire import codec, structs
from isohub.wire.framing import MAX_MESSAGE_BYTES
from isohub.wire.messages import (
    Granted,
    NeedSegment,
    Payload,
    Request,
    TorchState,
    Verb,
)
from isohub.wire.specs import Block, places_of
from isohub.wire.tree import Where, shown
from isohub.wire.values import Items, Pairs, Record, Ref, TensorAt, Value

__all__ = ["Border"]

# A worker may hold one segment for each time that it moved weights; a hostile one may ask for ever.
MAX_SEGMENTS = 4096


class Border:
    """What this process has in common with one worker: segments, blocks and handles.

    The parent makes every segment and owns its descriptor until the worker has it.

    Args:
        frozen: Whether results are to be where the worker cannot change them any more.
        memory_bytes: Shared memory that the worker may ask for; None for no limit but the machine's.
        kept: Where segments of weights are kept for a worker that takes the place of this one; None for none.
        common: Inputs that go to several workers at once.
    """

    def __init__(
        self,
        *,
        frozen: bool = False,
        memory_bytes: int | None = None,
        kept: KeptSegments | None = None,
        common: CommonInputs | None = None,
    ) -> None:
        self._common = CommonInputs() if common is None else common
        self._lent = Lent(self._common, self._bring)
        self._frozen = FrozenSegments() if frozen else None
        self.proxies: Proxies
        self._kept = kept
        self.residents = Residents()
        self._arena = Arena(self._grow)
        self._outbox: dict[int, Segment] = {}  # arena of the worker's results
        self._watch = Watch()
        self._plans = Plans()
        self._next = 1
        self._pending: list[tuple[int, int, int]] = []  # (number, nbytes, fd) that the worker lacks
        self._total_bytes = 0
        self._granted_bytes = 0  # of these, what the worker asked for
        self._memory_bytes = memory_bytes
        self._limit_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @property
    def handles(self) -> int:
        """How many of the worker's objects are held here."""
        return self.proxies.held() if hasattr(self, "proxies") else 0

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
        """Say the arguments of a request.

        Raises:
            LocalProtocolError: One of them cannot be said; nothing was allocated.
        """
        if not args and not kwargs:
            return _NO_ARGUMENTS
        if self._common:
            with self._lent.placed(self._arena.placed):
                return self._plans.write((args, kwargs), self._arena, self.residents) or self._pack(args, kwargs)
        return self._plans.write((args, kwargs), self._arena, self.residents) or self._pack(args, kwargs)

    def _pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
        packer = Packer(self._arena, self.residents, self._other, None, self.proxies.ref_of)
        payload = packer.pack((args, kwargs), "arguments")
        return structs.replace(payload, numbered=self.proxies.numbered(packer.noted)) if packer.noted else payload

    def say(self, verb: Verb, payload: Payload, state: TorchState, fields: dict[str, Any]) -> tuple[bytes, list[int]]:
        """Return a request as bytes, and the descriptors that go with it.

        Raises:
            LocalProtocolError: It is too long; all that it had along is taken back.
        """
        request = self.request(verb, payload, state, fields)
        pending = self._pending
        try:
            message = codec.encode(request)
            if len(message) > MAX_MESSAGE_BYTES:
                raise LocalProtocolError(
                    f"arguments of {len(message)} bytes are over the limit of {MAX_MESSAGE_BYTES} for one message: "
                    "pass large data as tensors, arrays or bytes, which go through shared memory"
                )
        except BaseException:
            self.unsend(request)
            raise
        return message, [fd for *_, fd in pending] if pending else []

    def unsend(self, request: Request) -> None:
        """Take back all that a request had along, since it is not sent."""
        for block in request.payload.blocks:
            if self._lent.has(block.segment):
                self._lent.give_back(block.segment, block.offset)
            elif self.residents.get(block.segment) is None:
                self._arena.release(block.segment, block.offset)
        self._watch.put_back(request.freed)
        self.proxies.put_back(request.released)

    def unpack(self, payload: Payload) -> Any:
        """Return the value of an answer.

        Raises:
            RemoteProtocolError: It makes no sense.
        """
        if payload.form:
            if self._frozen is None:
                value = self._plans.read(payload, self._outbox.get, self._watch)
                if value is not MISSING:
                    return value
            form, payload = payload.form, codec.whole(payload)
            with self.proxies.making():
                value = self._unpack(payload)
            self._plans.learn(form, payload)
            return value
        with self.proxies.making():
            return self._unpack(payload)

    def _unpack(self, payload: Payload) -> Any:
        try:
            live = None if self._frozen is None else _places_in_trees(payload)
            tensors = TensorReader(payload.blocks, payload.tensors, self._segment, self._watched, live=live)
            numbered = {one.tensor: one.number for one in payload.numbered}
            for spec in payload.modules:
                self.proxies.module_tree(spec, tensors, numbered)
            self.proxies.own_tensors(payload.numbered, tensors)
            if payload.graph is not None:
                if not numbered.keys().isdisjoint(payload.graph.outputs):
                    raise RemoteProtocolError("a graph that computed a tensor which this program has sent")
                self.proxies.graph(payload.graph, tensors)
            return Unpacker(payload, tensors, self._handle).unpack()
        except IsohubError:
            raise
        except Exception as error:
            # Something that every check let through and torch or Python then refused.
            raise RemoteProtocolError(f"an answer that says nothing: {type(error).__name__}: {error}") from error
        finally:
            if self._frozen is not None:
                self._frozen.read()

    def settled(self) -> None:
        """Know that an exchange is over, with all that was asked within it."""
        self.proxies.settled()
        if self._frozen is not None:
            self._frozen.settled()

    def request(self, verb: Verb, payload: Payload, state: TorchState, fields: dict[str, Any]) -> Request:
        """Return a request, with all that goes along: new segments, and what nobody here holds any more."""
        pending = self._pending
        return Request(
            verb=verb,
            payload=payload,
            state=state,
            # Releases are sent beside the caller's threads, which may be in the middle of a change.
            changes=self.proxies.changes(live=verb != "release"),
            freed=self._watch.take(),
            released=self.proxies.released(),
            segments=[(number, nbytes) for number, nbytes, _ in pending] if pending else [],
            common=[number for number, *_ in pending if self._lent.has(number)] if pending else [],
            **fields,
        )

    def sent(self) -> None:
        """Know that the request is on its way, and close the descriptors of new segments: the worker has its own."""
        self.proxies.changes_told()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        while self._pending:
            os.close(self._pending.pop()[2])

    def settle(self, freed: list[tuple[int, int]], dropped: list[int]) -> None:
        """Take in what an answer gives back.

        Raises:
            RemoteProtocolError: It gives back what it does not have.
        """
        for segment, offset in freed:
            try:
                if self._lent.has(segment):
                    self._lent.give_back(segment, offset)
                else:
                    self._arena.release(segment, offset)
            except KeyError:
                raise RemoteProtocolError(f"a block {segment}:{offset} given back that was not given") from None
        for number in dropped:
            segment_dropped = self.residents.get(number)
            if segment_dropped is None:
                raise RemoteProtocolError(f"segment {number} dropped, which does not exist")
            self._total_bytes -= segment_dropped.nbytes
            self._granted_bytes -= segment_dropped.nbytes
            self.residents.remove(number)

    def grant(self, need: NeedSegment) -> tuple[Granted, int]:
        """Make the segment that the worker asks for; return the grant and a descriptor, -1 if refused.

        The descriptor is the caller's to close.

        Raises:
            RemoteProtocolError: The request makes no sense.
        """
        if not 0 < need.nbytes < 1 << 62:
            raise RemoteProtocolError(f"a request for a segment of {need.nbytes} bytes")
        if need.use == "frozen" and self._frozen is None:
            raise RemoteProtocolError("a request for a segment of frozen results, which nobody asked for")
        if self._frozen is not None:
            gone_bytes = self._frozen.take_gone()
            self._total_bytes -= gone_bytes
            self._granted_bytes -= gone_bytes
        if self._total_bytes + need.nbytes > self._limit_bytes:
            return Granted(0, 0, f"{need.nbytes} more would be over this machine's memory"), -1
        if self._memory_bytes is not None and self._granted_bytes + need.nbytes > self._memory_bytes:
            limit = f"Isolation(memory_bytes={self._memory_bytes})"
            return Granted(0, 0, f"{self._granted_bytes} are in use, and {need.nbytes} more would be over {limit}"), -1
        waiting = 0 if self._frozen is None else len(self._frozen)
        if len(self._outbox) + len(self.residents) + waiting >= MAX_SEGMENTS:
            return Granted(0, 0, f"there are {MAX_SEGMENTS} segments already"), -1
        if need.use == "frozen" and self._frozen is not None:
            return self._grant_frozen(self._frozen, need.nbytes)
        try:
            segment, fd = self._create(need.nbytes)
            if self._kept is not None and need.use == "weights":
                self._keep(segment, fd)
        except OSError as error:
            return Granted(0, 0, str(error)), -1
        self._granted_bytes += need.nbytes
        if need.use == "arena":
            self._outbox[segment.number] = segment
        else:
            self.residents.add(segment)
        return Granted(segment.number, segment.nbytes), fd

    def _grant_frozen(self, frozen: FrozenSegments, nbytes: int) -> tuple[Granted, int]:
        if frozen.full:
            return Granted(0, 0, f"this program holds {MAX_LIVING} frozen results already"), -1
        try:
            fd = frozen.grant(self._next, nbytes)
        except OSError as error:
            return Granted(0, 0, str(error)), -1
        number, self._next = self._next, self._next + 1
        self._total_bytes += nbytes
        self._granted_bytes += nbytes
        return Granted(number, nbytes), fd

    def give(self, tensors: list[torch.Tensor], limit: int) -> list[int]:
        """Have the next request bring segments of weights that a worker before this one had.

        Args:
            tensors: Which are to be found there.
            limit: How many segments at most.

        Returns:
            The numbers of the segments; none are left to be given when there are none.

        Raises:
            LocalProtocolError: A tensor lies nowhere that is kept.
        """
        given: list[int] = []
        for storage in (tensor.untyped_storage() for tensor in tensors if tensor.is_cpu and tensor.numel()):
            if len(given) == limit:
                break
            if self.residents.find(storage.data_ptr(), storage.nbytes()) is not None:
                continue
            found = None if self._kept is None else self._kept.find(storage.data_ptr())
            if found is None:
                raise LocalProtocolError("a tensor of a module that does not lie in its worker's memory")
            memory, nbytes, fd = found
            self._pending.append((self._next, nbytes, os.dup(fd)))
            self.residents.add(Segment.over(self._next, memory, nbytes))
            given.append(self._next)
            self._next += 1
            self._total_bytes += nbytes
        return given

    def close(self) -> None:
        """Let go of every segment; tensors that lie there keep what they need."""
        self._close_descriptors()
        self._lent.close()
        if hasattr(self, "proxies"):
            self.settled()
        self._arena = Arena(self._grow)
        self._outbox.clear()
        self.residents = Residents()

    def _create(self, nbytes: int) -> tuple[Segment, int]:
        fd = create_memfd(nbytes)
        try:
            segment = Segment(self._next, fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._next += 1
        self._total_bytes += nbytes
        return segment, fd

    def _keep(self, segment: Segment, fd: int) -> None:
        assert self._kept is not None, "asked for by whoever has it"
        try:
            self._kept.keep(segment, fd)
        except BaseException:
            os.close(fd)
            self._total_bytes -= segment.nbytes
            raise

    def _bring(self, nbytes: int, fd: int) -> int:
        """Have the next request bring a segment that is not this worker's alone; return its number."""
        number, self._next = self._next, self._next + 1
        self._pending.append((number, nbytes, fd))
        return number

    def _grow(self, nbytes: int) -> Segment:
        segment, fd = self._create(nbytes)
        self._pending.append((segment.number, nbytes, fd))
        return segment

    def _segment(self, number: int) -> Segment | None:
        found = self._outbox.get(number) or self.residents.get(number)
        return found if found is not None or self._frozen is None else self._frozen.get(number)

    def _watched(self, block: Block, view: memoryview) -> None:
        if block.segment in self._outbox:
            self._watch(block, view)

    def _other(self, packer: Packer, value: object, where: Where) -> Value:
        ref = self.proxies.ref_of(value)
        if ref is not None:
            return ref
        parts = self.proxies.parts(value)
        if parts is not None:
            record, members = parts
            said = [packer.say(member, (where, ".{}", key)) for key, member in zip(record.keys, members, strict=True)]
            return Record(record.kind, record.type_name, record.keys, said)
        if isinstance(value, torch.Tensor):
            reason = why_not(value)
            by_pickle = value.layout is not torch.strided or value.is_nested or value.is_quantized
            if reason is not None and not (by_pickle and value.is_cpu):
                raise LocalProtocolError(
                    f"{shown(where)}: this tensor cannot go to a worker: {reason}", where=shown(where)
                )
        return pickle_argument(packer, value, shown(where), self.proxies.ref_of)

    def _handle(self, _: Unpacker, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.proxies.proxy(value)
        if isinstance(value, TensorAt):
            raise RemoteProtocolError("a pickle, which this process never reads")
        return self.proxies.record(*value)


def _places_in_trees(payload: Payload) -> frozenset[int]:
    """Return the places of tensors that a module tree has: its weights, which parent and worker share."""
    places = {place for spec in payload.modules for place in places_of(spec.nodes)}
    return frozenset(places.difference(payload.graph.outputs if payload.graph is not None else ()))


_NO_ARGUMENTS = Payload(Items("tuple", [Items("tuple", []), Pairs("dict", [], [])]))
