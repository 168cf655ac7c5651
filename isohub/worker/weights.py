"""Weights into shared memory for good, under the feet of the module that holds them."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable

import torch

from isohub.shm.copying import copy_all
from isohub.shm.pages import PAGE_BYTES
from isohub.shm.segment import Segment
from isohub.shm.tensors import Residents, storage_over, tensor_over, why_not
from isohub.wire.specs import ALIGNMENT_BYTES, PAGED_BYTES, Block

__all__ = ["give_back", "keep_for_later", "move", "repoint"]

# glibc's own; other C libraries have none.
_libc = ctypes.CDLL(None)
_trim, _mallopt = getattr(_libc, "malloc_trim", None), getattr(_libc, "mallopt", None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# What glibc comes to by itself in a program that has freed large blocks. Elsewhere a step of training took 13,000 new
# pages from the system and gave them back again, a sixth of its time.
_OWN_PAGES_FROM_BYTES = 32 << 20
_FREE_BYTES = 64 << 20

# Note [whole storages move]
# A storage moves as one: its bytes are copied once, and every tensor that looked into the old one is
# pointed to the same place of the new one. So ties, views, strides and holes stay as they were. Tensors
# that no module registers (a list of heads, a cached transposed view) may share the storage as well;
# they are found among the objects that the collector knows. The forkserver froze its own, so that only
# what the repository made is looked at.


def move(
    tensors: list[torch.Tensor],
    residents: Residents,
    new_segment: Callable[[int], Segment],
    watch: Callable[[Block, memoryview], None],
    room: Callable[[list[int]], list[tuple[Segment, int] | None]] | None = None,
) -> None:
    """Move the storages of `tensors` into shared memory; see Note [whole storages move].

    Args:
        tensors: What lies in shared memory already, or cannot lie there, is left alone.
        residents: Where the new segment is added.
        new_segment: Returns a segment of at least that many bytes.
        watch: Called with each block and the view that keeps it.
        room: Returns places for storages of these sizes in segments that are there, None for each that has none; what
            has none goes into one new segment.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        if why_not(tensor) is None and tensor.device.type == "cpu" and tensor.numel():
            storage = tensor.untyped_storage()
            if residents.find(storage.data_ptr(), storage.nbytes()) is None:
                storages[storage.data_ptr()] = storage
    if not storages:
        return
    over: dict[int, list[torch.Tensor]] = {}
    for tensor in _everything_over(tensors, storages):
        over.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    # Large ones first: each begins with a page.
    addresses = sorted(storages, key=lambda address: storages[address].nbytes() < PAGED_BYTES)
    sizes = [storages[address].nbytes() for address in addresses]
    places = _places(sizes, residents, new_segment, room)
    for address, nbytes, (segment, offset) in zip(addresses, sizes, places, strict=True):
        view = segment.view(offset, nbytes)
        watch(Block(segment.number, offset, nbytes), view)
        storage = storage_over(view)
        copy_all([(storage.data_ptr(), address, nbytes)])
        for tensor in over.pop(address):
            _point(tensor, storage)
        # The old one ends here, before the next is copied: it takes no more memory than is there already.
        del storages[address]
    give_back()


def repoint(tensors: list[torch.Tensor], storages: dict[int, torch.UntypedStorage]) -> None:
    """Point tensors to the same places of other storages; see Note [whole storages move].

    Args:
        tensors: Some of them; others that look into the same storages are found.
        storages: The new ones, by the address of the old one.
    """
    for tensor in _everything_over(tensors, storages) if storages else ():
        _point(tensor, storages[tensor.untyped_storage().data_ptr()])


def keep_for_later() -> None:
    """Have the C library keep memory that was freed for what comes next: so much of it, and blocks up to that size."""
    if _mallopt is not None:
        _mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES)
        _mallopt(_M_TRIM_THRESHOLD, _FREE_BYTES)


def give_back() -> None:
    """Give the system back the memory that is free in this process: the C library keeps much of it for later."""
    if _trim is not None:
        _trim(0)


def _places(
    sizes: list[int],
    residents: Residents,
    new_segment: Callable[[int], Segment],
    room: Callable[[list[int]], list[tuple[Segment, int] | None]] | None,
) -> list[tuple[Segment, int]]:
    """Return a place for each storage; those that begin with a page come first."""
    paged = [size for size in sizes if size >= PAGED_BYTES]
    small = list(map(_padded, sizes[len(paged) :]))
    wanted = [*paged, sum(small)] if small else paged
    places = [None] * len(wanted) if room is None else room(wanted)
    needed = sum(_padded(size) for size, place in zip(wanted, places, strict=True) if place is None)
    if needed:
        segment = new_segment(needed)
        residents.add(segment)
    begin = 0
    found: list[tuple[Segment, int]] = []
    for size, place in zip(wanted, places, strict=True):
        found.append((segment, begin) if place is None else place)
        begin += _padded(size) if place is None else 0
    if small:
        segment, begin = found.pop()
        found += zip([segment] * len(small), itertools.accumulate(small[:-1], initial=begin), strict=True)
    return found


def _everything_over(tensors: list[torch.Tensor], storages: dict[int, torch.UntypedStorage]) -> list[torch.Tensor]:
    """Return the tensors that look into one of `storages`: the given ones, and others that Python holds."""
    found = {id(tensor): tensor for tensor in tensors}
    for thing in gc.get_objects():
        # `type`, not isinstance: that would ask a lazy proxy for its class and wake it.
        if issubclass(type(thing), torch.Tensor):
            found.setdefault(id(thing), thing)
    return [tensor for tensor in found.values() if _looks_into(tensor, storages)]


def _looks_into(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> bool:
    try:
        return (
            why_not(tensor) is None and tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in storages
        )
    except (RuntimeError, NotImplementedError):  # a tensor without storage
        return False


def _point(tensor: torch.Tensor, storage: torch.UntypedStorage) -> None:
    offset = int(tensor.storage_offset()) * tensor.itemsize
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.data = tensor_over(storage, tensor.dtype, offset, tensor.shape, tensor.stride())


def _padded(nbytes: int) -> int:
    alignment = PAGE_BYTES if nbytes >= PAGED_BYTES else ALIGNMENT_BYTES
    return -(-nbytes // alignment) * alignment
