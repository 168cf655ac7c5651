"""Frames and descriptors between one parent and one worker, over a socket pair.

Whoever makes a `Channel` owns the socket; `close` closes it.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from collections.abc import Sequence

from isohub.errors import RemoteProtocolError
from isohub.wire import framing

__all__ = ["Channel", "DeadlineError", "PeerGoneError"]

# One receive takes a whole frame of the usual size: a header of a few hundred bytes for a call.
_RECEIVE_BYTES = 64 << 10
# As plain ints: `&` of the enumeration members takes microseconds.
_MSG_CTRUNC, _MSG_CMSG_CLOEXEC = int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
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
        sock.setblocking(False)
        self._sock = sock
        self._accept = accept_descriptors
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._fds: list[int] = []

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
        header = framing.pack_header(len(message), len(descriptors))
        left = memoryview(header + message if len(message) < _RECEIVE_BYTES else b"".join((header, message)))
        try:
            if descriptors:
                self._wait(select.POLLOUT, deadline)
                sent = socket.send_fds(self._sock, [left], list(descriptors))
                left = left[sent:]
            while left:
                try:
                    sent = self._sock.send(left)
                except BlockingIOError:
                    self._wait(select.POLLOUT, deadline)
                else:
                    left = left[sent:]
        except (BrokenPipeError, ConnectionResetError):
            raise PeerGoneError from None

    def receive(self, deadline: float | None = None) -> tuple[memoryview, list[int]]:
        """Receive one frame.

        Args:
            deadline: By `time.monotonic`, for the whole frame, so that a peer that drips bytes cannot
                stretch it; None for no end.

        Returns:
            The message and its descriptors, which are the caller's from now on.

        Raises:
            PeerGoneError: The other end is closed.
            DeadlineError: No whole frame came in time.
            RemoteProtocolError: What came is no frame.
        """
        while len(self._buffer) < framing.HEADER_BYTES:
            self._fill(deadline)
        nbytes, expected = framing.unpack_header(self._buffer)
        end = framing.HEADER_BYTES + nbytes
        while len(self._buffer) < end:
            self._fill(deadline)
        message = memoryview(bytes(self._buffer[framing.HEADER_BYTES : end]))
        del self._buffer[:end]
        if not self._accept:
            expected = 0
        if len(self._fds) < expected:
            raise RemoteProtocolError(f"{len(self._fds)} descriptors came with a frame that names {expected}")
        descriptors, self._fds = self._fds[:expected], self._fds[expected:]
        return message, descriptors

    def unread(self) -> bool:
        """Return whether bytes lie here that nobody asked for."""
        return bool(self._buffer)

    def _fill(self, deadline: float | None) -> None:
        """Append what the socket has to the buffer, waiting for it until the deadline."""
        while True:
            try:
                data = self._receive_some()
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except ConnectionResetError:
                raise PeerGoneError from None
            if not data:
                raise PeerGoneError
            self._buffer += data
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineError
            return

    def _receive_some(self) -> bytes:
        if not self._accept:
            return self._sock.recv(_RECEIVE_BYTES)
        data, ancillary, flags, _ = self._sock.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, _MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                self._fds.extend(numbers)
        if flags & _MSG_CTRUNC:
            raise RemoteProtocolError("more descriptors than a frame may hold")
        return data

    def _wait(self, event: int, deadline: float | None) -> None:
        if event == select.POLLIN:
            poll = self._poll
        else:
            poll = select.poll()
            poll.register(self._sock, event)
        if deadline is None:
            poll.poll()
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1e3 + 1):
            raise DeadlineError
