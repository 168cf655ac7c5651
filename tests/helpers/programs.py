"""Programs that use isohub, run as processes of their own, to be killed, interrupted or left to end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.helpers.warm import Running, WarmPython

__all__ = ["Program", "processes_with", "wait_for_end"]

# Far above what anything takes here, so that only a hang meets it.
DEADLINE_S = 60.0


class Program:
    """A running program. It tells what it does in lines of JSON on its stdout; `close` ends it.

    Args:
        arguments: What follows `python` on the command line.
        temporary: A folder of its own for temporary files.
        script: Text for its stdin.
        variables: More of its environment.
        python: The interpreter that it is forked from; None for a fresh one.
    """

    def __init__(
        self,
        arguments: list[str],
        temporary: Path,
        script: str = "",
        *,
        variables: Mapping[str, str] | None = None,
        python: WarmPython | None = None,
    ) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        self._known: dict[int, int] = {}
        environment = {**os.environ, "TMPDIR": str(temporary), **(variables or {})}
        self.process: subprocess.Popen[str] | Running
        if python is not None:
            self.process = python.start(arguments, cwd=temporary, env=environment)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=temporary,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        if script:
            self.process.stdin.write(script)
            self.process.stdin.close()
            self.process.stdin = None

    def told(self) -> Any:
        """Return the next line that it printed, read as JSON; its processes in it (`pids`) are watched."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if not select.select([self.process.stdout], [], [], DEADLINE_S)[0]:
            raise AssertionError("the program says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the program has ended: {self.process.stderr.read()}")
        value = json.loads(line)
        for pid in value.get("pids", []) if isinstance(value, dict) else []:
            with contextlib.suppress(ProcessLookupError):
                self._known.setdefault(pid, os.pidfd_open(pid))
        return value

    def go_on(self) -> None:
        """Let it go on, where it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit status, and the rest of its stdout and stderr."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def left(self, within_s: float = 10.0) -> list[int]:
        """Return which of its processes are there `within_s` seconds after now."""
        deadline = time.monotonic() + within_s
        return [pid for pid, pidfd in self._known.items() if not _ended(pidfd, deadline)]

    def close(self) -> None:
        """Kill whatever is left."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        for pidfd in self._known.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._known.clear()


def processes_with(variable: str) -> list[int]:
    """Return the processes that were started with `NAME=value` in their environment, by whomever."""
    mark = os.fsencode(variable)
    return [int(place.name) for place in Path("/proc").glob("[0-9]*") if mark in _variables_of(place)]


def _variables_of(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return []


def wait_for_end(pid: int, within_s: float = DEADLINE_S) -> None:
    """Wait until a process has ended."""
    with contextlib.suppress(ProcessLookupError), _opened(pid) as pidfd:
        assert _ended(pidfd, time.monotonic() + within_s), f"process {pid} goes on"


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _ended(pidfd: int, deadline: float) -> bool:
    return bool(select.select([pidfd], [], [], max(deadline - time.monotonic(), 0.0))[0])
