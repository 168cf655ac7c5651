"""`kill -9` of a program at random moments: nothing of it stays, and what it shares with others is whole.

A moment is an event that the program tells, and a part of the time that the step which begins there takes. Both
are drawn by a seeded stream, so that a moment can be met again: `ISOHUB_PARENT_KILLS=200` is the full size,
`ISOHUB_PARENT_KILLS_SEED` another stream.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.killed_program import EVENTS, HUBCONF
from tests.helpers.programs import processes_with
from tests.helpers.repos import make_repo, url
from tests.helpers.warm import WarmPython

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("ISOHUB_PARENT_KILLS", "6"))
SEED = int(os.environ.get("ISOHUB_PARENT_KILLS_SEED", "5"))
# Far above what a step takes here, so that only a hang meets it.
DEADLINE_S = 60.0
# How long a step takes is known once it was seen; before, this is drawn from.
FIRST_GUESS_S = 0.3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 30 * KILLS)]


class Victim:
    """A running program, its processes, and how far it is."""

    def __init__(self, python: WarmPython, repo: str, home: Path) -> None:
        self.temporary = home / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.pids: dict[int, int] = {}
        self._rest = b""
        self.segments: set[str] = set()
        self.named_memory: set[str] = set()
        self.process = python.start(
            ["-m", "tests.helpers.killed_program", repo],
            cwd=ROOT,
            env={**os.environ, "TORCH_HOME": str(home), "TMPDIR": str(self.temporary)},
        )

    def next_event(self, within_s: float) -> str | None:
        """Return the next event; None if there is none in time."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                event, _, pids = line.decode().partition("\t")
                self._watch(map(int, pids.split()))
                if event != "pids":
                    return event
                continue
            if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 4096)
            assert data, "the program ended by itself"
            self._rest += data

    def _watch(self, pids: Iterator[int]) -> None:
        for pid in pids:
            if pid not in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    self.pids[pid] = os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill it, having noted its processes and its shared memory."""
        self._watch(iter(_descendants(self.process.pid)))
        everyone = [self.process.pid, *self.pids]
        self.segments = set().union(*map(segments_of, everyone))
        self.named_memory = set().union(*map(named_memory_of, everyone))
        self.process.kill()
        self.process.wait()

    def left(self) -> list[int]:
        """Return which of its processes are there after a time that is plenty."""
        deadline = time.monotonic() + DEADLINE_S
        # One that was started between the look and the kill.
        self._watch(iter(processes_with(f"TMPDIR={self.temporary}")))
        found = []
        for pid, fd in self.pids.items():
            if not select.select([fd], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                found.append(pid)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.close()
        for fd in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def named_memory_of(pid: int) -> set[str]:
    """Return the shared memory that a process has mapped under a name, which would stay behind."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[5] for line in lines if " /dev/shm/" in line}
    return set()


def segments_of(pid: int) -> set[str]:
    """Return isohub's shared memory that a process has mapped, each piece by its number in the kernel."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "memfd:isohub" in line}
    return set()


def locked(folder: Path) -> list[str]:
    """Return the files below a folder that somebody holds a lock on."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".lock", ".lease"):
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(str(path))
    return found


def test_killed_at_any_moment(
    tmp_path: Path, forkserver: int, warm_python: WarmPython, monkeypatch: pytest.MonkeyPatch
):
    """Wherever a program is killed, no process, memory, lock or file of it stays, and the cache is whole."""
    repo = url(make_repo(tmp_path / "owner" / "nets", {"v1": {"hubconf.py": HUBCONF}}), "v1")
    home = tmp_path / "home"
    home.mkdir()
    draw = random.Random(SEED)
    took_s: dict[str, float] = {}
    moments: list[str] = []
    processes = segments = 0

    for number in range(KILLS):
        # Each event in turn, so that a small run has them all.
        until, part = EVENTS[number % len(EVENTS)], draw.random()
        victim = Victim(warm_python, repo, home)
        try:
            began = time.monotonic()
            event = victim.next_event(DEADLINE_S)
            while event != until:
                before, began = event, time.monotonic()
                event = victim.next_event(DEADLINE_S)
                assert event is not None, f"it hangs in {before!r}"
                took_s[str(before)] = time.monotonic() - began
            # A part of the step; should the next event come first, that is the moment.
            victim.next_event(part * took_s.get(until, FIRST_GUESS_S))
            victim.kill()
            moments.append(f"{until}+{part:.2f}")
            print(number + 1, moments[-1], len(victim.pids), len(victim.segments), flush=True)  # -s shows how far it is
            processes += len(victim.pids)

            assert victim.left() == [], moments[-1]
        finally:
            victim.close()
        assert processes_with(f"TMPDIR={victim.temporary}") == [], moments[-1]
        everybody = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
        assert victim.segments.isdisjoint(set().union(*map(segments_of, everybody))), moments[-1]
        segments += len(victim.segments)
        assert victim.named_memory == set(), moments[-1]
        assert locked(home) == [], moments[-1]
        # torch's own cache stays, as with every program that makes an optimizer.
        files = [path.name for path in victim.temporary.iterdir() if not path.name.startswith("torchinductor_")]
        assert files == [], moments[-1]

    # What was killed in the middle of a fetch, say, is no obstacle; and nothing is damaged.
    monkeypatch.setenv("TORCH_HOME", str(home))
    from isohub.hub.inventory import Inventory

    model = isohub.load(repo, "net")
    assert model(torch.ones(1, 64)).shape == (1, 64)
    inventory = Inventory()
    assert [str(one.commit) for one in inventory.checkouts()] == [model.isohub.commit]
    assert list(inventory.verify(inventory.items())) == []
    print(f"{KILLS} kills: {processes} processes and {segments} segments of theirs, none left")
