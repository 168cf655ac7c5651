"""However a program ends, nothing of it stays; and whichever of its processes ends, it goes on or says why not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError
from tests.helpers.leaks import nobodys_shared_memory
from tests.helpers.programs import Program, wait_for_end
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPython

# Each program has a forkserver of its own, which imports torch.
pytestmark = pytest.mark.slow

HUBCONF = """
    import threading
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x, how=""):
            if how == "print":
                print("worker prints")
            elif how:
                open(how, "w").close()
                threading.Event().wait()
            return x * self.weight

    def net(say=""):
        if say:
            print(say)
        return Net()
"""
# What every program begins with: `model` and `other` in two workers, `tell` for a line of JSON.
BEGIN = """
import json, os, signal, sys, threading, time
import torch, isohub
from isohub import api, errors

REPO, BUSY = {repo!r}, {busy!r}
X = torch.tensor([1.0, 10.0, 100.0])

def tell(value):
    sys.__stdout__.write(json.dumps(value) + chr(10))
    sys.__stdout__.flush()

def pids():
    return [api._registry.forkserver_pid, *(worker.pid for worker in isohub.workers())]

def keep_busy(model):
    # A named pipe: whoever opens it to read waits until the worker is inside the call.
    thread = threading.Thread(target=call, args=(model,), daemon=True)
    thread.start()
    open(BUSY).close()
    return thread

def call(model):
    try:
        model(X, BUSY)
    except errors.WorkerError:
        pass

os.mkfifo(BUSY)
model = isohub.load(REPO, "net")
other = isohub.load(REPO, "net", isolate=isohub.Isolation(dedicated=True))
"""
WAIT = "sys.stdin.readline()\n"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return url(make_repo(tmp_path_factory.mktemp("owner") / "repo", {"v1": {"hubconf.py": HUBCONF}}), "v1")


Start = Callable[..., Program]


@pytest.fixture
def start(repo: str, tmp_path: Path, warm_python: WarmPython) -> Iterator[Start]:
    """A function that starts a program; whatever it leaves behind fails the test."""
    shared_memory = nobodys_shared_memory()
    programs: list[Program] = []
    busy = tmp_path / "busy"

    def run(script: str, how: str = "file") -> Program:
        text = BEGIN.format(repo=repo, busy=str(busy)) + dedent(script)
        path = tmp_path / "program.py"
        path.write_text(text)
        arguments, stdin = {"file": ([str(path)], ""), "-c": (["-c", text], ""), "stdin": (["-"], text)}[how]
        programs.append(Program(arguments, tmp_path / "tmp", stdin, python=warm_python if how == "file" else None))
        return programs[-1]

    yield run
    try:
        for program in programs:
            assert program.process.poll() is not None, "the program goes on"
            assert program.left() == []
            assert list(program.temporary.iterdir()) == []
        until(lambda: nobodys_shared_memory() <= shared_memory)  # another program may just be tidying up
    finally:
        for program in programs:
            program.close()


def test_killed_program_leaves_nothing(start: Start):
    """`kill -9` of a program with an idle and a busy worker ends all of its processes."""
    program = start("keep_busy(model); tell({'pids': pids()})\n" + WAIT)
    assert len(program.told()["pids"]) == 3

    program.send(signal.SIGKILL)

    assert program.end()[0] == -signal.SIGKILL
    assert program.left(within_s=5) == []


def test_program_killed_while_it_starts(start: Start):
    """`kill -9` while the forkserver still imports torch ends the forkserver as well."""
    program = start("""
        isohub.shutdown()
        api._registry.warm_up()
        tell({"pids": pids()})
        sys.stdin.readline()
    """)
    assert len(program.told()["pids"]) == 1

    program.send(signal.SIGKILL)
    program.end()

    assert program.left(within_s=20) == []


ENDINGS = [
    pytest.param("", 0, "", id="end of the script"),
    pytest.param("sys.exit(5)", 5, "", id="sys.exit"),
    pytest.param("raise LookupError('the end')", 1, "LookupError: the end", id="exception"),
    pytest.param("isohub.shutdown(); isohub.shutdown()", 0, "", id="shutdown"),
]


@pytest.mark.parametrize(("ending", "status", "last_line"), ENDINGS)
def test_normal_end(start: Start, ending: str, status: int, last_line: str):
    """A program that ends by itself ends at once, with nothing on its stderr but its own."""
    program = start(f"tell({{'pids': pids()}})\n{WAIT}{ending}\n")
    program.told()
    begun = time.monotonic()
    program.go_on()

    ended, out, err = program.end()

    assert (ended, out, err.strip().rpartition("\n")[2]) == (status, "", last_line)
    assert "isohub" not in err
    assert program.left(within_s=0.5) == []
    assert time.monotonic() - begun < 10


def test_end_while_a_thread_is_in_a_call(start: Start):
    """A call of a daemon thread does not hold the end up for longer than a worker's time to close."""
    program = start(f"keep_busy(model); tell({{'pids': pids()}})\n{WAIT}")
    program.told()
    begun = time.monotonic()
    program.go_on()

    assert program.end() == (0, "", "")
    assert program.left(within_s=0.5) == []
    assert time.monotonic() - begun < 12


