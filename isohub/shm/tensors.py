"""Tensors into blocks of shared memory, and out of them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from isohub.errors import RemoteProtocolError
from isohub.shm.arena import Arena, padded
from isohub.shm.copying import copy_all, copy_bytes
from isohub.shm.residents import Residents
from isohub.shm.segment import Segment, write_at
from isohub.wire.specs import (
    ALIGNMENT_BYTES,
    DTYPES,
    META,
    NOWHERE,
    Block,
    TensorSpec,
    check_block,
    check_spec,
)

__all__ = [
    "Residents", "TensorReader", "TensorWriter", "bytes_of", "dtype_named", "is_dense", "name_of_dtype",
    "span_of", "storage_over", "tensor_over", "why_not",
]  # fmt: skip

_NAMES: dict[torch.dtype, str] = {
    getattr(torch, name): name for name in DTYPES if isinstance(getattr(torch, name, None), torch.dtype)
}
_INSIDE = "it is one of torch.func's or vmap's own: have all of that done there, isohub.run_in(model, function, ...)"
_DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in _NAMES.items()}

# A segment that is made, sealed and mapped for one result costs some 60 us, and 0.4 ms a MiB for pages that nobody
# has touched; a copy out of the arena, whose pages are warm, 0.1 ms a MiB. What is smaller than this is copied.
SEALED_FROM_BYTES = 1 << 20
# How often the memory that a payload speaks of may be copied here: once to freeze it, once to make bytes of it.
_MAX_COPIES = 4


def name_of_dtype(dtype: torch.dtype) -> str | None:
    """Return the dtype's name on the wire; None when it cannot cross."""
    return _NAMES.get(dtype)


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        RemoteProtocolError: torch here has no such dtype.
    """
    try:
        return _DTYPES[name]
    except KeyError:
        raise RemoteProtocolError(f"a tensor of dtype {name[:40]!r}, which torch here does not have") from None


def why_not(tensor: torch.Tensor) -> str | None:
    """Return why `tensor` cannot lie in shared memory, or None if it can."""
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}"
    if not (tensor.is_cpu or tensor.is_meta):
        return f"it is on {tensor.device}; call .cpu() first"
    if tensor.dtype not in _NAMES:
        return f"its dtype is {tensor.dtype}"
    if tensor.is_nested:
        return "it is a nested tensor"
    if isinstance(tensor, UninitializedTensorMixin):
        return "it has no shape yet"
    if tensor.is_cpu and tensor.numel() and not _has_memory(tensor):
        return _INSIDE if torch._C._functorch.is_functorch_wrapped_tensor(tensor) else "it has no memory of its own"
    return None


def _has_memory(tensor: torch.Tensor) -> bool:
    """Return whether its elements are there: a fake tensor has none, and a storage may have been resized."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() != 0 and span_of(tensor)[1] <= storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return False


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return a copy of the bytes of a contiguous tensor; without NumPy, which torch does not need either."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.itemsize) if tensor.numel() else b""


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill a piece of memory without holes and overlaps, in whatever order."""
    end = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != end:
                return False
            end *= size
    return tensor.is_cpu and tensor.numel() > 0


def storage_over(view: memoryview) -> torch.UntypedStorage:
    """Return a storage over `view`, which it keeps alive; no copy."""
    return torch.frombuffer(view, dtype=torch.uint8).untyped_storage()


def tensor_over(
    storage: torch.UntypedStorage | None, dtype: torch.dtype, offset: int, shape: Any, stride: Any
) -> torch.Tensor:
    """Return a tensor over `storage` (`offset` in bytes), or an empty one where there is no storage."""
    # torch warns when it makes a complex32 tensor, which `-W error` would turn into a failure; not at a view.
    tensor = torch.empty(0, dtype=torch.int32 if dtype is torch.complex32 else dtype, device="cpu")
    source = tensor.untyped_storage() if storage is None else storage
    tensor = tensor.set_(source, offset // dtype.itemsize, shape, stride)
    return tensor.view(dtype) if tensor.dtype is not dtype else tensor


class TensorWriter:
    """Lays the tensors of one payload into shared memory.

    Tensors are only noted by `add`; `finish` allocates and copies, so that a value that turns out not to
    be sayable has cost nothing.

    Args:
        arena: Where tensors are copied to.
        residents: Where tensors may lie already.
        move: Moves tensors into a segment for good, so that they are found among the residents.
        freeze: Returns the number and the descriptor of a new segment of at least that many bytes, for large tensors;
            whoever reads it will have it sealed, so nobody may map it. None where they go into the arena as well.
    """

    def __init__(
        self,
        arena: Arena,
        residents: Residents,
        move: Callable[[list[torch.Tensor]], None] | None = None,
        freeze: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        self._freeze = freeze
        self._arena = arena
        self._residents = residents
        self._move = move
        self._index: dict[int, int] = {}
        self._tensors: list[torch.Tensor] = []
        self._moving: list[torch.Tensor] = []

    def add(self, tensor: torch.Tensor, *, moving: bool = False) -> int:
        """Note a tensor for which `why_not` is None; the same object gets the same index.

        With `moving`, the tensor itself moves into shared memory instead of being copied there.
        """
        index = self._index.setdefault(id(tensor), len(self._tensors))
        if index == len(self._tensors):
            self._tensors.append(tensor)
        if moving and self._move is not None:
            self._moving.append(tensor)
        return index

    def finish(self, apart: Collection[int] = ()) -> tuple[list[Block], list[TensorSpec]]:
        """Return the blocks and the specs of all noted tensors, in order of their index.

        Args:
            apart: Indices of tensors that are copied by themselves, even where they overlap with others.
        """
        if self._moving and self._move is not None:
            self._move(self._moving)
        blocks: list[Block] = []
        try:
            return blocks, self._laid(blocks, apart)
        except BaseException:
            for block in blocks:
                if self._arena.has(block.segment):  # neither weights nor what is sealed
                    self._arena.release(block.segment, block.offset)
            raise

    def _laid(self, blocks: list[Block], apart: Collection[int]) -> list[TensorSpec]:
        specs: list[TensorSpec | None] = [None] * len(self._tensors)
        # (address of a storage, -1 or the index of a tensor that is copied by itself) -> tensors over it
        shared: dict[tuple[int, int], list[int]] = {}
        for index, tensor in enumerate(self._tensors):
            if tensor.is_conj() or tensor.is_neg():
                # Lazy bits of the view, which bytes alone do not carry.
                self._tensors[index] = tensor.detach().resolve_conj().resolve_neg()
        for index, tensor in enumerate(self._tensors):
            if tensor.is_meta or not tensor.numel():
                specs[index] = _spec(tensor, META if tensor.is_meta else NOWHERE, 0)
                continue
            shared.setdefault((tensor.untyped_storage().data_ptr(), index if index in apart else -1), []).append(index)
        pieces: list[_Piece] = []
        for (address, _), members in shared.items():
            storage = self._tensors[members[0]].untyped_storage()
            block = self._residents.find(address, storage.nbytes()) if self._residents else None
            block = block or self._arena.placed.pop(address, None)
            if block is None:
                pieces += _pieces(address, [(*span_of(self._tensors[index]), index) for index in members])
                continue
            for index in members:
                tensor = self._tensors[index]
                specs[index] = _spec(tensor, len(blocks), int(tensor.storage_offset()) * tensor.itemsize)
            blocks.append(block)
        self._copy(pieces, blocks, specs)
        return specs  # type: ignore[return-value]

    def _copy(self, pieces: list[_Piece], blocks: list[Block], specs: list[TensorSpec | None]) -> None:
        if self._freeze is not None:
            large = [piece for piece in pieces if piece[1] >= SEALED_FROM_BYTES]
            pieces = [piece for piece in pieces if piece[1] < SEALED_FROM_BYTES]
            self._write(large, blocks, specs)
        # At once, so that a payload needs one new segment at most, and a frame few descriptors.
        self._arena.reserve([nbytes for _, nbytes, _ in pieces])
        copies = []
        for address, nbytes, tensors in pieces:
            block = self._arena.allocate(nbytes)
            self._note(block, tensors, blocks, specs)
            copies.append((self._arena.segment(block.segment).address + block.offset, address, nbytes))
        copy_all(copies)

    def _write(self, pieces: list[_Piece], blocks: list[Block], specs: list[TensorSpec | None]) -> None:
        """Write into a segment that will be sealed; never by a mapping, which would be in the seal's way."""
        if not pieces or self._freeze is None:
            return
        number, fd = self._freeze(sum(padded(nbytes) for _, nbytes, _ in pieces))
        try:
            begin = 0
            for address, nbytes, tensors in pieces:
                write_at(fd, begin, address, nbytes)
                self._note(Block(number, begin, nbytes), tensors, blocks, specs)
                begin += padded(nbytes)
        finally:
            os.close(fd)

    def _note(
        self, block: Block, tensors: list[tuple[int, int]], blocks: list[Block], specs: list[TensorSpec | None]
    ) -> None:
        for offset, index in tensors:
            specs[index] = _spec(self._tensors[index], len(blocks), offset)
        blocks.append(block)


