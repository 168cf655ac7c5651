"""Whole values into a payload and out of it: `wire.tree` with torch and NumPy.

What belongs to one side alone (handles, pickles) is left to that side's `other` and `handle`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch

from isohub.errors import RemoteProtocolError
from isohub.shm.arena import Arena
from isohub.shm.overlaps import overlaps
from isohub.shm.tensors import Residents, TensorReader, TensorWriter, bytes_of, dtype_named, name_of_dtype, why_not
from isohub.wire import tree
from isohub.wire.messages import Payload
from isohub.wire.specs import ModuleSpec
from isohub.wire.tree import Where, depth_of
from isohub.wire.values import Items, Ref, Scalar, TensorAt, Value

__all__ = ["Packer", "Unpacker"]

# Longer ones are nonsense, and an expression takes quadratic time for some of them.
_MAX_TYPE_CHARACTERS = 64
_MAX_SHAPE_CHARACTERS = 64 * 20  # sizes of 64 bits, of an array of 64 dimensions
# NumPy types that cross as memory: plain numbers, dates and fixed-width texts; never objects or structures.
_NUMPY_TYPE = re.compile(r"[<>|=]?([?biufcmMSU]\d+)(\[\d*\w+\])?")
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}
_FORMATS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.memory_format)}


class Packer:
    """Says one value.

    Args:
        arena: Where tensors are copied to.
        residents: Where tensors may lie already.
        other: Says what is neither builtin nor of torch or NumPy; called with it and its place.
        move: Moves tensors into shared memory for good.
        moving: Whether every tensor is to be moved rather than copied.
        own: Says a parameter that the other side has as well, in a module tree; None for any other.
        keeps_views: Whether the other side is told which tensors are views of which, as autograd sees it.
        freeze: Makes a segment for large tensors that is sealed when it was written; see `TensorWriter`.

    Attributes:
        noted: (place, tensor) of those that ask for gradients, and of all parameters.
        modules: Module trees that the payload tells of.
        parameters: (place, parameter) of the trees.
        views: By its place, the place of what a tensor that asks for gradients is a view of.
    """

    def __init__(
        self,
        arena: Arena,
        residents: Residents,
        other: Callable[[Packer, Any, Where], Value],
        move: Callable[[list[torch.Tensor]], None] | None,
        own: Callable[[Any], Ref | None],
        *,
        moving: bool = False,
        keeps_views: bool = False,
        freeze: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        self.tensors = TensorWriter(arena, residents, move, freeze)
        self.noted: list[tuple[int, torch.Tensor]] = []
        self._moving = moving
        self.modules: list[ModuleSpec] = []
        self.parameters: list[tuple[int, torch.Tensor]] = []
        self.views: dict[int, int] = {}
        self._keeps_views = keeps_views
        self._other = other
        self._own = own

    def pack(self, value: object, where: Where = "value") -> Payload:
        """Return the payload that says `value`.

        Raises:
            LocalProtocolError: It cannot be said; nothing was allocated.
        """
        said = self.say(value, where)
        apart: Collection[int] = ()
        if len(self.noted) > 1:
            self.views, apart = overlaps(self.noted)
            if not self._keeps_views:
                apart, self.views = apart | self.views.keys(), {}
        blocks, specs = self.tensors.finish(apart)
        return Payload(said, blocks, specs, self.modules)

    def say(self, value: object, where: Where) -> Value:
        """Return the value alone; its tensors are noted."""
        return tree.pack(value, self._leaf, where, depth_of(where))

    def add(self, tensor: torch.Tensor, *, moving: bool = False) -> int:
        """Note a tensor of the value and return its place."""
        index = self.tensors.add(tensor, moving=moving)
        if tensor.requires_grad or isinstance(tensor, torch.nn.Parameter):
            self.noted.append((index, tensor))
        return index

    def bytes(self, data: bytes | bytearray, kind: Literal["bytes", "bytearray", "pickle"]) -> TensorAt:
        """Say `data` as shared memory."""
        # frombuffer warns of read-only memory; nobody writes through this tensor.
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return TensorAt(self.tensors.add(tensor), kind)

    def _leaf(self, value: Any, where: Where) -> Value:
        if isinstance(value, torch.Tensor):
            if why_not(value) is not None:
                return self._other(self, value, where)
            is_parameter = isinstance(value, torch.nn.Parameter)
            own = self._own(value) if is_parameter else None
            if own is not None:
                return own
            index = self.add(value, moving=self._moving)
            return TensorAt(index, "parameter" if is_parameter else "tensor")
        if isinstance(value, torch.dtype):
            return Scalar("dtype", name_of_dtype(value) or str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return Scalar("device", str(value))
        if type(value) is torch.Size:
            return Items("size", [int(size) for size in value])
        if isinstance(value, torch.layout | torch.memory_format):
            return Scalar("layout" if isinstance(value, torch.layout) else "memory_format", str(value))
        if type(value) in (bytes, bytearray):
            return self.bytes(value, "bytes" if type(value) is bytes else "bytearray")
        if type(value).__module__ in ("numpy", "numpy.dtypes"):
            said = self._numpy(value, where)
            if said is not None:
                return said
        return self._other(self, value, where)

    def _numpy(self, value: Any, where: Where) -> Value | None:
        import numpy as np

        if isinstance(value, np.dtype):
            return Scalar("npdtype", value.str) if _NUMPY_TYPE.fullmatch(value.str) else None
        if type(value) is np.ndarray and value.dtype.kind == "O":
            members = [self.say(item, (where, ".flat[{}]", i)) for i, item in enumerate(value.reshape(-1).tolist())]
            return Items("objects", [Items("size", list(value.shape)), *members])
        scalar = isinstance(value, np.generic)
        if not (scalar or type(value) is np.ndarray) or not _NUMPY_TYPE.fullmatch(value.dtype.str):
            return None
        data = np.array(value, order="C")  # a copy, for it may be read-only or run backwards
        detail = f"{data.dtype.str}:{','.join(map(str, data.shape))}"
        raw = torch.from_numpy(data.reshape(-1).view(np.uint8)) if data.nbytes else torch.empty(0, dtype=torch.uint8)
        return TensorAt(self.tensors.add(raw), "npscalar" if scalar else "array", detail)


class Unpacker:
    """Makes the value of one payload.

    Args:
        payload: As it was decoded.
        tensors: Its tensors.
        handle: Makes what is one side's own: a `Ref`, a pickle or a record.
    """

    def __init__(
        self,
        payload: Payload,
        tensors: TensorReader,
        handle: Callable[[Unpacker, Any], Any],
    ) -> None:
        self.payload = payload
        self.tensors = tensors
        self._handle = handle

    def unpack(self) -> Any:
        """Return the value.

        Raises:
            RemoteProtocolError: It says something impossible.
        """
        return tree.unpack(self.payload.value, self._leaf)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, TensorAt):
            return self._tensor(value)
        if isinstance(value, Scalar):
            return _scalar(value)
        if isinstance(value, Items):  # of kind "size"
            if not all(type(item) is int for item in value.items):
                raise RemoteProtocolError("a size that is not of ints")
            return torch.Size(value.items)  # type: ignore[arg-type]
        if isinstance(value, tuple) and isinstance(value[0], Items):
            return _objects(value[1])
        return self._handle(self, value)

    def _tensor(self, value: TensorAt) -> Any:
        if value.kind in ("tensor", "parameter"):
            tensor, asks = self.tensors.value(value.index), self.tensors.spec(value.index).requires_grad
            if value.kind == "parameter" and not isinstance(tensor, torch.nn.Parameter):
                return torch.nn.Parameter(tensor, requires_grad=asks)
            if asks and not tensor.requires_grad and not torch.is_inference_mode_enabled():
                tensor.requires_grad_()
            return tensor
        if value.kind == "pickle":
            return self._handle(self, value)
        raw = self.tensors.value(value.index)
        if raw.dtype is not torch.uint8 or raw.dim() != 1 or not raw.is_contiguous():
            raise RemoteProtocolError(f"{value.kind} in a tensor of {raw.dtype} and {raw.dim()} dimensions")
        if value.kind != "array":
            self.tensors.copying(raw.numel())
        if value.kind in ("bytes", "bytearray"):
            data = bytes_of(raw)
            return data if value.kind == "bytes" else bytearray(data)
        return _array(raw, value)


def _scalar(value: Scalar) -> Any:
    if value.kind == "dtype":
        return dtype_named(value.text)
    if value.kind == "npdtype":
        return _numpy_type(value.text)
    try:
        if value.kind == "layout":
            return _LAYOUTS[value.text]
        return _FORMATS[value.text] if value.kind == "memory_format" else torch.device(value.text)
    except (RuntimeError, KeyError):
        raise RemoteProtocolError(f"a {value.kind} {value.text[:40]!r}") from None


def _numpy_type(text: str) -> Any:
    import numpy as np

    if len(text) > _MAX_TYPE_CHARACTERS or not _NUMPY_TYPE.fullmatch(text):
        raise RemoteProtocolError(f"an array of type {text[:40]!r}")
    try:
        return np.dtype(text)
    except TypeError:
        raise RemoteProtocolError(f"an array of type {text[:40]!r}") from None


def _array(raw: torch.Tensor, value: TensorAt) -> Any:
    dtype_text, _, shape_text = value.detail.partition(":")
    dtype = _numpy_type(dtype_text)
    try:
        # In numbers of a bounded length, before anything is multiplied.
        if len(shape_text) > _MAX_SHAPE_CHARACTERS:
            raise ValueError("more sizes than an array has")
        shape = tuple(int(size) for size in shape_text.split(",") if size)
        count = math.prod(shape)
        if count * dtype.itemsize != raw.numel() or min(shape, default=0) < 0:
            raise ValueError("sizes and bytes differ")
        array = raw.numpy().view(dtype) if raw.numel() else raw.numpy()[:0].astype(dtype)
        array = array.reshape(shape)
    except ValueError as error:
        raise RemoteProtocolError(f"an array of {value.detail[:80]!r}: {error}") from None
    return array[()] if value.kind == "npscalar" else array


def _objects(members: list[Any]) -> Any:
    import numpy as np

    if not members or not isinstance(members[0], torch.Size) or members[0].numel() != len(members) - 1:
        raise RemoteProtocolError("an array of objects that does not have its shape")
    array: Any = np.empty(tuple(members[0]), dtype=object)
    flat = array.reshape(-1)
    for index, member in enumerate(members[1:]):
        flat[index] = member  # one by one: NumPy would take a list of lists for more dimensions
    return array
