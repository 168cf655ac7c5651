"""Programs that begin in an interpreter which has imported torch already.

To import torch takes a processor two to three seconds. Where a test is about what a program does, and not about how
it begins, the program is forked from an interpreter that has done so and nothing else: it is a process with arguments,
a folder, an environment, standard streams, a `__main__` and an end of its own, like any other.

::

    test ──arguments, streams──> interpreter (torch imported, one thread) ──fork──> program
      └──── pid, exit status <────┘
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Running", "WarmPython", "warm_python"]

_MAX_REQUEST_BYTES = 1 << 18


class Running:
    """A program that was started: the part of `subprocess.Popen` that tests use."""

    def __init__(self, status: int, streams: list[int]) -> None:
        self._status = os.fdopen(status, "rb")
        self.pid = int(self._status.readline())
        self.returncode: int | None = None
        self.stdin: TextIO | None = os.fdopen(streams[0], "w")
        self.stdout: TextIO | None = os.fdopen(streams[1])
        self.stderr: TextIO | None = os.fdopen(streams[2])

    def poll(self) -> int | None:
        """Return its exit status, or the negative number of the signal that ended it; None if it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimeoutExpired: It goes on.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(["python"], timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
            self._status.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its stdin, wait for its end, and return what is left of its stdout and stderr.

        Raises:
            TimeoutExpired: It goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        found: dict[Any, str] = {}
        with selectors.DefaultSelector() as selector:
            for pipe in (self.stdout, self.stderr):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ)
                found[pipe] = ""
            while selector.get_map():
                left_s = None if deadline is None else deadline - time.monotonic()
                ready = selector.select(left_s)
                if not ready:
                    raise subprocess.TimeoutExpired(["python"], timeout or 0.0)
                for key, _ in ready:
                    pipe = key.fileobj
                    data = os.read(key.fd, 1 << 16)
                    found[pipe] += data.decode()  # tests write ASCII: no character is cut in two
                    if not data:
                        selector.unregister(pipe)
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        self.close()
        out, err = found.values()
        return out, err

    def close(self) -> None:
        """Close our ends of its streams."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class WarmPython:
    """The interpreter that programs are forked from. `close` ends it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip

    def start(self, arguments: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Running:
        """Start a program in a session of its own, as `python -u` does with these arguments, none of them an option."""
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
        pipes = [os.pipe() for _ in range(4)]
        (stdin, our_in), (our_out, stdout), (our_err, stderr), (our_status, status) = pipes
        theirs = [stdin, stdout, stderr, status]
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        return Running(our_status, [our_in, our_out, our_err])

    def run(
        self, arguments: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, and kill it if that does not come."""
        running = self.start(arguments, cwd=cwd, env=env)
        try:
            out, err = running.communicate(100)
        finally:
            running.kill()
            running.close()
        return subprocess.CompletedProcess(["python", *arguments], running.wait(), out, err)

    def close(self) -> None:
        """End it. Programs that it has started go on."""
        self._socket.close()
        self._process.wait()


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a program for each request; return in the fork, with what it is to run and its streams."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    programs: dict[int, tuple[int, int]] = {}  # by the descriptor of its process: its number, and where to tell its end
    while True:
        for ready, _ in poll.poll():
            if ready in programs:
                pid, status = programs.pop(ready)
                poll.unregister(ready)
                os.write(status, b"%d\n" % os.waitpid(pid, 0)[1])
                os.close(status)
                os.close(ready)
                continue
            data, fds, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 4)
            if not data:
                os._exit(0)  # the tests are over
            pid = os.fork()
            if not pid:
                os.setsid()
                for fd in [requests.detach(), fds.pop(), *programs, *(status for _, status in programs.values())]:
                    os.close(fd)
                return json.loads(data), fds
            pidfd = os.pidfd_open(pid)
            poll.register(pidfd, select.POLLIN)
            programs[pidfd] = pid, fds.pop()
            os.write(programs[pidfd][1], b"%d\n" % pid)
            for fd in fds:
                os.close(fd)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the program: what it raises, and the end of the interpreter, are what they are in any other."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = sys.__stdin__ = os.fdopen(0)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if "OMP_NUM_THREADS" in os.environ:  # which is looked at when torch is imported
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, *arguments = request["arguments"]
    if kind == "-m":
        import runpy

        sys.argv = arguments
        sys.path.insert(0, request["cwd"])
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        code, name = arguments.pop(0), "<string>"
        sys.path.insert(0, "")
    else:
        code, name = Path(kind).read_text(), kind
        main.__file__ = kind
        sys.path.insert(0, str(Path(kind).parent))
    sys.argv = [kind, *arguments]
    exec(compile(code, name, "exec"), main.__dict__)


@contextlib.contextmanager
def warm_python() -> Iterator[WarmPython]:
    """Have an interpreter for as long as the block lasts."""
    python = WarmPython()
    try:
        yield python
    finally:
        python.close()


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    import torch  # noqa: F401 - what all this is for

    gc.collect()
    gc.freeze()
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
