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
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.killed_program import EVENTS, HUBCONF
from tests.helpers.repos import make_repo, url

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("ISOHUB_PARENT_KILLS", "10"))
SEED = int(os.environ.get("ISOHUB_PARENT_KILLS_SEED", "5"))
# Far above what a step takes here, so that only a hang meets it.
DEADLINE_S = 60.0
# How long a step takes is known once it was seen; before, this is drawn from.
FIRST_GUESS_S = 0.3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 30 * KILLS)]


class Victim:
    """A running program, its processes, and how far it is."""

    def __init__(self, repo: str, home: Path) -> None:
        self.temporary = home / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._pidfds: dict[int, int] = {}
        self._rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.killed_program", repo],
            cwd=ROOT,
            env={**os.environ, "TORCH_HOME": str(home), "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
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
            if pid not in self._pidfds:
                with contextlib.suppress(ProcessLookupError):
                    self._pidfds[pid] = os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill it, and then take in what it had told until then."""
        self._watch(iter(_descendants(self.process.pid)))
        self.process.kill()
        self.process.wait()

    def left(self) -> list[int]:
        """Return which of its processes are there after a time that is plenty."""
        deadline = time.monotonic() + DEADLINE_S
        waits = (
            (pid, select.select([fd], [], [], max(deadline - time.monotonic(), 0.0))[0]) for pid, fd in self._pids()
        )
        return [pid for pid, ended in waits if not ended]

    def _pids(self) -> list[tuple[int, int]]:
        return list(self._pidfds.items())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for fd in self._pidfds.values():
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


def memory_of_ours() -> list[str]:
    """Return the shared memory of isohub's that any process of this machine has open or mapped, by whom."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [place.name] * (place / "maps").read_text().count("memfd:isohub")
    return found


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


def test_killed_at_any_moment(tmp_path: Path, forkserver: int, monkeypatch: pytest.MonkeyPatch, record_property):
    """Wherever a program is killed, no process, memory, lock or file of it stays, and the cache is whole."""
    repo = url(make_repo(tmp_path / "owner" / "nets", {"v1": {"hubconf.py": HUBCONF}}), "v1")
    home = tmp_path / "home"
    home.mkdir()
    shared_before, memory_before = set(Path("/dev/shm").iterdir()), len(memory_of_ours())
    draw = random.Random(SEED)
    took_s: dict[str, float] = {}
    moments: list[str] = []
    processes = 0

    for number in range(KILLS):
        # Each event in turn, so that a small run has them all.
        until, part = EVENTS[number % len(EVENTS)], draw.random()
        victim = Victim(repo, home)
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
            processes += len(victim._pids())

            assert victim.left() == [], moments[-1]
        finally:
            victim.close()
        assert len(memory_of_ours()) == memory_before, moments[-1]
        assert set(Path("/dev/shm").iterdir()) == shared_before, moments[-1]
        assert locked(home) == [], moments[-1]
        assert list(victim.temporary.iterdir()) == [], moments[-1]

    # What was killed in the middle of a fetch, say, is no obstacle; and nothing is damaged.
    monkeypatch.setenv("TORCH_HOME", str(home))
    from isohub.hub.inventory import Inventory

    model = isohub.load(repo, "net")
    assert model(torch.ones(1, 64)).shape == (1, 64)
    inventory = Inventory()
    assert [str(one.commit) for one in inventory.checkouts()] == [model.isohub.commit]
    assert list(inventory.verify(inventory.items())) == []
    record_property("kills", KILLS)
    print(f"{KILLS} kills at {len(set(moments))} moments, {processes} processes of theirs, none left")
