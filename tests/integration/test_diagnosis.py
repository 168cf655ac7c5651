"""What is told of workers: by the program that has them, by `isohub ps`, by `ps`, in logs; and `isohub doctor`."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.cli import invoke, run
from tests.helpers.programs import Program
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPython

HUBCONF = """
    import os, torch

    def net(width=4):
        return torch.nn.Linear(width, 2)

    def wait(pid, gate):
        with open(gate) as opened:
            opened.read()
        return os.getpid()

    def box():
        return object()
"""


@pytest.fixture
def repo(tmp_path: Path, forkserver: int) -> str:
    return url(make_repo(tmp_path / "owner" / "nets", {"v1": {"hubconf.py": HUBCONF}}), "v1")


def comm_and_title(pid: int) -> tuple[str, str]:
    place = Path(f"/proc/{pid}")
    return (place / "comm").read_text().strip(), (place / "cmdline").read_bytes().rstrip(b"\0").decode()


def test_status(repo: str):
    """A worker's status tells what it is, how much it did, what is held of it, and its memory."""
    model = isohub.load(repo, "net", 512)
    (worker,) = isohub.workers()
    before = worker.status()
    boxes = [isohub.load(repo, "box") for _ in range(3)]
    model(torch.ones(512))
    after = worker.status()

    assert (after.pid, after.label, after.state) == (model.isohub.pid, worker.label, "idle")
    assert (after.repo, after.ref, after.commit) == (model.isohub.repo, "v1", model.isohub.commit)
    assert (after.calls - before.calls, after.handles - before.handles) == (4, 3)
    assert after.weights_bytes >= 512 * 2 * 4
    assert 0 <= after.last_call_s <= after.uptime_s < 120
    assert after.memory.private_bytes > 1 << 20
    assert after.memory.shared_bytes > 10 << 20
    del boxes


def test_status_of_the_dead(repo: str):
    """A worker that has ended still tells what it was, and takes no memory."""
    isohub.load(repo, "net")
    (worker,) = isohub.workers()
    worker.close()
    status = worker.status()

    assert (status.state, status.memory.private_bytes) == ("closed", None)


def test_names_in_ps(repo: str, forkserver: int, tmp_path: Path):
    """Anybody's `ps` shows what a worker is for, whether it works and how much it did, and which is the forkserver."""
    model = isohub.load(repo, "net")
    (worker,) = isohub.workers()
    comm, idle = comm_and_title(worker.pid)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = f"import time; until = time.time() + 60\nwith open({str(gate)!r}, 'w'):\n"
    program += f"    while b': busy calls=1 ' not in open('/proc/{worker.pid}/cmdline', 'rb').read():\n"
    program += "        assert time.time() < until\n"
    seen = subprocess.Popen([sys.executable, "-c", program])
    isohub.load(repo, "wait", 0, gate)  # until the other process has seen it busy

    assert seen.wait(60) == 0
    assert comm == "isohub-worker"
    assert re.fullmatch(rf"isohub-worker {re.escape(worker.label)}: idle calls=1 handles=1 last=\d+", idle)
    assert comm_and_title(isohub.api._registry.forkserver_pid)[0] == "isohub-forkserv"
    del model


def test_titles_do_not_reach_into_the_environment(repo: str):
    """A label of any length is cut to the room that there is, and the environment behind it stays what it was."""
    long = make_repo(Path(f"{repo.removeprefix('git+file://').split('@')[0]}-{'n' * 150}"), {
        "b" * 200: {"hubconf.py": "import os\n\ndef environ():\n    return open('/proc/self/environ').read()\n"}
    })  # fmt: skip
    environ = isohub.load(url(long, "b" * 200), "environ")
    (worker,) = isohub.workers()
    title = comm_and_title(worker.pid)[1]

    assert all("=" in line for line in environ.rstrip("\0").split("\0"))
    assert "isohub-worker" not in environ
    assert title.startswith("isohub-worker owner/nets-nnnnnn")


@pytest.fixture
def program(repo: str, tmp_path: Path) -> Iterator[Program]:
    """Another program, with one worker that was called three times."""
    script = f"""
import isohub, json, os, torch
model = isohub.load({repo!r}, "net")
outputs = [model(torch.ones(4)) for _ in range(2)]
(worker,) = isohub.workers()
print(json.dumps({{"pids": [os.getpid(), worker.pid], "label": worker.label}}), flush=True)
input()
"""
    path = tmp_path / "program.py"
    path.write_text(script)
    program = Program([str(path)], tmp_path / "tmp")
    yield program
    program.close()


