"""The workers of all programs on this machine, as far as the kernel and their titles tell.

A program knows all of its own workers (`isohub.workers()`); of another's there is what `ps` sees. What a worker
does it tells in its title (`isohub.worker.title`), so that part is its own word: shown, and not relied on.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from isohub.supervisor.memory import Memory, memory_of

__all__ = ["WorkerProcess", "worker_processes"]

_NAME = "isohub-worker"
_TITLE = re.compile(
    r"isohub-worker (?P<label>.*): (?P<state>[a-z]+)"
    r"(?: calls=(?P<calls>\d+) handles=(?P<handles>\d+) last=(?P<last>\d+))?",
    re.DOTALL | re.ASCII,
)
_UNNAMED = "isohub.supervisor.orphans"
_COMMIT = re.compile(r"@([0-9a-f]{7})$", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MOST_CHARACTERS = 200
_MOST_DIGITS = 15
# Places in /proc/<pid>/stat, counted from the state, which follows the name.
_PPID, _STARTED = 1, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A worker of some program.

    Attributes:
        pid: Its process id.
        program_pid: The program that it works for; 0 if that cannot be told.
        program: What that program was started as.
        label: The repository as people know it, `owner/name:ref@1a2b3c4`; empty if its title tells none.
        commit: The first 7 digits of the commit; None for a working tree.
        state: `"idle"` or `"busy"` by its own word; `"ready"` when it was given no repository yet, so that it still
            has the forkserver's command line; `"unknown"` if its title does not say.
        calls: How many requests it has answered.
        handles: How many of its objects the program holds.
        uptime_s: Seconds since it was started.
        last_call_s: Seconds since it last answered; None when it never has.
        memory: What it takes of the machine's memory.
    """

    pid: int
    program_pid: int
    program: str
    label: str
    commit: str | None
    state: str
    calls: int
    handles: int
    uptime_s: float
    last_call_s: float | None
    memory: Memory = field(default_factory=Memory)


def worker_processes(proc: Path = Path("/proc")) -> list[WorkerProcess]:
    """Return the workers of this machine that this user may see, oldest first."""
    found = [_worker(proc, int(place.name)) for place in proc.glob("[0-9]*")]
    return sorted((one for one in found if one is not None), key=lambda one: (-one.uptime_s, one.pid))


def _worker(proc: Path, pid: int) -> WorkerProcess | None:
    try:
        if _short_name(proc, pid) != _NAME:
            return None
        stat = _stat(proc, pid)
        server_pid = int(stat[_PPID])
        # A process that the repository's code forked has the name as well, and is none.
        if _short_name(proc, server_pid) == _NAME:
            return None
        program_pid = int(_stat(proc, server_pid)[_PPID]) if server_pid > 1 else 0
        program = _clean(_command(proc, program_pid)) if program_pid > 1 else ""
        command = _command(proc, pid)
        title = _TITLE.fullmatch(command)
        since_boot_s = float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):  # it has ended just now, or is somebody else's
        return None
    label = _clean(title["label"]) if title else ""
    commit = _COMMIT.search(label)
    last_at = _number(title["last"]) if title else 0
    return WorkerProcess(
        pid=pid,
        program_pid=program_pid,
        program=program,
        label=label,
        commit=commit[1] if commit else None,
        state=title["state"][:_MOST_DIGITS] if title else "ready" if _UNNAMED in command else "unknown",
        calls=_number(title["calls"]) if title else 0,
        handles=_number(title["handles"]) if title else 0,
        uptime_s=max(since_boot_s - int(stat[_STARTED]) / os.sysconf("SC_CLK_TCK"), 0.0),
        last_call_s=max(time.time() - last_at, 0.0) if last_at else None,  # noqa: TID251 - it tells a date
        memory=memory_of(pid),
    )


def _short_name(proc: Path, pid: int) -> str:
    return (proc / str(pid) / "comm").read_text(errors="replace").rstrip("\n")


def _stat(proc: Path, pid: int) -> list[str]:
    return (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _command(proc: Path, pid: int) -> str:
    data = (proc / str(pid) / "cmdline").read_bytes()
    return data.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)[:_MOST_CHARACTERS]


def _number(text: str | None) -> int:
    return int(text) if text and len(text) <= _MOST_DIGITS else 0
