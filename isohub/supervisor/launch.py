"""Start worker processes: the one door to `multiprocess`.

::

    this process ──exec──> forkserver (torch imported, one thread) ──fork──> worker ──fork──> worker ...
         │  alive pipe ──────────┘                                             │
         └── socket pair, stdout and stderr pipes, status pipe ────────────────┘

The forkserver ends when the alive pipe does, that is with this process however it ends. It takes along all
that workers have started (see `orphans`), and the kernel kills each worker with the forkserver. So `kill -9` of
this process leaves nothing. `kill -9` of the forkserver leaves what workers have started.

`multiprocess` brings the server loop, the passing of descriptors and the exit status. Three things differ
from its stock forkserver: it is started with an environment of its own and without a resource tracker
process, a worker is told nothing of `__main__`, so that a script needs no `__main__` guard, and no process
that a worker starts outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from multiprocess import forkserver as mp_forkserver
from multiprocess import popen_forkserver
from multiprocess.connection import wait as multiprocess_wait
from multiprocess.context import reduction

from isohub.errors import WorkerStartError
from isohub.supervisor import forkserver
from isohub.supervisor.orphans import adopt_orphans

__all__ = ["ForkServer", "Process"]

_PR_SET_PDEATHSIG = 1
LOST = 1 << 16  # no exit status: nobody was left to tell it


class _Program:
    """What a forked child runs; `multiprocess` calls `_bootstrap` and exits with what it returns."""

    def __init__(self, forkserver_pid: int) -> None:
        self._forkserver_pid = forkserver_pid

    def _bootstrap(self, parent_sentinel: object = None) -> int:  # noqa: ARG002 - multiprocess's signature
        # Bound to the thread that forked us, which is the forkserver's only one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        adopt_orphans()  # or a helper that the repository starts as a daemon would end at once
        if os.getppid() != self._forkserver_pid:
            return 0  # the forkserver died before the line above
        channel, out, err = mp_forkserver._forkserver._inherited_fds
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        # `multiprocess` in the repository's own code starts a tracker of its own if it needs one.
        mp_forkserver.resource_tracker._resource_tracker._fd = None
        # By name: nobody imports the worker program.
        return importlib.import_module("isohub.worker.__main__").main(channel)  # type: ignore[no-any-return]


class _Popen(popen_forkserver.Popen):  # type: ignore[misc]
    """`multiprocess`'s handle on a forked child, on a forkserver of our own."""

    returncode: int | None

    def __init__(self, server: ForkServer, program: _Program, fds: list[int], name: str, deadline: float) -> None:
        self._server, self._worker_fds, self._name, self._deadline = server, fds, name, deadline
        super().__init__(program)

    def _launch(self, program: _Program) -> None:
        data = io.BytesIO()
        reduction.dump({"name": self._name, "sys_argv": [self._name]}, data)
        reduction.dump(program, data)
        self.sentinel, self._to_child = self._server._connect(self._worker_fds)
        try:
            os.write(self._to_child, data.getbuffer())  # a few hundred bytes, which fit any pipe
            poll = select.poll()
            poll.register(self.sentinel, select.POLLIN)
            if not poll.poll(max(self._deadline - time.monotonic(), 0.0) * 1e3):
                raise TimeoutError("no answer in time; it may still be importing torch, or be stopped")
            self.pid = mp_forkserver.read_signed(self.sentinel)
        except BaseException:
            self.close_fds()
            raise

    def close_fds(self) -> None:
        """Close our ends of its pipes. The child sees in one of them when we end, so they stay open till then."""
        for fd in (self.sentinel, self._to_child):
            if fd >= 0:
                os.close(fd)
        self.sentinel = self._to_child = -1

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit status if it is known; `LOST` when the forkserver ended before it told."""
        if self.returncode is None:
            timeout_s = 0.0 if flag == os.WNOHANG else None
            if multiprocess_wait([self.sentinel], timeout_s):
                try:
                    self.returncode = mp_forkserver.read_signed(self.sentinel)
                except EOFError:
                    self.returncode = LOST
        return self.returncode


@dataclass
class Process:
    """A worker process just launched. Its owner closes the descriptors: `channel`, `out`, `err`, `pidfd`.

    Attributes:
        pid: Its process id.
        pidfd: A descriptor for the process, which no later process of the same number can be mistaken
            for; readable once it has ended.
        channel: Our end of the socket pair.
        out: Read end of its stdout.
        err: Read end of its stderr.
    """

    pid: int
    pidfd: int
    channel: socket.socket
    out: int
    err: int
    _popen: _Popen
    _closing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> bool:
        """Whether the process has ended, whoever knows how."""
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def exit_status(self, timeout_s: float) -> int | None:
        """Return its exit code, or the negative number of the signal that ended it.

        Args:
            timeout_s: How long to wait for its end, in seconds.

        Returns:
            None when it has not ended, or when the forkserver ended with it and nobody knows.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._popen.sentinel, select.POLLIN)
        while self._popen.poll() is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            poll.poll(left_s * 1e3 + 1)
        status = self._popen.returncode
        return None if status == LOST else status

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, from any thread; does nothing if the process has ended."""
        with self._closing:
            if self.pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Close every descriptor of ours. May be called again."""
        with self._closing:
            for fd in (self.pidfd, self.out, self.err):
                if fd >= 0:
                    os.close(fd)
            self.pidfd = self.out = self.err = -1
        self.channel.close()
        self._popen.close_fds()


