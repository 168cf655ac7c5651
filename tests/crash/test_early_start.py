"""A forkserver that is started before the program imports torch: used by the first load, and gone with the program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.programs import Program

pytestmark = pytest.mark.slow

BEGIN = """
import json, os, sys
import isohub
from isohub.supervisor import early

def tell(**told):
    print(json.dumps(told), flush=True)

early.start()
pid = early._early.server.pid
tell(pids=[pid], torch="torch" in sys.modules)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """A function that starts a program with an early forkserver; whatever it leaves behind fails the test."""
    programs: list[Program] = []

    def run(rest: str) -> Program:
        script = tmp_path / "program.py"
        script.write_text(BEGIN + rest)
        (tmp_path / "hubconf.py").write_text("def nothing():\n    return 3\n")
        programs.append(Program([str(script), str(tmp_path)], tmp_path / "tmp"))
        return programs[-1]

    yield run
    try:
        for program in programs:
            assert program.left() == []
            assert list(program.temporary.iterdir()) == []
    finally:
        for program in programs:
            program.close()


LOAD = """
value = isohub.load(sys.argv[1], "nothing", source="local")
tell(value=value, same=isohub.api._registry.forkserver_pid == pid)
isohub.shutdown()
value = isohub.load(sys.argv[1], "nothing", source="local")
tell(value=value, same=isohub.api._registry.forkserver_pid == pid)
"""


def test_first_load_uses_it(start: Callable[[str], Program]):
    """It is started without torch, the first load has its worker from it, and after its end there is another."""
    program = start(LOAD)

    assert program.told()["torch"] is False
    assert program.told() == {"value": 3, "same": True}
    assert program.told() == {"value": 3, "same": False}
    assert program.end() == (0, "", "")


@pytest.mark.parametrize("how", ["end", "error", "kill"])
def test_ends_with_a_program_that_never_loads(start: Callable[[str], Program], how: str):
    """It ends with the program, which does not wait for its imports."""
    program = start({"end": "", "error": "raise SystemExit(3)", "kill": "sys.stdin.readline()"}[how])
    program.told()

    if how == "kill":
        program.send(signal.SIGKILL)

    assert program.end()[0] == {"end": 0, "error": 3, "kill": -signal.SIGKILL}[how]
    if how != "kill":
        assert program.left(within_s=0) == []


FORK = """
child = os.fork()
if not child:
    os.close(1)
    sys.stdin.readline()
    os._exit(0)
tell(pids=[child])
"""


def test_fork_does_not_keep_it(start: Callable[[str], Program]):
    """A fork of the program that lives on keeps it from nothing."""
    program = start(FORK)
    forkserver = program.told()["pids"]
    child = program.told()["pids"]
    assert program.process.wait(timeout=60) == 0

    assert program.left(within_s=5) == child
    program.go_on()
    assert forkserver != child


WARM = """
isohub.warm(1, wait=True)
tell(pids=[*isohub.api._registry._idle.pids], same=isohub.api._registry.forkserver_pid == pid)
"""


def test_warm_uses_it(start: Callable[[str], Program]):
    """`isohub.warm` has workers in reserve from the forkserver that was started before torch was imported."""
    program = start(WARM)
    program.told()

    told = program.told()

    assert (len(told["pids"]), told["same"]) == (1, True)
    assert program.end() == (0, "", "")


BESIDE = """
isohub.shutdown()
steps = {}
isohub.trace.add_listener(lambda step: steps.setdefault(step.name, step))
try:
    isohub.load("git+file://" + sys.argv[1] + "/none.git@v1", "nothing")
except isohub.errors.ResolveError:
    tell(pids=[isohub.api._registry.forkserver_pid], workers=len(isohub.workers()), failed=list(steps))
isohub.load(sys.argv[1], "nothing", source="local")
begun = {name: step.start_s for name, step in steps.items()}
tell(beside=begun["supervisor.forkserver"] < begun["hub.resolve"], took=steps["supervisor.forkserver"].duration_s > 0)
"""


def test_starts_while_a_ref_is_resolved(start: Callable[[str], Program]):
    """The forkserver starts before the ref is resolved; a load that fails there has no worker, the next one has."""
    program = start("from isohub import api, trace\n" + BESIDE)
    program.told()

    told = program.told()

    assert (len(told["pids"]), told["workers"]) == (1, 0)
    assert "supervisor.launch" not in told["failed"]
    assert program.told() == {"beside": True, "took": True}
    assert program.end() == (0, "", "")
