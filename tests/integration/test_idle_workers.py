"""Workers in reserve: taken by loads, filled up again, and never more of them than were asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub import api
from isohub.errors import ResolveError
from isohub.supervisor.idle import count_asked_for
from isohub.supervisor.processes import worker_processes
from tests.helpers.programs import Program, wait_for_end
from tests.helpers.waiting import until

HUBCONF = """
    import os
    import resource
    import torch

    def pid():
        return os.getpid()

    def settings():
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return os.environ.get("MARK"), torch.get_num_threads(), limit, os.getcwd() != "/"
"""
ROOT = Path(__file__).parents[2]
OWN = isohub.Isolation(dedicated=True)


@pytest.fixture
def repo(repo_of: Callable[..., str]) -> str:
    return repo_of(HUBCONF)


@pytest.fixture
def keep(forkserver: int) -> Iterator[Callable[[int], list[int]]]:
    """A function that keeps so many workers in reserve, and returns their process ids; none is left afterwards."""

    def kept(count: int) -> list[int]:
        isohub.warm(count, wait=True)
        until(lambda: len(reserve()) == count)
        return reserve()

    yield kept
    left = reserve()
    isohub.warm(0)
    for pid in left:
        wait_for_end(pid)


def reserve() -> list[int]:
    return list(api._registry._idle.pids)


def test_load_takes_one(repo: str, keep: Callable[[int], list[int]]):
    """Each load that needs a worker takes one from the reserve, which is filled up again."""
    first, second = keep(2)

    taken = [isohub.load(repo, "pid", isolate=OWN) for _ in range(2)]

    assert [first, second] == taken
    until(lambda: len(reserve()) == 2)
    assert set(reserve()).isdisjoint(taken)


def test_shared_worker_takes_none(repo: str, keep: Callable[[int], list[int]]):
    """A load that finds a worker of its commit leaves the reserve alone."""
    worker = isohub.load(repo, "pid")
    before = keep(1)

    assert isohub.load(repo, "pid") == worker
    assert reserve() == before


def test_settings_reach_it(repo: str, keep: Callable[[int], list[int]]):
    """A worker from the reserve has the environment, threads, limits and folder of its load, as a new one has."""
    keep(1)
    own = isohub.Isolation(dedicated=True, env={"MARK": "mine"}, threads=1, open_files=300)

    assert isohub.load(repo, "settings", isolate=own) == ("mine", 1, 300, True)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_died_is_replaced(repo: str, keep: Callable[[int], list[int]], stop: signal.Signals):
    """When a worker in reserve dies, another takes its place without a load."""
    (pid,) = keep(1)

    os.kill(pid, stop)

    until(lambda: reserve() and reserve() != [pid])
    assert isohub.load(repo, "pid", isolate=OWN) != pid


def test_dead_one_is_not_taken(repo: str, keep: Callable[[int], list[int]]):
    """A load that comes right after the death of all in reserve gets a worker that lives."""
    before = keep(2)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)

    assert isohub.load(repo, "pid", isolate=OWN) not in before


def test_not_replaced_without_end(repo: str, keep: Callable[[int], list[int]]):
    """Where one after the other dies, replacing them ends, and the next load takes it up again."""
    keep(1)
    killed: set[int] = set()

    def kill() -> bool:
        for pid in set(reserve()) - killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return len(killed) == 4 and not reserve()

    until(kill)
    assert isohub.load(repo, "pid", isolate=OWN) not in killed
    until(lambda: len(reserve()) == 1)


def test_fewer(keep: Callable[[int], list[int]]):
    """Those that are too many end, and no others come in their place."""
    before = keep(3)

    isohub.warm(1)

    assert before[:1] == reserve()
    for pid in before[1:]:
        wait_for_end(pid)
    assert before[:1] == reserve()


def test_who_tells_of_them(repo: str, keep: Callable[[int], list[int]]):
    """`workers()` lists workers that have a repository; `isohub ps` shows those in reserve too, as ready."""
    (pid,) = keep(1)
    isohub.load(repo, "pid")
    until(lambda: reserve() and reserve() != [pid])

    assert [pid] == [worker.pid for worker in isohub.workers()]
    shown = {one.pid: one for one in worker_processes()}
    assert ("ready", "", os.getpid()) == (*_shown(shown[reserve()[0]]), shown[reserve()[0]].program_pid)
    assert shown[pid].state == "idle"


def _shown(one: Any) -> tuple[str, str]:
    return one.state, one.label


def test_load_that_fails(keep: Callable[[int], list[int]], tmp_path: Path):
    """A load that finds no repository takes nothing from the reserve."""
    before = keep(1)

    with pytest.raises(ResolveError):
        isohub.load(f"git+file://{tmp_path}/none.git@v1", "pid")

    assert reserve() == before


def test_fork_of_the_program(repo: str, keep: Callable[[int], list[int]]):
    """A fork of the program has none in reserve, and those of the program stay when it ends."""
    before = keep(1)
    child = os.fork()
    if child == 0:
        os._exit(len(reserve()))

    assert os.waitpid(child, 0)[1] == 0
    assert reserve() == before
    assert [isohub.load(repo, "pid", isolate=OWN)] == before


def test_restarted_worker_is_from_the_reserve(repo_of: Callable[..., str], keep: Callable[[int], list[int]]):
    """A worker that is started again after its death is taken from the reserve."""
    repo = repo_of("import torch\n\ndef net():\n    return torch.nn.Linear(2, 2)\n")
    net = isohub.load(repo, "net", isolate=isohub.Isolation(restart="on-crash"))
    (pid,) = keep(1)
    os.kill(net.isohub.pid, signal.SIGKILL)
    wait_for_end(net.isohub.pid)

    net(torch.ones(2))

    assert net.isohub.pid == pid


@pytest.mark.parametrize(
    ("workers", "kind", "words"),
    [
        pytest.param(-1, ValueError, "from 0 to 64 workers in reserve, not -1", id="negative"),
        pytest.param(65, ValueError, "not 65", id="too many"),
        pytest.param(True, TypeError, "not True", id="bool"),
        pytest.param("2", TypeError, "not '2'", id="text"),
    ],
)
def test_counts_that_make_no_sense(workers: Any, kind: type[Exception], words: str):
    """`warm` says what it takes."""
    with pytest.raises(kind, match=words):
        isohub.warm(workers)


SCRIPT = f"""
import json, os, sys
sys.path.append({str(ROOT)!r})
import isohub
from isohub import api
from tests.helpers.waiting import until