def test_end_while_many_calls_are_under_way(start: Start):
    """Calls of two workers, waits for a turn, a hook's call and awaited calls do not hold the end up either."""
    program = start("""
        import asyncio

        slow = isohub.load(REPO, "net", isolate=isohub.Isolation(dedicated=True))
        slow.register_forward_hook(lambda *_: call(other))
        keep_busy(other)
        threads = [threading.Thread(target=call, args=(one,), daemon=True) for one in (model, other) * 3]
        threads += [threading.Thread(target=lambda: slow(X), daemon=True)]

        async def wait():
            await asyncio.wait_for(asyncio.gather(*[isohub.acall(call, one) for one in (model, other)]), 0.1)

        for thread in threads:
            thread.start()
        try:
            asyncio.run(wait())
        except asyncio.TimeoutError:
            tell({"pids": pids()})
    """)
    program.told()
    begun = time.monotonic()

    assert program.end() == (0, "", "")
    assert program.left(within_s=0.5) == []
    assert time.monotonic() - begun < 12


def test_killed_program_leaves_no_daemon(start: Start):
    """`kill -9` of a program ends what its workers have started, also in a session of its own."""
    program = start("""
        def daemon(_):
            import os, subprocess
            read, write = os.pipe()
            subprocess.run(["/bin/sh", "-c", "setsid sleep 1000 > /dev/null & echo $!"], stdout=write)
            os.close(write)
            return int(open(read).read())

        tell({"pids": [*pids(), isohub.run_in(model, daemon), isohub.run_in(other, daemon)]})
        sys.stdin.readline()
    """)
    assert len(program.told()["pids"]) == 5

    program.send(signal.SIGKILL)

    assert program.end()[0] == -signal.SIGKILL
    assert program.left(within_s=5) == []


def test_interrupt_in_a_call(start: Start):
    """Ctrl-C during a call is a KeyboardInterrupt, and the next load gets a new worker."""
    program = start("""
        threading.Thread(target=lambda: (open(BUSY).close(), tell({"pids": pids()})), daemon=True).start()
        try:
            model(X, BUSY)
        except KeyboardInterrupt:
            tell("interrupted")
        try:
            model(X)
        except errors.BrokenWorkerError as error:
            tell(str(error))
        again = isohub.load(REPO, "net")
        tell([again(X).tolist(), other(X).tolist(), model.weight.tolist(), again.isohub.pid != model.isohub.pid])
    """)
    program.told()

    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does

    assert program.told() == "interrupted"
    assert "KeyboardInterrupt broke off a call" in program.told()
    assert program.told() == [[1.0, 20.0, 300.0], [1.0, 20.0, 300.0], [1.0, 2.0, 3.0], True]
    assert program.end() == (0, "", "")


