"""The watcher process, seen from the parent; see `isohub.shm.watcher`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys

from isohub.shm import watcher
from isohub.shm.write_watch import NOTES_BYTES, Notes, WriteWatch

__all__ = ["Watcher"]

_START_S = 20.0
_END_S = 5.0
# fcntl has the names only from some versions on; the numbers are Linux's ABI.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10


class Watcher:
    """A watcher process. It ends with this one, however that ends; `close` ends it.

    Attributes:
        notes: What it notes.
        notes_fd: The memory of the notes, which nobody but the watcher can write to.
        watch: It watches over this process's memory, too.

    Raises:
        OSError: The system has not what it takes, or the process does not come up.
    """

    def __init__(self) -> None:
        os.close(watcher.open_userfaultfd())  # before a process is started for nothing
        self.notes_fd = os.memfd_create("isohub-notes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._process: subprocess.Popen[bytes] | None = None
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                os.ftruncate(self.notes_fd, NOTES_BYTES)
                self._process = self._started(theirs.fileno())
            self._control.settimeout(_START_S)
            if self._control.recv(1) != watcher.YES:
                raise OSError("the process that watches over weights in common does not start")
            seals = _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.notes_fd, _F_ADD_SEALS, seals)
            self.notes = Notes(self.notes_fd)
            with self.introduce(0, NOTES_BYTES) as sock:
                self.watch = WriteWatch(sock.dup(), self.notes)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """Its process id; None once closed."""
        return None if self._process is None else self._process.pid

    def introduce(self, first: int, end: int) -> socket.socket:
        """Return the socket of a new client, the caller's to close.

        Args:
            first: Where its part of the notes begins.
            end: Where that ends.

        Raises:
            OSError: The watcher is gone, or there are no descriptors left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._control, [watcher.INTRODUCE.pack(first, end)], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def close(self) -> None:
        """End the process. May be called again."""
        self.forget()
        if self._process is not None:
            try:
                self._process.wait(_END_S)  # it sees the end of its control socket
            except subprocess.TimeoutExpired:  # somebody has stopped it
                self._process.kill()
                self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Close our descriptors: also in a fork of the process that started it."""
        if hasattr(self, "watch"):
            self.watch.close()
        self._control.close()
        if self.notes_fd >= 0:
            os.close(self.notes_fd)
            self.notes_fd = -1

    def _started(self, control_fd: int) -> subprocess.Popen[bytes]:
        # By its file, in an interpreter without site-packages: it imports nothing else.
        command = [sys.executable, "-I", "-S", watcher.__file__, str(control_fd), str(self.notes_fd)]
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "r+b"))  # noqa: PTH123 - a device
            return subprocess.Popen(
                command,
                pass_fds=(control_fd, self.notes_fd),
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                stdin=null, stdout=null, stderr=null,
                cwd="/",
                start_new_session=True,  # Ctrl-C is the parent's business
            )  # fmt: skip