@pytest.mark.slow
def test_ps_sees_other_programs(program: Program):
    """`isohub ps` finds the workers of another program, and tells whose they are and what they did."""
    told = program.told()

    listed = json.loads(invoke("ps", "--json").stdout)["workers"]
    (one,) = [one for one in listed if one["pid"] == told["pids"][1]]
    table = invoke("ps", COLUMNS="200").stdout

    assert (one["program_pid"], one["label"], one["state"]) == (told["pids"][0], told["label"], "idle")
    # The module, and the graphs of two outputs.
    assert (one["calls"], one["handles"], one["commit"]) == (3, 3, told["label"].rpartition("@")[2])
    assert one["program"].endswith("program.py")
    assert one["private_bytes"] > 1 << 20
    (row,) = [
        line.split() for line in table.splitlines() if line.startswith(str(one["pid"])) or f" {one['pid']} " in line
    ]
    assert row[:6] == [str(one["pid"]), str(one["program_pid"]), told["label"], "idle", "3", "3"]

    program.process.kill()
    until(lambda: all(one["pid"] != told["pids"][1] for one in json.loads(invoke("ps", "--json").stdout)["workers"]))


LOAD = """
import isohub, sys, torch
model = isohub.load(sys.argv[1], "net")
print(model(torch.ones(4)).shape)
"""


def run_with(python: WarmPython, repo: str, **variables: str) -> list[str]:
    done = python.run(["-c", LOAD, repo], env={**os.environ, **variables})
    assert (done.returncode, done.stdout) == (0, "torch.Size([2])\n")
    return done.stderr.splitlines()


@pytest.mark.slow
def test_log_and_frames_when_asked(repo: str, warm_python: WarmPython):
    """ISOHUB_LOG=1 prints a line for each step that ended, ISOHUB_DEBUG=1 one for each frame; by default is silence."""
    isohub.list(repo)  # fetches it, which is told in any case
    lines = run_with(warm_python, repo, ISOHUB_LOG="1", ISOHUB_DEBUG="1")
    steps = [line.split(": ", 1)[1].split(" ")[:2] for line in lines if " DEBUG isohub." in line]
    frames = [line.split(" ", 2)[2] for line in lines if line.startswith("isohub ")]

    assert len(steps) + len(frames) == len(lines)
    assert [name for name, _ in steps if name.startswith("model")] == ["model.build", "model.load"]
    assert ["supervisor.launch", "complete"] in steps
    assert {state for _, state in steps} == {"complete"}
    assert frames[0].startswith("< Hello(")
    assert any(line.startswith("> Request(verb='call', handle=1, ") and "float32[4]" in line for line in frames)
    assert any(line.startswith("< Returned(payload=float32[2]") for line in frames)
    assert run_with(warm_python, repo) == []


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What it finds on a machine without git, with few descriptors and a torch home that does not exist yet."""
    home = tmp_path_factory.mktemp("doctor")

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    done = subprocess.run(
        [sys.executable, "-m", "isohub", "doctor", "--json"],
        env={**os.environ, "PATH": str(home), "TORCH_HOME": str(home / "new")},
        capture_output=True, text=True, check=False, preexec_fn=few,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return {one["check"]: one for one in json.loads(done.stdout)["findings"]}


@pytest.mark.slow
class TestDoctor:
    """`isohub doctor`: every check is told, and what fails says what to do."""

    def test_all_is_told(self, findings: dict[str, dict[str, str]]):
        """Each check is a line; what is well says nothing to do, and what is not does."""
        assert list(findings) == [
            *("system", "memory that is sealed", "process descriptors", "inherited death", "/proc"),
            *("equal weights", "limits"),
            *("memory", "packages", "torch", "cache", "git", "worker"),
        ]
        assert {one["state"] for one in findings.values()} == {"ok", "warning"}
        assert all((one["state"] == "ok") is (one["advice"] == "") for one in findings.values())

    def test_what_is_missing_is_a_warning(self, findings: dict[str, dict[str, str]]):
        """Without git, and with few descriptors, it warns and says what to do."""
        assert (findings["git"]["state"], findings["git"]["found"]) == ("warning", "not on PATH")
        assert findings["limits"]["state"] == "warning"
        assert "raise ulimit -n" in findings["limits"]["advice"]

    def test_worker_really_starts(self, findings: dict[str, dict[str, str]]):
        """Two workers are started, and it tells in what time they answered."""
        assert re.fullmatch(r"the first answers in [\d.]+ s, a further one in \d+ ms", findings["worker"]["found"])

    def test_failure(self, tmp_path: Path):
        """Where no worker can start, it says so, shows where to look, and ends with 1."""
        (tmp_path / "torch.py").write_text("raise ImportError('torch is broken here')\n")

        done = run("doctor", PYTHONPATH=str(tmp_path))

        assert done.returncode == 1
        assert re.search(r"^torch +failed +ImportError: torch is broken here", done.stdout, re.MULTILINE)
        assert "torch: install torch 2.4 or newer in the interpreter that runs isohub" in done.stdout


def test_doctor_is_a_command_of_the_program():
    """`isohub doctor --help` and `isohub ps --help` answer without torch."""
    commands: list[Callable[[], str]] = [
        lambda: invoke("doctor", "--help").stdout,
        lambda: invoke("ps", "--help").stdout,
    ]

    assert ["Usage: isohub doctor" in commands[0](), "Usage: isohub ps" in commands[1]()] == [True, True]
