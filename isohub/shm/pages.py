"""Pages of memory that is mapped already: mapped again, replaced at the same address, and given back to the system.

Every function that replaces pages keeps the address, so that whatever looks there goes on looking there, and no
moment passes in which nothing is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "PAGE_BYTES", "Replacement", "as_private", "as_shared", "copy", "copy_held", "duplicate", "has_own_pages",
    "is_equal", "look_at", "map_base", "merge", "padded_to_pages", "punch", "replace", "replace_unless", "unmap",
]  # fmt: skip

# A function of the C library, and its arguments.
Replacement = tuple[Callable[..., "int | None"], tuple[Any, ...]]
PAGE_BYTES = mmap.PAGESIZE
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MADV_REMOVE, _MADV_POPULATE_READ = 9, 22
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value
# Pieces in which changed bytes are looked for, so that the masks for it stay small.
_MERGE_BYTES = 1 << 20

# The first lets other threads run meanwhile; the second does not, for what no Python code may come between.
_free = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)
for _libc in (_free, _held):
    _libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    _libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _libc.memcmp.argtypes = _libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
unmap: Callable[[int, int], int] = _free.munmap
copy: Callable[[int, int, int], int] = _free.memcpy
copy_held: Callable[[int, int, int], int] = _held.memcpy


def padded_to_pages(nbytes: int) -> int:
    """Return how many bytes the pages take that hold `nbytes` bytes."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def is_equal(one: int, other: int, nbytes: int) -> bool:
    """Return whether the bytes at two addresses are equal; other threads run meanwhile."""
    return not _free.memcmp(one, other, nbytes)


def duplicate(address: int, nbytes: int) -> int:
    """Map shared memory a second time, without its descriptor, and return where.

    Raises:
        OSError: It cannot be mapped.
    """
    return _checked(_free.mremap(address, 0, nbytes, _MREMAP_MAYMOVE, None))


def map_base(fd: int, nbytes: int) -> int:
    """Map sealed memory to be read, and return where.

    Raises:
        OSError: It cannot be mapped.
    """
    return _checked(_free.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0))


def as_private(address: int, nbytes: int, fd: int, offset: int) -> Replacement:
    """Return what has whole pages at `address` show sealed memory from `offset` on; writes to them stay here."""
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
    return _held.mmap, (address, nbytes, _READ_WRITE, flags, fd, offset)


def as_shared(address: int, nbytes: int, source: int) -> Replacement:
    """Return what has whole pages at `address` be the shared memory that is mapped at `source`."""
    return _held.mremap, (source, 0, nbytes, _MREMAP_MAYMOVE | _MREMAP_FIXED, address)


def replace(replacement: Replacement) -> None:
    """Replace pages.

    Raises:
        OSError: They cannot be replaced; nothing has changed.
    """
    function, args = replacement
    _checked(function(*args))


def replace_unless(written: memoryview, note: int, replacement: Replacement) -> bool:
    """Replace pages unless it is noted that they were written to; return whether they were.

    No other thread of this interpreter runs between the look and the replacement.

    Raises:
        OSError: They cannot be replaced; nothing has changed.
    """
    function, args = replacement
    # Neither a subscript nor a call of C's lets the interpreter change threads before the call.
    if written[note]:
        return False
    address = function(*args)
    _checked(address)
    return True


def look_at(address: int, nbytes: int) -> None:
    """Have whole pages mapped that are there, at once rather than one by one; Linux before 5.14 goes on without."""
    _free.madvise(address, nbytes, _MADV_POPULATE_READ)


def punch(address: int, nbytes: int) -> None:
    """Give the pages of shared memory back to the system: whoever looks at them finds zeros.

    Raises:
        OSError: The system refuses.
    """
    if _free.madvise(address, nbytes, _MADV_REMOVE):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot give back {nbytes} bytes of shared memory: {os.strerror(error)}")


def merge(target: int, changed: int, base: int, nbytes: int) -> None:
    """Write to `target` those bytes at `changed` that differ from those at `base`."""
    import torch

    for start in range(0, nbytes, _MERGE_BYTES):
        length = min(_MERGE_BYTES, nbytes - start)
        if is_equal(changed + start, base + start, length):
            continue
        new, old, here = (
            torch.frombuffer((ctypes.c_uint8 * length).from_address(address + start), dtype=torch.uint8)
            for address in (changed, base, target)
        )
        torch.where(new != old, new, here, out=here)


def has_own_pages(address: int, nbytes: int) -> bool:
    """Return whether a page of a private mapping has been written to, and so is a copy of this process's own.

    Bits 63 and 62 of a page's 64 say that it is in memory or swapped out, bit 61 that it is the mapped file's own, bit
    57 that it is protected from writes (Linux, Documentation/admin-guide/mm/pagemap.rst): one that nobody has looked at
    yet then seems to be swapped out. Where that cannot be read, it may have.
    """
    count = nbytes // PAGE_BYTES
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            found = os.pread(file.fileno(), count * 8, address // PAGE_BYTES * 8)
    except OSError:
        return True
    # The last byte of each has the bits; there are few kinds of it, however many pages there are.
    return len(found) < count * 8 or any(
        not high & 0x20 and (high & 0x80 or high & 0x42 == 0x40) for high in set(found[7::8])
    )


def _checked(address: int | None) -> int:
    if address is None or address == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map shared memory: {os.strerror(error)}")
    return address