class ForkServer:
    """A forkserver, started when it is first needed and again should it have died. Safe for threads.

    It owns the alive pipe and a descriptor of the server's socket; `close` ends the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._alive_fd = -1
        self._address_fd = -1

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ensure_running(self) -> int:
        """Start the process if there is none; return its id. Does not wait for its imports."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return self._process.pid
            self._close()
            self._start()
            assert self._process is not None
            return self._process.pid

    def launch(self, name: str, deadline: float) -> Process:
        """Fork a worker.

        Args:
            name: What the process is called.
            deadline: By `time.monotonic`.

        Raises:
            WorkerStartError: The forkserver does not come up in time, or dies.
        """
        pid = self.ensure_running()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        try:
            popen = _Popen(self, _Program(pid), [theirs.fileno(), out_w, err_w], name, deadline)
            pidfd = os.pidfd_open(popen.pid)
        except (OSError, EOFError) as error:
            ours.close()
            os.close(out_r)
            os.close(err_r)
            raise WorkerStartError(
                f"the forkserver (pid {pid}) that workers come from does not answer ({type(error).__name__}: {error}). "
                "What it printed to stderr says why; most often torch cannot be imported by "
                f"{forkserver.command('', 0, 0)[0]} outside of this program",
                worker=name,
            ) from error
        finally:
            theirs.close()
            os.close(out_w)
            os.close(err_w)
        return Process(popen.pid, pidfd, ours, out_r, err_r, popen)

    def kill(self) -> None:
        """Kill the process and every worker with it."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
            self._close()

    def close(self) -> None:
        """End the process, and any worker that is left with it. May be called again."""
        with self._lock:
            self._close()

    def forget(self) -> None:
        """Close our descriptors without ending anything: in a fork of the process that owns it."""
        for fd in (self._alive_fd, self._address_fd):
            if fd >= 0:
                os.close(fd)
        if self._process is not None:
            self._process.returncode = 0  # so that it does not look after a child of another process
        self._lock = threading.Lock()
        self._process, self._alive_fd, self._address_fd = None, -1, -1

    def _close(self) -> None:
        if self._alive_fd >= 0:
            os.close(self._alive_fd)  # the server sees it and ends
            os.close(self._address_fd)
            self._alive_fd = self._address_fd = -1
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:  # still importing torch, say
                self._process.kill()
                self._process.wait()
            self._process = None

    def _start(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            self._address_fd = _listen(listener)
            alive_r, self._alive_fd = os.pipe()
            try:
                self._process = subprocess.Popen(
                    forkserver.command("isohub.supervisor.orphans", listener.fileno(), alive_r),
                    env=forkserver.forkserver_environment(),
                    pass_fds=(listener.fileno(), alive_r),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    # Ctrl-C and a closed terminal are this process's business; workers end with it.
                    start_new_session=True,
                )
            finally:
                os.close(alive_r)

    def _connect(self, fds: list[int]) -> tuple[int, int]:
        """Ask for a fork; return the pipe with its pid and status, and the pipe for what it is to run."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{self._address_fd}")
            status_r, status_w = os.pipe()
            data_r, data_w = os.pipe()
            # The stock server expects an alive pipe and a resource tracker for the child to hold; ours
            # is to hold neither, or it would keep the forkserver alive after this process.
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                reduction.sendfds(client, [data_r, status_w, nothing, nothing, *fds])
            except BaseException:
                os.close(status_r)
                os.close(data_w)
                raise
            finally:
                for fd in (data_r, status_w, nothing):
                    os.close(fd)
        return status_r, data_w


def _listen(listener: socket.socket) -> int:
    """Bind and listen; return a descriptor of the socket's file, which has no name any more.

    An abstract address could be connected to by any user of the machine (CVE-2022-42919), and a file
    would stay behind when this process is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="isohub-"))
    try:
        path = folder / "forkserver"
        listener.bind(os.fspath(path))
        listener.listen(128)
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    finally:
        with contextlib.suppress(OSError):
            (folder / "forkserver").unlink()
        folder.rmdir()
