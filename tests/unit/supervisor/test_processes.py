"""How workers are found in /proc, whatever their titles say."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from isohub.supervisor.memory import Memory
from isohub.supervisor.processes import worker_processes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with a program (10), its forkserver (20), and no worker."""
    (tmp_path / "uptime").write_text("1000.00 3000.00\n")
    add(tmp_path, 10, "python", ppid=1, cmdline="python train.py")
    add(tmp_path, 20, "isohub-forkserv", ppid=10, cmdline="python -c import")
    return tmp_path


def add(proc: Path, pid: int, comm: str, *, ppid: int, cmdline: str, started_ticks: int = 90_000) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "comm").write_text(f"{comm}\n")
    numbers = ["S", str(ppid), *["0"] * 17, str(started_ticks), *["0"] * 30]
    (folder / "stat").write_text(f"{pid} ({comm}) {' '.join(numbers)}")
    (folder / "cmdline").write_bytes(cmdline.replace(" ", "\0").encode() + b"\0\0\0")


def test_worker_is_told_whole(proc: Path) -> None:
    """A worker's title, age and program are read from what the kernel shows of them."""
    last = int(time.time()) - 5
    title = f"isohub-worker a/b:v1@1a2b3c4: busy calls=12 handles=3 last={last}"
    add(proc, 30, "isohub-worker", ppid=20, cmdline=title)

    (one,) = worker_processes(proc)

    assert (one.pid, one.program_pid, one.program) == (30, 10, "python train.py")
    assert (one.label, one.commit, one.state) == ("a/b:v1@1a2b3c4", "1a2b3c4", "busy")
    assert (one.calls, one.handles, one.uptime_s, one.memory) == (12, 3, 100.0, Memory())
    assert one.last_call_s is not None
    assert 5 <= one.last_call_s < 60


def test_new_worker_has_no_counts(proc: Path) -> None:
    """A worker that was asked nothing yet has no last call; a folder has no commit, and any name."""
    add(proc, 30, "isohub-worker", ppid=20, cmdline="isohub-worker my: folder: idle")

    (one,) = worker_processes(proc)

    assert (one.label, one.commit, one.state) == ("my: folder", None, "idle")
    assert (one.calls, one.handles, one.last_call_s) == (0, 0, None)


def test_children_of_workers_are_none(proc: Path) -> None:
    """What a repository's code forked has the name of a worker, and is not listed."""
    add(proc, 30, "isohub-worker", ppid=20, cmdline="isohub-worker a/b: idle")
    add(proc, 31, "isohub-worker", ppid=30, cmdline="isohub-worker a/b: idle")

    assert [one.pid for one in worker_processes(proc)] == [30]


@pytest.mark.parametrize(
    "title",
    [
        pytest.param("", id="none"),
        pytest.param("isohub-worker", id="nothing told"),
        pytest.param("isohub-worker x: idle calls=-1 handles=0 last=0", id="negative"),
        pytest.param("python evil.py", id="another"),
    ],
)
def test_title_that_says_nothing(proc: Path, title: str) -> None:
    """A worker whose title makes no sense is listed all the same, as unknown."""
    add(proc, 30, "isohub-worker", ppid=20, cmdline=title)

    (one,) = worker_processes(proc)

    assert (one.label, one.state, one.calls) == ("", "unknown", 0)


def test_hostile_title_is_cut_and_cleaned(proc: Path) -> None:
    """Terminal escapes, endless names and endless numbers of a title reach nobody."""
    title = f"isohub-worker \x1b]0;owned\x07\u202e{'x' * 5000}: idle calls={'9' * 400} handles=1 last=0"
    add(proc, 30, "isohub-worker", ppid=20, cmdline=title)

    (one,) = worker_processes(proc)

    assert one.label == "?]0;owned??" + "x" * 189
    assert (one.calls, one.handles, one.last_call_s) == (0, 1, None)


def test_oldest_comes_first(proc: Path) -> None:
    """Workers are listed by age, and one that ended while it was looked at is left out."""
    add(proc, 30, "isohub-worker", ppid=20, cmdline="isohub-worker new: idle", started_ticks=95_000)
    add(proc, 31, "isohub-worker", ppid=20, cmdline="isohub-worker old: idle", started_ticks=91_000)
    add(proc, 32, "isohub-worker", ppid=20, cmdline="isohub-worker gone: idle")
    (proc / "32" / "stat").unlink()

    assert [one.label for one in worker_processes(proc)] == ["old", "new"]


def test_worker_in_reserve_is_ready(proc: Path) -> None:
    """A worker that was given no repository still has the command line of its forkserver."""
    add(proc, 30, "isohub-worker", ppid=20, cmdline="python -c from isohub.supervisor.orphans import main; main(3, 4)")

    (one,) = worker_processes(proc)

    assert (one.label, one.state) == ("", "ready")
