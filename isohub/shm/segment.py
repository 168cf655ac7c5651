"""One sealed piece of shared memory.

The parent makes every segment as a memfd, seals it against shrinking and growing before anybody else
has it, and hands the descriptor to the worker. Nothing of it has a name in a file system, so a killed
program leaves nothing behind, and a worker cannot cut it short under the parent's feet (which would
end the parent by SIGBUS).

A segment for frozen results is sealed against writing too, once the worker has written it and before the
parent looks. The kernel grants that seal only where no writable mapping of the memory is left in any process,
and refuses every write and every hole from then on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from isohub.shm import pages

__all__ = ["KeptSegments", "Segment", "create_memfd", "seal", "write_at"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.pwrite.restype = ctypes.c_ssize_t
_libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
_MAP_FAILED = ctypes.c_void_p(-1).value

# fcntl has these names only from Python 3.12 or 3.13 on, by platform; the numbers are Linux's ABI.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE = 0x1, 0x2, 0x4, 0x8
_FROZEN = _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_WRITE
# Python's mmap has the name only on some platforms. A private mapping is written to page by page, if at all: the
# system need not promise memory for all of it.
_MAP_NORESERVE = 0x4000


def create_memfd(nbytes: int, *, to_be_frozen: bool = False) -> int:
    """Return the descriptor of new shared memory of `nbytes` bytes that nobody can resize.

    Args:
        nbytes: Its size.
        to_be_frozen: Whether `seal` will seal it against writing; else nobody can add a seal.

    Raises:
        OSError: The system gives no descriptor or no such size.
    """
    fd = os.memfd_create("isohub", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        seals = _F_SEAL_SHRINK | _F_SEAL_GROW
        fcntl.fcntl(fd, _F_ADD_SEALS, seals if to_be_frozen else seals | _F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Seal shared memory for good: nobody can write to it, resize it, or make a hole in it.

    Raises:
        OSError: Somebody has it mapped and could write to it, or has sealed it against further seals.
    """
    if fcntl.fcntl(fd, _F_GET_SEALS) & _FROZEN != _FROZEN:
        fcntl.fcntl(fd, _F_ADD_SEALS, _FROZEN)
    if fcntl.fcntl(fd, _F_GET_SEALS) & _FROZEN != _FROZEN:
        raise OSError(errno.EPERM, "the memory could not be sealed")


def write_at(fd: int, offset: int, address: int, nbytes: int) -> None:
    """Write `nbytes` bytes that lie at `address` into shared memory, without mapping it.

    Raises:
        OSError: It is sealed, or there is no memory left.
    """
    while nbytes:
        written = _libc.pwrite(fd, address, nbytes, offset)
        if written <= 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot write {nbytes} bytes of shared memory: {os.strerror(number)}")
        offset, address, nbytes = offset + written, address + written, nbytes - written


class Segment:
    """A mapped segment.

    It holds no descriptor: the mapping keeps the memory, and `mmap.mmap`, which keeps one, would cost a
    model of many segments as many descriptors. The mapping lives as long as anything looks into it; the
    last view that dies takes it along.

    Attributes:
        number: Its number, which the parent gives, unique for one worker.
        nbytes: Its size in bytes.
        address: Where it is mapped.
        frozen: Whether nobody else can change what is seen here.
    """

    def __init__(self, number: int, fd: int, nbytes: int, *, frozen: bool = False) -> None:
        """Map `nbytes` bytes of `fd`, which stays the caller's.

        Args:
            number: Its number.
            fd: Its descriptor.
            nbytes: Its size.
            frozen: Whether `seal` has sealed it: what is written here then goes into pages of this process's own.

        Raises:
            OSError: The memory cannot be mapped.
        """
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE if frozen else mmap.MAP_SHARED
        address = _libc.mmap(None, nbytes, protection, flags, fd, 0)
        if address == _MAP_FAILED:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot map {nbytes} bytes of shared memory: {os.strerror(error)}")
        self.number = number
        self.nbytes = nbytes
        self.address: int = address
        self.frozen = frozen
        whole = (ctypes.c_char * nbytes).from_address(address)
        # Tied to the buffer, not to `self`: views outlive the Segment object.
        self._unmap = weakref.finalize(whole, _libc.munmap, address, nbytes)
        # At exit the kernel unmaps, after everybody who may still look.
        self._unmap.atexit = False
        self._view = memoryview(whole).cast("B")

    @classmethod
    def over(cls, number: int, memory: Any, nbytes: int) -> Segment:
        """Return a segment over memory that is mapped already, by another number: that of another worker."""
        self = cls.__new__(cls)
        self.number = number
        self.nbytes = nbytes
        self.frozen = False
        self.address = ctypes.addressof(memory)
        self._view = memoryview(memory).cast("B")
        return self

    @property
    def memory(self) -> Any:
        """The mapped memory: what every view keeps alive."""
        return self._view.obj

    def __repr__(self) -> str:
        return f"<Segment {self.number} {self.nbytes / 1e6:.1f} MB {'frozen' if self.frozen else 'sealed'}>"

    def forget_writes(self, offset: int, nbytes: int) -> None:
        """See again what others have written to a piece of a frozen segment, which this process had written over.

        Args:
            offset: Where it begins, on the boundary of a page.
            nbytes: Its length; all of its last page is meant.

        Raises:
            OSError: The system refuses.
        """
        begin, size = self.address + offset, pages.padded_to_pages(nbytes)
        if pages.has_own_pages(begin, size) and _libc.madvise(begin, size, mmap.MADV_DONTNEED):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot drop pages of a segment: {os.strerror(number)}")

    def when_unmapped(self, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` called with `args` once nothing looks into the segment any more, in whatever thread."""
        weakref.finalize(self._view.obj, callback, *args).atexit = False

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return a view of `nbytes` bytes from `offset`; while it lives, so does the mapping."""
        return self._view[offset : offset + nbytes]


class _Kept(NamedTuple):
    memory: weakref.ref[Any]
    nbytes: int
    fd: int


class KeptSegments:
    """A descriptor for each segment, so that another process can be given it when the first one has died.

    A mapping without a descriptor can be given to nobody. A descriptor is closed when its mapping ends, that is
    when the last tensor that lies there has died.
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}  # by address

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, segment: Segment, fd: int) -> None:
        """Keep a segment, with a descriptor of our own beside `fd`.

        Raises:
            OSError: There are no descriptors left.
        """
        kept = _Kept(weakref.ref(segment.memory), segment.nbytes, os.dup(fd))
        self._kept[segment.address] = kept
        finalizer = weakref.finalize(segment.memory, _let_go, self._kept, segment.address, kept)
        finalizer.atexit = False

    def find(self, address: int) -> tuple[Any, int, int] | None:
        """Return the memory, size and descriptor of the segment that `address` lies in, if it is kept.

        The memory holds it; the descriptor stays this object's.
        """
        for start, kept in list(self._kept.items()):
            if start <= address < start + kept.nbytes:
                memory = kept.memory()
                return None if memory is None else (memory, kept.nbytes, kept.fd)
        return None


def _let_go(table: dict[int, _Kept], address: int, kept: _Kept) -> None:
    if table.get(address) is kept:
        del table[address]
    os.close(kept.fd)
