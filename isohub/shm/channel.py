"""Frames and descriptors between one parent and one worker, over a socket pair.

Whoever makes a `Channel` owns the socket; `close` closes it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence

from isohub.errors import RemoteProtocolError
from isohub.shm.spin import Spin
from isohub.wire import framing

__all__ = ["Channel", "DeadlineError", "PeerGoneError"]

# One receive takes a whole frame of the usual size: a header of a few hundred bytes for a call.
_RECEIVE_BYTES = 64 << 10
# As plain ints: `&` of the enumeration members takes microseconds.
_MSG_CTRUNC, _MSG_CMSG_CLOEXEC = int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
_MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
# Whether a socket takes descriptors at all; the number is Linux's ABI. To drop one can take long: that of a socket
# that lingers, say.
_SO_PASSRIGHTS = 83
_ANCILLARY_BYTES = socket.CMSG_SPACE(framing.MAX_DESCRIPTORS * array.array("i").itemsize)


class PeerGoneError(Exception):
    """The other end of the channel is closed."""


class DeadlineError(Exception):
    """The deadline passed before a whole frame was through."""


class Channel:
    """One end of the socket pair.

    Args:
        sock: A connected stream socket of the AF_UNIX family. The channel owns it from now on.
        accept_descriptors: Whether descriptors may come in. The parent never takes any: what a worker
            attaches to its frames is dropped by the kernel.
    """

    def __init__(self, sock: socket.socket, *, accept_descriptors: bool = False) -> None:
        sock.setblocking(True)
        if not accept_descriptors:
            with contextlib.suppress(OSError):  # Linux before 6.16 does not know it, and drops them as they come
                sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        self._sock = sock
        self._accept = accept_descriptors
        self._scratch = memoryview(bytearray(_RECEIVE_BYTES))
        self._buffer = bytearray()  # the beginning of a frame that did not come whole
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)
        self._fds: list[int] = []
        self._spin = Spin()

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket, and descriptors that came and were not taken. May be called again."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def send(self, message: bytes, descriptors: Sequence[int] = (), deadline: float | None = None) -> None:
        """Send one frame.

        Args:
            message: At most `framing.MAX_MESSAGE_BYTES`.
            descriptors: They stay the caller's.
            deadline: By `time.monotonic`; None for no end.

        Raises:
            LocalProtocolError: The message is too long; nothing was sent.
            PeerGoneError: The other end is closed.
            DeadlineError: The other end does not read.
        """
        frame = framing.pack_header(len(message), len(descriptors)) + message
        try:
            if deadline is None and not descriptors:
                self._sock.sendall(frame)
                return
            left = memoryview(frame)
            # They go with the first byte, and only once.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            while left:
                self._wait(self._writable, deadline)
                with contextlib.suppress(BlockingIOError):
                    left = left[self._sock.sendmsg([left], rights, 0 if deadline is None else _MSG_DONTWAIT) :]
                    rights = []
        except (BrokenPipeError, ConnectionResetError):
            raise PeerGoneError from None

    def receive(self, deadline: float | None = None) -> tuple[memoryview, list[int]]:
        """Receive one frame.

        Args:
            deadline: By `time.monotonic`, for the whole frame, so that a peer that drips bytes cannot
                stretch it; None for no end.

        Returns:
            The message, which is valid until the next call, and its descriptors, which are the caller's.

        Raises:
            PeerGoneError: The other end is closed.
            DeadlineError: No whole frame came in time.
            RemoteProtocolError: What came is no frame, or one with descriptors where none are accepted.
        """
        if not self._buffer:
            data = self._receive_some(deadline)
            if len(data) >= framing.HEADER_BYTES:
                nbytes, expected = framing.unpack_header(data)
                if len(data) == framing.HEADER_BYTES + nbytes:  # as nearly always: one whole frame
                    return data[framing.HEADER_BYTES :], self._take(expected)
            self._buffer += data
        while len(self._buffer) < framing.HEADER_BYTES:
            self._buffer += self._receive_some(deadline)
        nbytes, expected = framing.unpack_header(self._buffer)
        end = framing.HEADER_BYTES + nbytes
        while len(self._buffer) < end:
            self._buffer += self._receive_some(deadline)
        message = memoryview(bytes(self._buffer[framing.HEADER_BYTES : end]))
        del self._buffer[:end]
        return message, self._take(expected)

    def unread(self) -> bool:
        """Return whether bytes lie here that nobody asked for; not whether the other end is closed."""
        if self._buffer:
            return True
        try:
            return bool(self._readable.poll(0) and self._sock.recv(1, socket.MSG_PEEK | _MSG_DONTWAIT))
        except (BlockingIOError, ConnectionResetError):
            return False

    def _take(self, count: int) -> list[int]:
        """Return the descriptors that came with a frame which names `count` of them."""
        if not self._accept and count:
            raise RemoteProtocolError(f"a frame with {count} descriptors, of which none is ever taken")
        if not (count or self._fds):
            return []
        if len(self._fds) < count:
            raise RemoteProtocolError(f"{len(self._fds)} descriptors came with a frame that names {count}")
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def _receive_some(self, deadline: float | None) -> memoryview:
        """Return what the socket has, waiting for it until the deadline; valid until the next call."""
        began = self._spin.wait(self._readable)
        self._wait(self._readable, deadline)
        try:
            count = self._receive_into() if self._accept else self._sock.recv_into(self._scratch)
        except ConnectionResetError:
            raise PeerGoneError from None
        if not count:
            raise PeerGoneError
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineError
        self._spin.waited(began)
        return self._scratch[:count]

    def _receive_into(self) -> int:
        count, ancillary, flags, _ = self._sock.recvmsg_into([self._scratch], _ANCILLARY_BYTES, _MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                self._fds.extend(numbers)
        if flags & _MSG_CTRUNC:
            raise RemoteProtocolError("more descriptors than a frame may hold")
        return count

    @staticmethod
    def _wait(ready: select.poll, deadline: float | None) -> None:
        """Wait until the deadline; without one, the call that follows does the waiting."""
        if deadline is None:
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not ready.poll(left_s * 1e3 + 1):
            raise DeadlineError
