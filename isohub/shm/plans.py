"""Call plans: what can be done once for all calls of one form.

Most calls have the arguments and results of the call before but for the numbers in the tensors: the same
containers, shapes and dtypes. For those the value is said, written, read and checked once; each further call finds
the plan, copies the tensors and names their blocks::

    (tensor,), {}  ── key ──> Written: form (text), sizes   ── blocks, form ──>   Read: dtypes, shapes, maker
                              kept by who sends                                  kept by who receives, by the text

Only what is plain has a plan: contiguous tensors in memory of their own that ask for no gradients, in tuples, lists and
dicts, with None, True, False, numbers and short texts. Everything else goes the long way, which is always right, as
does the first value of each form: a number that is another one in each call makes another form of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from isohub.shm.arena import Arena
from isohub.shm.copying import copy_all
from isohub.shm.residents import Residents
from isohub.shm.segment import Segment
from isohub.wire import codec, tree
from isohub.wire.messages import Form, Payload
from isohub.wire.specs import DTYPES, Block, TensorSpec, check_block
from isohub.wire.values import Items, Pairs, TensorAt, Value

__all__ = ["MISSING", "Plans"]

# What `Plans.read` returns where there is no plan.
MISSING: Any = object()

# A model that is called in more ways than these begins anew: forgetting is cheap, growing without end is not.
MAX_PLANS = 128
MAX_FORM_CHARACTERS = 1 << 16
_MAX_DEPTH = 8
_MAX_TEXT = 64
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_Tensor = torch.Tensor
_from_memory = torch.frombuffer
_SEEN: Any = object()  # in the place of a plan: made when the form comes again
_MAX_INT = 1 << 53


class _Written(NamedTuple):
    form: str
    sizes: list[int]  # of the tensors, in bytes


class _Read(NamedTuple):
    tensors: list[tuple[torch.dtype, torch.Size, int]]  # dtype, shape, bytes
    make: Callable[[Iterator[torch.Tensor]], Any]


class _NoPlanError(Exception):
    """A value is not plain."""


class Plans:
    """The plans of one side of one border, in both directions."""

    def __init__(self) -> None:
        self._written: dict[Any, Any] = {}  # `_Written`, `_SEEN`, or None for what can have none
        self._read: dict[str, _Read] = {}

    def write(self, value: Any, arena: Arena, residents: Residents) -> Payload | None:
        """Return the payload that says `value`, its tensors copied; None where it has no plan.

        Args:
            value: Anything.
            arena: Where tensors are copied to.
            residents: Where tensors may lie already, which are not copied.
        """
        tensors: list[torch.Tensor] = []
        try:
            key = _key(value, tensors, 0)
            written = self._written.get(key, MISSING)
            if written is MISSING:
                _remember(self._written, key, _SEEN)
                return None
            if written is _SEEN:
                written = self._plan(key, value, tensors)
            if written is None:
                return None
            sources = _sources(tensors, written.sizes, residents)
        except (_NoPlanError, RuntimeError, NotImplementedError):  # of tensors without strides or memory
            return None
        if sources is None:
            return None
        blocks: list[Block] = []
        copies: list[tuple[int, int, int]] = []
        placed = arena.placed
        try:
            if not placed:
                blocks = arena.allocate_all(written.sizes)
                copies = [
                    (arena.address(block), source, block.nbytes) for block, source in zip(blocks, sources, strict=True)
                ]
            else:
                pairs = list(zip(sources, written.sizes, strict=True))
                arena.reserve([n for address, n in pairs if address not in placed or placed[address].nbytes != n])
                for address, nbytes in pairs:
                    if address in placed and placed[address].nbytes == nbytes:
                        blocks.append(placed.pop(address))
                        continue
                    blocks.append(arena.allocate(nbytes))
                    copies.append((arena.address(blocks[-1]), address, nbytes))
            copy_all(copies)
        except BaseException:
            for block in blocks:
                if arena.has(block.segment):
                    arena.release(block.segment, block.offset)
            raise
        return Payload(None, blocks, [], [], [], None, written.form)

    def read(
        self,
        payload: Payload,
        segment_of: Callable[[int], Segment | None],
        watch: Callable[[Block, memoryview], None],
    ) -> Any:
        """Return the value of a payload, whose tensors lie in its blocks; `MISSING` where there is no plan.

        Args:
            payload: It has a form.
            segment_of: Returns the segment of a number, or None where there is none.
            watch: As for `TensorReader`.

        Raises:
            RemoteProtocolError: A block does not lie in its segment.
        """
        plan = self._read.get(payload.form)
        blocks = payload.blocks
        if plan is None or len(blocks) != len(plan.tensors):
            return MISSING
        found = []
        for block, (_, _, nbytes) in zip(blocks, plan.tensors, strict=True):
            segment = segment_of(block.segment)
            if segment is None or block.nbytes != nbytes:
                return MISSING  # the long way knows what to do about it
            check_block(block, segment.nbytes)
            found.append(segment.view(block.offset, nbytes))
        tensors = []
        for block, view, (dtype, shape, _) in zip(blocks, found, plan.tensors, strict=True):
            watch(block, view)
            tensor = _from_memory(view, dtype=dtype)
            # The shape alone changes, so that it is no view of something else, as `view` would make it.
            tensors.append(tensor if len(shape) == 1 else tensor.resize_(shape))
        return plan.make(iter(tensors))

    def learn(self, form: str, payload: Payload) -> None:
        """Make a plan of a payload that was read the long way, and so has passed all checks.

        Args:
            form: Its form.
            payload: The same with the value and the tensors that the form tells of.
        """
        if len(form) > MAX_FORM_CHARACTERS or payload.modules or payload.numbered or payload.graph is not None:
            return
        tensors: list[tuple[torch.dtype, torch.Size, int]] = []
        for index, spec in enumerate(payload.tensors):
            dtype, nbytes, step = _DTYPES.get(spec.dtype), DTYPES[spec.dtype], 1
            for size, stride in zip(reversed(spec.shape), reversed(spec.stride), strict=True):
                if size < 1 or stride != step:
                    return
                step *= size
            if dtype is None or spec.block != index or spec.offset or spec.requires_grad:
                return
            tensors.append((dtype, torch.Size(spec.shape), nbytes * step))
        order: list[int] = []
        try:
            make = _maker(payload.value, order)
        except _NoPlanError:
            return
        if order == list(range(len(tensors))):
            _remember(self._read, form, _Read(tensors, make))

    def _plan(self, key: Any, value: Any, tensors: list[torch.Tensor]) -> _Written | None:
        specs = []
        for index, tensor in enumerate(tensors):
            shape, stride = list(tensor.shape), list(tensor.stride())
            # What has one element along an axis may have any stride there, by which torch chooses a memory format.
            if tensor.dtype not in _NAMES or not tensor.numel() or stride != _strides_of(shape):
                break
            specs.append(TensorSpec(index, _NAMES[tensor.dtype], shape, stride, 0))
        written = None
        if len(specs) == len(tensors):
            places = iter(range(len(tensors)))
            said = tree.pack(value, lambda *_: TensorAt(next(places), "tensor"))
            form = codec.encode_form(Form(said, specs))
            if len(form) <= MAX_FORM_CHARACTERS:
                written = _Written(form, [tensor.numel() * tensor.itemsize for tensor in tensors])
        _remember(self._written, key, written)
        return written


def _remember(plans: dict[Any, Any], key: Any, plan: object) -> None:
    if len(plans) >= MAX_PLANS:
        plans.clear()
    plans[key] = plan


def _key(value: Any, tensors: list[torch.Tensor], depth: int) -> Any:
    """Return what all values of one form have in common, and note the tensors in the order of the value.

    Raises:
        _NoPlanError: The value is not plain.
    """
    kind = type(value)
    if kind is _Tensor:
        # Complex ones have no plan, and those of other layouts have no strides or no storage, which torch tells.
        if value.requires_grad or not value.is_cpu or value.is_neg():
            raise _NoPlanError
        tensors.append(value)
        return value.dtype, value.shape, value.stride()
    if value is None or kind is bool or (kind is str and len(value) <= _MAX_TEXT):
        return value
    if kind is tuple or kind is list:
        members: Any = value
        keys: Any = kind
    elif kind is dict:
        members, keys = value.values(), tuple(value)
        for key in keys:
            if type(key) is not str or len(key) > _MAX_TEXT:
                raise _NoPlanError
    elif (kind is int and -_MAX_INT < value < _MAX_INT) or (kind is float and value - value == 0.0):  # finite
        return kind, repr(value)  # not the number: True == 1 == 1.0, and 0.0 == -0.0
    else:
        raise _NoPlanError
    if depth == _MAX_DEPTH:
        raise _NoPlanError
    depth += 1
    return keys, *[_key(member, tensors, depth) for member in members]


def _sources(tensors: list[torch.Tensor], sizes: list[int], residents: Residents) -> list[int] | None:
    """Return the addresses of tensors that lie in memory of their own, each apart from the others; else None."""
    addresses, storages = [], []
    for tensor, nbytes in zip(tensors, sizes, strict=True):
        storage = tensor.untyped_storage()
        begin, address = storage.data_ptr(), tensor.data_ptr()
        # A storage can be resized under its tensor.
        if not begin or address + nbytes > begin + storage.nbytes() or residents.span_has(begin):
            return None
        storages.append(begin)
        addresses.append(address)
    return addresses if len(storages) == 1 or len(set(storages)) == len(storages) else None


def _strides_of(shape: list[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


def _maker(value: Value, order: list[int]) -> Callable[[Iterator[torch.Tensor]], Any]:
    """Return what makes a value of its tensors, which it takes one after the other.

    Args:
        value: As it was decoded.
        order: Takes the places of the tensors.

    Raises:
        _NoPlanError: There is something else in it.
    """
    if isinstance(value, TensorAt) and value.kind == "tensor":
        order.append(value.index)
        return next
    if isinstance(value, Items) and value.kind in ("tuple", "list"):
        members = [_maker(member, order) for member in value.items]
        if value.kind == "list":
            return lambda tensors: [make(tensors) for make in members]
        return lambda tensors: tuple([make(tensors) for make in members])
    if isinstance(value, Pairs) and value.kind == "dict" and all(type(key) is str for key in value.keys):
        keys, items = list(value.keys), [_maker(member, order) for member in value.items]
        return lambda tensors: {key: make(tensors) for key, make in zip(keys, items, strict=True)}
    if value is None or isinstance(value, bool | str | int | float):
        return lambda _: value
    raise _NoPlanError