def test_fork_cannot_use_the_model(start: Start):
    """A fork of the program is told that the model is not its own, and its end ends none of the workers."""
    program = start("""
        keep_busy(other)  # the fork finds the lock of this worker taken
        child = os.fork()
        if not child:
            for used in (lambda: model(X), lambda: other(X), lambda: model.nothing, lambda: model.eval()):
                try:
                    used()
                except errors.ForeignProcessError as error:
                    tell(str(error))
            again = isohub.load(REPO, "net")  # one of its own
            tell([again(X).tolist(), model.weight.tolist(), isohub.workers()[0].pid == again.isohub.pid])
            sys.exit(0)
        status = os.waitpid(child, 0)[1]
        with torch.no_grad():  # a graph would be released just when the state is looked at
            tell([status, model(X).tolist(), [worker.state for worker in isohub.workers()]])
        os._exit(0)
    """)

    for _ in range(4):
        assert f"belongs to process {program.process.pid}, and this is process" in program.told()
    assert program.told() == [[1.0, 20.0, 300.0], [1.0, 2.0, 3.0], True]
    assert program.told() == [0, [1.0, 20.0, 300.0], ["idle", "busy"]]
    assert program.end() == (0, "", "")


def test_fork_does_not_keep_the_workers(start: Start):
    """When the program is killed, its forkserver and workers end, although a fork of it lives on."""
    program = start("""
        tell({"pids": pids()})
        child = os.fork()
        if not child:
            tell({"fork": os.getpid()})
            signal.pause()
        sys.stdin.readline()
    """)
    program.told()
    fork = program.told()["fork"]
    try:
        os.kill(program.process.pid, signal.SIGKILL)
        assert program.left(within_s=5) == []
        os.kill(fork, 0)  # it is still there
    finally:
        os.kill(fork, signal.SIGKILL)
    program.end()


@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_no_main_guard_is_needed(start: Start, how: str):
    """A script without `if __name__ == "__main__"` runs once, also where there is no file."""
    program = start("tell([__name__, model(X).tolist(), other(X).tolist()])\n", how)

    assert program.told() == ["__main__", [1.0, 20.0, 300.0], [1.0, 20.0, 300.0]]
    assert program.end() == (0, "", "")


def test_order_of_output(start: Start):
    """What a worker prints in a call stands before what the program prints next; verbose=False mutes a load."""
    program = start("""
        for i in range(20):
            print("before", i)
            model(X, "print")
            print("after", i)
        isohub.load(REPO, "net", "loud")
        isohub.load(REPO, "net", "muted", verbose=False)
        print("end")
    """)
    expected = [line for i in range(20) for line in (f"before {i}", "worker prints", f"after {i}")]

    status, out, err = program.end()

    assert [*expected, "loud", "end"] == out.splitlines()
    assert (status, err) == (0, "")


def test_replaced_stdout_gets_the_output(repo: str, forkserver: int, capsys: pytest.CaptureFixture[str]):
    """Output goes to sys.stdout as it is at that moment, which in a notebook is the cell's."""
    model = isohub.load(repo, "net", "at load")
    model(torch.ones(3), "print")

    assert capsys.readouterr().out == "at load\nworker prints\n"
    model(torch.ones(3), "print")
    assert capsys.readouterr().out == "worker prints\n"


def test_killed_worker(repo: str, forkserver: int):
    """`kill -9` of a worker is told as such; weights stay readable, and the next load gets a new worker."""
    model = isohub.load(repo, "net")
    pid = model.isohub.pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)

    with pytest.raises(BrokenWorkerError, match="was ended by SIGKILL") as caught:
        model(torch.ones(3))

    assert (caught.value.signal, caught.value.exit_code) == ("SIGKILL", None)
    assert torch.equal(torch.tensor([1.0, 2.0, 3.0]), model.state_dict()["weight"])
    assert isohub.load(repo, "net")(torch.ones(3)).tolist() == [1.0, 2.0, 3.0]
    assert pid not in [worker.pid for worker in isohub.workers()]


def test_killed_forkserver(start: Start):
    """`kill -9` of the forkserver ends the workers; the program is told so and can load again."""
    program = start("""
        forkserver = api._registry.forkserver_pid
        tell({"pids": pids(), "forkserver": forkserver})
        sys.stdin.readline()
        try:
            model(X)
        except errors.BrokenWorkerError as error:
            tell(str(error))
        again = isohub.load(REPO, "net")
        tell([again(X).tolist(), model.weight.tolist(), api._registry.forkserver_pid != forkserver])
    """)
    os.kill(program.told()["forkserver"], signal.SIGKILL)
    assert program.left(within_s=5) == []
    program.go_on()

    assert "nobody knows how: the forkserver ended with it" in program.told()
    assert program.told() == [[1.0, 20.0, 300.0], [1.0, 2.0, 3.0], True]
    assert program.end() == (0, "", "")
