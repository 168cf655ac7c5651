"""Start worker processes: the one door to `multiprocess`.

::

    this process ──exec──> forkserver (torch imported, one thread) ──fork──> worker ──fork──> worker ...
         │  alive pipe ──────────┘                                             │
         └── socket pair, stdout and stderr pipes ─────────────────────────────┘

The forkserver ends when the alive pipe does, that is with this process however it ends. It takes along all
that workers have started (see `orphans`), and the kernel kills each worker with the forkserver. So `kill -9` of
this process leaves nothing. `kill -9` of the forkserver leaves what workers have started.

`multiprocess` brings the server loop, the passing of descriptors and the exit status, which comes by a status pipe
of each worker's. Three things differ from its stock forkserver: it is started with an environment of its own and
without a resource tracker process, a worker is told nothing but what it serves on (nothing is pickled, and nothing
of `__main__` crosses, so that a script needs no `__main__` guard), and no process that a worker starts outlives it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from multiprocess import forkserver as mp_forkserver
from multiprocess.context import reduction

from isohub import trace
from isohub.errors import WorkerStartError
from isohub.supervisor import forkserver

__all__ = ["ForkServer", "Process"]


@dataclass
class Process:
    """A worker process that was asked for, or is there. Its owner closes it.

    Attributes:
        channel: Our end of the socket pair.
        out: Read end of its stdout.
        err: Read end of its stderr.
        status: Read end of the pipe by which the forkserver tells its id, and then how it ended.
        pid: Its process id; 0 until `arrive`.
        pidfd: A descriptor for the process, which no later process of the same number can be mistaken
            for; readable once it has ended. -1 until `arrive`.
        on_arrival: What to call then.
    """

    channel: socket.socket
    out: int
    err: int
    status: int
    pid: int = 0
    pidfd: int = -1
    on_arrival: Callable[[], None] = lambda: None
    _exit_code: int | None = None
    _lost: bool = False  # nobody is left who could tell how it ended
    _closing: threading.Lock = field(default_factory=threading.Lock)

    def arrive(self, deadline: float) -> None:
        """Wait until it is there; its own program may only be beginning.

        Args:
            deadline: By `time.monotonic`.

        Raises:
            OSError: It does not come in time, or has ended already.
            EOFError: The forkserver has ended.
        """
        if self.pid:
            return
        if not _readable(self.status, max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError("no answer in time; it may still be importing torch, or be stopped")
        pid = mp_forkserver.read_signed(self.status)
        self.pidfd = os.pidfd_open(pid)
        self.pid = pid
        self.on_arrival()

    @property
    def ended(self) -> bool:
        """Whether the process has ended, whoever knows how."""
        return _readable(self.pidfd, 0.0)

    def exit_status(self, timeout_s: float) -> int | None:
        """Return its exit code, or the negative number of the signal that ended it.

        Args:
            timeout_s: How long to wait for its end, in seconds.

        Returns:
            None when it has not ended, or when the forkserver ended with it and nobody knows.
        """
        if self._exit_code is None and not self._lost and _readable(self.status, timeout_s):
            try:
                self._exit_code = mp_forkserver.read_signed(self.status)
            except EOFError:
                self._lost = True
        return self._exit_code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, from any thread; does nothing if the process has ended."""
        with self._closing:
            if self.pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Close every descriptor of ours, by which a worker that is left ends. May be called again."""
        with self._closing:
            for fd in (self.pidfd, self.out, self.err, self.status):
                if fd >= 0:
                    os.close(fd)
            self.pidfd = self.out = self.err = self.status = -1
        self.channel.close()


class ForkServer:
    """A forkserver, started when it is first needed and again should it have died. Safe for threads.

    It owns the alive pipe and a descriptor of the server's socket; `close` ends the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._alive_fd = -1
        self._address_fd = -1
        self._started = 0.0  # when, by `time.monotonic`; 0.0 once it was told how long it took

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

    def begin(self) -> Process:
        """Ask for a worker, and do not wait for it: `Process.arrive` does.

        Raises:
            WorkerStartError: The forkserver cannot be asked.
        """
        self.ensure_running()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        (out, out_w), (err, err_w), (status, status_w) = os.pipe(), os.pipe(), os.pipe()
        process = Process(ours, out, err, status, on_arrival=self._is_up)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{self._address_fd}")
                reduction.sendfds(client, [theirs.fileno(), status_w, out_w, err_w])
        except OSError as error:
            process.close()
            raise self.silent(error) from error
        finally:
            theirs.close()
            for fd in (out_w, err_w, status_w):
                os.close(fd)
        return process

    def silent(self, error: Exception) -> WorkerStartError:
        """Return what to raise when no worker comes from here, for that reason."""
        return WorkerStartError(
            f"the forkserver (pid {self.pid}) that workers come from does not answer ({type(error).__name__}: {error})."
            " What it printed to stderr says why; most often torch cannot be imported by "
            f"{forkserver.command('', 0, 0)[0]} outside of this program"
        )

    def command(self, listener_fd: int, alive_fd: int) -> list[str]:
        """Return its command line; see `forkserver.command`."""
        return forkserver.command("isohub.supervisor.orphans", listener_fd, alive_fd)

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

    def _is_up(self) -> None:
        """Tell how long it took from its start to its first fork."""
        with self._lock:
            started, self._started = self._started, 0.0
        if started:
            trace.tell("supervisor.forkserver", started, time.monotonic() - started)

    def _close(self) -> None:
        if self._alive_fd >= 0:
            os.close(self._alive_fd)  # the server sees it and ends
            os.close(self._address_fd)
            self._alive_fd = self._address_fd = -1
        if self._process is not None:
            if self._started:
                self._process.kill()  # nothing came from it yet, and it would import torch to the end first
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
            self._started = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    self.command(listener.fileno(), alive_r),
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


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1e3 + 1 if timeout_s else 0))


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