# Bytes to copy: their address, how many, and the tensors that lie there, each as (offset, index).
_Piece = tuple[int, int, list[tuple[int, int]]]


def _pieces(address: int, spans: list[tuple[int, int, int]]) -> list[_Piece]:
    """Return what to copy of the storage at `address`.

    Only what tensors span is copied; those that overlap stay views of one storage.

    Args:
        address: Where the storage begins.
        spans: First byte, end, and index of each tensor.
    """
    pieces: list[_Piece] = []
    end = -1
    for begin, stop, index in sorted(spans):
        if begin >= end:
            # So that elements of every size stay aligned as they were.
            start = begin - begin % ALIGNMENT_BYTES
            pieces.append((address + start, 0, []))
            end = stop
        end = max(end, stop)
        where, _, tensors = pieces[-1]
        tensors.append((address + begin - where, index))
        pieces[-1] = (where, address + end - where, tensors)
    return pieces


class TensorReader:
    """Makes tensors of the specs in one payload, zero-copy.

    Args:
        blocks: Pieces of segments.
        specs: Views of the blocks.
        segment_of: Returns the segment of a number, or None where there is none.
        watch: Called with a block and the view that keeps it, for every block that somebody has to give
            back when the last tensor over it died.
        checked: Whether to check the numbers. What the parent sent need not be.
        live: Those tensors that may lie where the other side goes on writing; None if all may. Any other is copied out
            of there, unless its segment is frozen.

    Raises:
        RemoteProtocolError: A number in them makes no sense.
    """

    def __init__(
        self,
        blocks: list[Block],
        specs: list[TensorSpec],
        segment_of: Callable[[int], Segment | None],
        watch: Callable[[Block, memoryview], None],
        *,
        checked: bool = True,
        live: frozenset[int] | None = None,
    ) -> None:
        self._storages: list[torch.UntypedStorage | None] = []
        if checked:
            for spec in specs:
                check_spec(spec, blocks)
        self._moving: set[int] = set()  # blocks that the other side can still write to
        sizes: dict[int, int] = {}
        for block in blocks:
            segment = segment_of(block.segment)
            if segment is None:
                raise RemoteProtocolError(f"a block of segment {block.segment}, which does not exist")
            check_block(block, segment.nbytes)
            sizes[block.segment] = segment.nbytes
            if not block.nbytes:
                self._storages.append(None)
                continue
            if live is not None and not segment.frozen:
                self._moving.add(len(self._storages))
            view = segment.view(block.offset, block.nbytes)
            watch(block, view)
            self._storages.append(storage_over(view))
        self._blocks = blocks
        self._specs = specs
        self._live = live
        self._to_copy_bytes = _MAX_COPIES * sum(sizes.values())
        self._copies: dict[int, torch.UntypedStorage] = {}  # of blocks
        self._frozen: dict[int, torch.Tensor] = {}  # of live tensors
        self._made: dict[int, torch.Tensor] = {}

    def spec(self, index: int) -> TensorSpec:
        """Return the spec of that index.

        Raises:
            RemoteProtocolError: There is none.
        """
        if not 0 <= index < len(self._specs):
            raise RemoteProtocolError(f"tensor {index} of {len(self._specs)}")
        return self._specs[index]

    def put(self, index: int, tensor: torch.Tensor) -> None:
        """Have `tensor` stand for the one of that index from now on."""
        self._made[index] = self._frozen[index] = tensor

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the tensor of that index; the same object each time."""
        if index not in self._made:
            self._made[index] = self._make(index, live=self._live is None or index in self._live)
        return self._made[index]

    def value(self, index: int) -> torch.Tensor:
        """Return the tensor of that index for what is no part of a module tree; the same object each time."""
        if self._live is None or index not in self._live:
            return self[index]
        if index not in self._frozen:
            self._frozen[index] = self._make(index, live=False)
        return self._frozen[index]

    def copying(self, nbytes: int) -> None:
        """Know that `nbytes` bytes are going to be copied out.

        Raises:
            RemoteProtocolError: That would be the same bytes again and again: a short message could fill the memory.
        """
        self._to_copy_bytes -= nbytes
        if self._to_copy_bytes < 0:
            raise RemoteProtocolError("values that are many times as large as the memory that they lie in")

    def _make(self, index: int, *, live: bool) -> torch.Tensor:
        spec = self.spec(index)
        dtype = dtype_named(spec.dtype)
        if spec.block == META:
            return torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device="meta")
        storage = None if spec.block == NOWHERE else self._storages[spec.block]
        if storage is not None and not live and spec.block in self._moving:
            storage = self._copy_of(spec.block, storage)
        return tensor_over(storage, dtype, spec.offset, spec.shape, spec.stride)

    def _copy_of(self, place: int, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if place not in self._copies:
            nbytes = self._blocks[place].nbytes
            self.copying(nbytes)
            copy = torch.empty(nbytes, dtype=torch.uint8, device="cpu").untyped_storage()
            copy_bytes(copy.data_ptr(), storage.data_ptr(), nbytes)
            self._copies[place] = copy
        return self._copies[place]


def _spec(tensor: torch.Tensor, block: int, offset: int) -> TensorSpec:
    return TensorSpec(
        block, _NAMES[tensor.dtype], list(tensor.shape), list(tensor.stride()), offset, tensor.requires_grad
    )


def span_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of the storage that the tensor uses, and the one after its last."""
    first = int(tensor.storage_offset())
    if tensor.is_contiguous():
        return first * tensor.itemsize, (first + tensor.numel()) * tensor.itemsize
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.itemsize, (last + 1) * tensor.itemsize