def tell():
    idle = api._registry._idle
    until(lambda: len(idle.pids) == idle.wanted)
    print(json.dumps({{"pids": [api._registry.forkserver_pid, *idle.pids]}}), flush=True)
    sys.stdin.readline()
"""
LOAD = 'isohub.load(sys.argv[1], "pid", isolate=isohub.Isolation(dedicated=True), verbose=False)\n'


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "exit", "shutdown"])
def test_end_of_the_program(repo: str, tmp_path: Path, end: str):
    """However a program ends, those in reserve end with it; `shutdown` ends them as well."""
    rest = {"kill": "", "exit": "", "shutdown": "isohub.shutdown()\nsys.stdin.readline()"}[end]
    script = tmp_path / "program.py"
    script.write_text(f"{SCRIPT}\nisohub.warm(2, wait=True)\ntell()\n{rest}\n")
    program = Program([str(script), repo], tmp_path / "tmp")
    try:
        assert len(program.told()["pids"]) == 3
        if end == "kill":
            program.send(signal.SIGKILL)
        else:
            program.go_on()
        assert program.left(within_s=5) == []
    finally:
        program.close()


@pytest.mark.slow
def test_variable(repo: str, tmp_path: Path):
    """`ISOHUB_IDLE_WORKERS` keeps so many in reserve from the first load on, after a death of the forkserver too."""
    script = tmp_path / "program.py"
    script.write_text(f"{SCRIPT}\n{LOAD}tell()\n{LOAD}tell()\n")
    program = Program([str(script), repo], tmp_path / "tmp", variables={"ISOHUB_IDLE_WORKERS": "1"})
    try:
        forkserver, *idle = program.told()["pids"]
        assert len(idle) == 1
        os.kill(forkserver, signal.SIGKILL)
        assert program.left(within_s=5) == []
        program.go_on()
        again, *others = program.told()["pids"]
        assert (len(others), again == forkserver, others == idle) == (1, False, False)
    finally:
        program.close()


@pytest.mark.parametrize("text", ["many", "-1", "65", "1.5", "²"])
def test_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, text: str):
    """A value that is no number of workers is named by whoever reads it."""
    monkeypatch.setenv("ISOHUB_IDLE_WORKERS", text)

    with pytest.raises(ValueError, match=f"ISOHUB_IDLE_WORKERS='{text}' is no number of workers"):
        count_asked_for()
