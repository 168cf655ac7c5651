"""The watcher: a small process that tells when somebody writes to weights that several workers have in common.

::

    parent, worker ── write ──> kernel: the page is protected ──> watcher: note it, lift the protection ──> write

The kernel (userfaultfd, write-protect mode) stops whoever writes until somebody has answered. The one that writes
may hold the lock of its interpreter, so the answer has to come from another process: this one. Parent and workers
are its clients; each hands over a descriptor of its own memory and says which ranges of it to protect. What it
notes are bytes in shared memory, where the parent looks before and after each call. When it dies, the kernel
lifts all protection; but first it marks a word there (a robust futex), so that this can never go unseen.

It runs by itself, in an interpreter without anything else, and imports nothing of the package. Its command line:
the descriptors of its control socket and of the memory for its notes.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import select
import socket
import struct
import sys
import threading
import time

# One request of a client: what it wants, of which range; then, for PROTECT, its parts. A client's own ranges only.
REQUEST = struct.Struct("<cxxxxxxxQQ")
PART = struct.Struct("<QQII")  # address, length; where to note that it was written to, and where to count that
PROTECT, HOLD, DONE, LEAVE = b"P", b"H", b"D", b"L"
INTRODUCE = struct.Struct("<II")  # to the control socket, with a client's socket: the part of the notes that is its own
YES, NO, WRITTEN = b"y", b"n", b"w"
MAX_REQUEST_BYTES = 64 << 10

# Places in the notes. The first page is the watcher's own.
ALIVE_AT, DEAD_BIT = 16, 0x40000000
_NODE_AT = 8  # the robust list wants a pointer, and the futex that belongs to it at a fixed distance

_NUMBERS = {"x86_64": (323, 273), "aarch64": (282, 99)}  # of userfaultfd and set_robust_list
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_UFFDIO_WAKE, _UFFDIO_WRITEPROTECT = 0x8010AA02, 0xC018AA06
_API, _FEATURES = 0xAA, 1 << 0 | 1 << 12  # write-protect faults, in shared memory as well
_USER_MODE_ONLY = 1
_MODE_WP = 2
_MESSAGE = struct.Struct("<B7xQQQ")
_PAGEFAULT = 0x12
# How long somebody who writes may be kept waiting while a range is replaced. Only one who keeps its interpreter
# from running waits so long.
_HOLD_S = 1.0


def open_userfaultfd() -> int:
    """Return a new descriptor that watches this process's memory; the caller's to close.

    Raises:
        OSError: The system has no such thing, is too old, or refuses.
    """
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError("userfaultfd is not known on this kind of machine")
    libc = ctypes.CDLL(None, use_errno=True)
    # Without privileges, writes by the kernel itself (a file that is read straight into a tensor) fail with EFAULT.
    for flags in (0, _USER_MODE_ONLY):
        fd = int(libc.syscall(numbers[0], os.O_CLOEXEC | os.O_NONBLOCK | flags))
        if fd >= 0:
            break
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("<QQQ", _API, _FEATURES, 0)))
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Part:
    def __init__(self, address: int, nbytes: int, note: int, count: int) -> None:
        self.address, self.nbytes, self.note, self.count = address, nbytes, note, count
        self.held_until: float | None = None
        self.waiting = False


class _Client:
    """One process: its socket, its memory, its parts, and its area of the notes."""

    def __init__(self, notes: mmap.mmap, sock: socket.socket, area: tuple[int, int]) -> None:
        self._notes, self._sock, self._area = notes, sock, area
        self._uffd = -1
        self._parts: list[_Part] = []  # by address

    def run(self) -> None:
        """Serve until it is gone."""
        try:
            self._greet()
            poll = select.poll()
            poll.register(self._uffd, select.POLLIN)
            poll.register(self._sock, select.POLLIN)
            while True:
                for fd, event in poll.poll(self._timeout_ms()):
                    if fd == self._uffd:
                        if event != select.POLLIN:
                            raise OSError("a userfaultfd that blocks")
                        self._faults()
                    elif not self._serve():
                        return
                self._overdue()
        finally:
            # Nobody watches over it any more: as good as written to.
            for part in self._parts:
                self._note(part)
            if self._uffd >= 0:
                os.close(self._uffd)
            self._sock.close()

    def _greet(self) -> None:
        data, ancillary, *_ = self._sock.recvmsg(16, socket.CMSG_SPACE(4))
        numbers = array.array("i")
        for _, kind, payload in ancillary:
            if kind == socket.SCM_RIGHTS:
                numbers.frombytes(payload[:4])
        if len(numbers) != 1 or not data:
            raise OSError("no descriptor")
        self._uffd = numbers[0]
        # A worker may send what it likes.
        name = os.readlink(f"/proc/self/fd/{self._uffd}")  # noqa: PTH115 - it has little, and keeps it so
        if name != "anon_inode:[userfaultfd]":
            raise OSError("another kind of descriptor")
        os.set_blocking(self._uffd, False)
        self._sock.send(YES)

    def _serve(self) -> bool:
        data = self._sock.recv(MAX_REQUEST_BYTES)
        if not data:
            return False
        kind, address, nbytes = REQUEST.unpack_from(data)
        try:
            if kind == PROTECT:
                self._protect(address, nbytes, data[REQUEST.size :])
                answer = YES
            else:
                within = [part for part in self._parts if address <= part.address < address + nbytes]
                answer = self._hold(within) if kind == HOLD else self._replaced(within, address, nbytes, kind)
        except (OSError, ValueError, struct.error):
            answer = NO
        self._sock.send(answer)
        return True

    def _protect(self, address: int, nbytes: int, data: bytes) -> None:
        first, last = self._area
        parts = [_Part(*PART.unpack_from(data, at)) for at in range(0, len(data), PART.size)]
        for part in parts:
            if not (first <= part.note < last and first <= part.count <= last - 4):
                raise ValueError("not its own part of the notes")
        # What was at these addresses before is no more.
        kept = [one for one in self._parts if one.address + one.nbytes <= address or one.address >= address + nbytes]
        self._parts = sorted(kept + parts, key=_address)
        for part in parts:
            self._notes[part.note] = 0
        fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, bytearray(struct.pack("<QQQQ", address, nbytes, _MODE_WP, 0)))
        self._set(address, nbytes, protected=True)
        self._wake(address, nbytes)

    def _hold(self, parts: list[_Part]) -> bytes:
        """From now on whoever writes there waits; say whether somebody has written before."""
        answer = YES
        for part in parts:
            part.held_until = time.monotonic() + _HOLD_S
            part.waiting = False
            self._set(part.address, part.nbytes, protected=True)
            if self._notes[part.note]:
                answer = WRITTEN
            self._notes[part.note] = 0
        return answer

    def _replaced(self, parts: list[_Part], address: int, nbytes: int, kind: bytes) -> bytes:
        self._parts = [part for part in self._parts if part not in parts]
        if kind == LEAVE:
            fcntl.ioctl(self._uffd, _UFFDIO_UNREGISTER, struct.pack("<QQ", address, nbytes))
        self._wake(address, nbytes)
        return YES

    def _faults(self) -> None:
        with contextlib.suppress(BlockingIOError):  # whoever wrote there has been woken meanwhile
            event, _, address, _ = _MESSAGE.unpack(os.read(self._uffd, _MESSAGE.size))
            if event != _PAGEFAULT:
                return
            place = bisect.bisect_right(self._parts, address, key=_address) - 1
            part = self._parts[place] if place >= 0 else None
            if part is None or address >= part.address + part.nbytes:  # that cannot be; nobody must hang for it
                for one in self._parts:
                    self._note(one)
                self._set(address & -mmap.PAGESIZE, mmap.PAGESIZE, protected=False)
            elif part.held_until is None:
                self._lift(part)
            else:
                part.waiting = True

    def _timeout_ms(self) -> float | None:
        times = [part.held_until for part in self._parts if part.waiting and part.held_until is not None]
        return max((min(times) - time.monotonic()) * 1e3, 0.0) + 1 if times else None

    def _overdue(self) -> None:
        for part in self._parts:
            if part.waiting and part.held_until is not None and part.held_until <= time.monotonic():
                self._lift(part)

    def _lift(self, part: _Part) -> None:
        part.held_until, part.waiting = None, False
        self._note(part)
        self._set(part.address, part.nbytes, protected=False)

    def _note(self, part: _Part) -> None:
        self._notes[part.note] = 1
        (count,) = struct.unpack_from("<I", self._notes, part.count)
        struct.pack_into("<I", self._notes, part.count, (count + 1) & 0xFFFFFFFF)

    def _set(self, address: int, nbytes: int, *, protected: bool) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has been unmapped meanwhile
            fcntl.ioctl(self._uffd, _UFFDIO_WRITEPROTECT, struct.pack("<QQQ", address, nbytes, int(protected)))
        if not protected:
            self._wake(address, nbytes)

    def _wake(self, address: int, nbytes: int) -> None:
        fcntl.ioctl(self._uffd, _UFFDIO_WAKE, struct.pack("<QQ", address, nbytes))


def _address(part: _Part) -> int:
    return part.address


def _serve(client: _Client, *, of_parent: bool) -> None:
    try:
        client.run()
    except Exception:  # noqa: BLE001 - a worker that sends nonsense is left alone; its notes say so
        if of_parent:
            os._exit(1)  # which nobody can overlook


def _mark_alive(notes: mmap.mmap) -> object:
    """Have the kernel mark the notes when this process ends, however that comes; return what must be kept."""
    page = ctypes.addressof(ctypes.c_char.from_buffer(notes))
    head = (ctypes.c_size_t * 3)(page + _NODE_AT, ALIVE_AT - _NODE_AT, 0)
    struct.pack_into("<Q", notes, _NODE_AT, ctypes.addressof(head))
    struct.pack_into("<I", notes, ALIVE_AT, os.getpid())
    number = _NUMBERS[platform.machine()][1]
    if ctypes.CDLL(None, use_errno=True).syscall(number, head, ctypes.sizeof(head)):
        raise OSError(ctypes.get_errno(), "set_robust_list")
    return head


def main(control_fd: int, notes_fd: int) -> None:
    """Serve until the control socket ends, that is until the parent does."""
    ctypes.CDLL(None).prctl(15, b"isohub-watcher", 0, 0, 0)
    notes = mmap.mmap(notes_fd, 0)
    os.close(notes_fd)
    head = _mark_alive(notes)
    threading.stack_size(256 << 10)
    with socket.socket(fileno=control_fd) as control:
        control.send(YES)
        first = True
        while True:
            data, fds, *_ = socket.recv_fds(control, INTRODUCE.size, 1)
            if not data:
                break
            client = _Client(notes, socket.socket(fileno=fds[0]), INTRODUCE.unpack(data))
            threading.Thread(target=_serve, args=(client,), kwargs={"of_parent": first}, daemon=True).start()
            first = False
    del head
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
