"""Ways in which a repository's code can end or fail, and what is told of them, beside `test_crash_table.py`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, RemoteError, WorkerStartError, WorkerTimeoutError
from tests.helpers.programs import wait_for_end
from tests.helpers.repos import make_repo, url

HUBCONF = """
    import torch
    from crash import crash_at

    crash_at("import")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x):
            crash_at("forward")
            return x * self.weight

        @property
        def status(self):
            crash_at("attribute")
            return "well"

    def net():
        crash_at("entrypoint")
        return Net()
"""
# The file that $CRASH names says where and how; it is taken away first, so that the next try goes well.
CRASH = """
    import faulthandler
    import os
    import pathlib
    import sys
    import threading

    class ModelError(ValueError):
        pass

    def raise_builtin():
        raise ValueError("no such size", 3)

    def raise_own():
        raise ModelError("no such size")

    def raise_caused():
        try:
            raise_builtin()
        except ValueError as error:
            raise RuntimeError("cannot load weights") from error

    def flood(stream=None):
        for i in range(50_000):
            print(f"line {i}".ljust(99), file=stream or sys.stderr)

    def flood_and_die():
        flood()
        os._exit(4)

    def speak_and_die():
        print("nearly there", file=sys.stderr)
        os.write(2, b"out of memory\\n")
        os._exit(137)

    HOW = {
        "raise_own": raise_own,
        "raise_caused": raise_caused,
        "exit_0": lambda: sys.exit(0),
        "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
        "os_exit_0": lambda: os._exit(0),
        "segv": faulthandler._sigsegv,
        "abort": os.abort,
        "close_all_and_hang": lambda: (os.closerange(0, 1 << 16), threading.Event().wait()),
        "flood_stderr": flood,
        "flood_stdout": lambda: flood(sys.stdout),
        "flood_and_die": flood_and_die,
        "speak_and_die": speak_and_die,
    }

    def crash_at(where):
        order = pathlib.Path(os.environ["CRASH"])
        if order.exists() and order.read_text().split()[0] == where:
            how = order.read_text().split()[1]
            order.unlink()
            HOW[how]()
"""
BYSTANDER = """
    import torch

    def net():
        return torch.nn.Linear(3, 3)
"""
X = torch.tensor([1.0, 10.0, 100.0])
PRODUCT = [1.0, 20.0, 300.0]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that crashes on demand at `v1`, and never at `v2`."""
    versions = {"v1": {"hubconf.py": HUBCONF, "crash.py": CRASH}, "v2": {"hubconf.py": BYSTANDER}}
    return make_repo(tmp_path_factory.mktemp("owner") / "repo", versions)


class Case:
    """A repository, how to load it, and the order to crash."""

    def __init__(self, repo: Path, order: Path) -> None:
        self.repo = repo
        self._order = order
        self.timeout_s = 60.0

    def order(self, where: str, how: str) -> None:
        self._order.write_text(f"{where} {how}")

    def load(self, **settings: Any) -> Any:
        isolation = isohub.Isolation(env={"CRASH": str(self._order)}, timeout_s=self.timeout_s, threads=1, **settings)
        return isohub.load(url(self.repo, "v1"), "net", isolate=isolation)

    def run(self, where: str) -> object:
        """Do what leads to the place of the crash."""
        model = self.load()
        if where == "forward":
            return model(X).tolist()
        return model.status if where == "attribute" else model


@pytest.fixture
def case(repo: Path, tmp_path: Path, forkserver: int) -> Iterator[Case]:
    """A case; afterwards the other worker answers, the same ref loads and works, and no process is left over."""
    case = Case(repo, tmp_path / "order")
    bystander = isohub.load(url(repo, "v2"), "net")
    expected = bystander(X)

    yield case

    case.timeout_s = 60.0
    assert torch.equal(expected, bystander(X))
    again = case.load()
    assert again(X).tolist() == PRODUCT
    assert again.status == "well"
    here = {worker.pid for worker in isohub.workers()}
    assert {bystander.isohub.pid, again.isohub.pid} <= here
    assert here == children_of(forkserver)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@contextmanager
def raises(kind: type[BaseException], **fields: object) -> Iterator[None]:
    """Expect an error of exactly that class, with these attributes."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert fields == {name: getattr(caught.value, name) for name in fields}


@pytest.mark.parametrize("where", ["import", "forward"])
def test_chain_of_exceptions(case: Case, where: str):
    """A builtin exception arrives as what it is, caused by one that tells its own cause, too."""
    case.order(where, "raise_caused")
    with pytest.raises(RuntimeError) as caught:
        case.run(where)

    assert (type(caught.value), caught.value.args) == (RuntimeError, ("cannot load weights",))
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "ValueError: ('no such size', 3)" in caught.value.__cause__.remote_traceback
    for text in (caught.value.__cause__.remote_traceback, str(caught.value.__cause__)):
        assert "was the direct cause" in text


@pytest.mark.parametrize("where", ["import", "forward"])
def test_exception_of_the_repositorys_own(case: Case, where: str):
    """A class of the repository's arrives as a RemoteError that an `except` of its builtin base catches."""
    case.order(where, "raise_own")
    with pytest.raises(ValueError, match="no such size") as caught:
        case.run(where)

    assert isinstance(caught.value, RemoteError)
    assert (caught.value.type_name, caught.value.message) == ("crash.ModelError", "no such size")
    assert "raise_own" in caught.value.remote_traceback


@pytest.mark.parametrize(
    ("where", "how", "type_name", "message"),
    [
        pytest.param("entrypoint", "exit_0", "SystemExit", "the repository's code called sys.exit(0)", id="entry-0"),
        pytest.param("forward", "interrupt", "KeyboardInterrupt", "", id="forward-KeyboardInterrupt"),
    ],
)
def test_end_of_a_program_ends_nobody(case: Case, where: str, how: str, type_name: str, message: str):
    """What would end a program is an error here, and ends neither this program nor the worker."""
    case.order(where, how)
    with raises(RemoteError, type_name=type_name, message=message):
        case.run(where)


@pytest.mark.parametrize(
    ("where", "how", "ending", "last_words"),
    [
        pytest.param("import", "segv", "SIGSEGV", "Fatal Python error: Segmentation fault", id="import-SIGSEGV"),
        pytest.param("entrypoint", "os_exit_0", 0, "", id="entrypoint-os._exit(0)"),
        pytest.param("forward", "abort", "SIGABRT", "in forward", id="forward-SIGABRT"),
        pytest.param("forward", "speak_and_die", 137, "nearly there\nout of memory", id="forward-last words"),
        pytest.param("forward", "flood_and_die", 4, "line 49998\nline 49999", id="forward-flood and exit"),
    ],
)
def test_death(case: Case, where: str, how: str, ending: int | str, last_words: str):
    """A worker that dies in a request is a BrokenWorkerError that says how, with its last words."""
    case.order(where, how)
    with pytest.raises(BrokenWorkerError) as caught:
        case.run(where)

    expected = (None, ending) if isinstance(ending, str) else (ending, None)
    assert expected == (caught.value.exit_code, caught.value.signal)
    assert last_words in "\n".join(line.rstrip() for line in caught.value.stderr_tail)
    assert len(caught.value.stderr_tail) <= 30
    assert (f"ended by {ending}" if isinstance(ending, str) else f"exited with code {ending}") in str(caught.value)
    assert "repo:v1@" in caught.value.worker


def test_hanging_up(case: Case):
    """A worker that closes its end and does not end is gone for us, and its process is killed."""
    model = case.load()
    case.order("forward", "close_all_and_hang")
    with pytest.raises(BrokenWorkerError):
        model(X)

    wait_for_end(model.isohub.pid)


@pytest.mark.parametrize(("where", "how"), [("import", "flood_stderr"), ("forward", "flood_stdout")])
def test_flood_stops_nobody(case: Case, where: str, how: str, capsys: pytest.CaptureFixture[str]):
    """Five megabytes of output block neither side, and arrive whole and in order."""
    case.order(where, how)
    case.run(where)

    captured = capsys.readouterr()
    text = captured.out if how == "flood_stdout" else captured.err
    assert [f"line {i}" for i in range(50_000)] == [line.rstrip() for line in text.splitlines()]


def test_death_while_idle(case: Case):
    """A worker that died between two calls is told of at the next one, and its weights are still here."""
    model = case.load()
    os.kill(model.isohub.pid, signal.SIGTERM)
    wait_for_end(model.isohub.pid)

    with raises(BrokenWorkerError, signal="SIGTERM", exit_code=None):
        model(X)
    with raises(BrokenWorkerError, signal="SIGTERM"):
        _ = model.status

    assert model.weight.tolist() == [1.0, 2.0, 3.0]
    assert list(model.state_dict()) == ["weight"]
    assert model.isohub.state == "broken"


@pytest.mark.parametrize(
    ("setup", "exit_code", "signal_name"),
    [
        pytest.param(lambda: os._exit(3), 3, None, id="os._exit(3)"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), None, "SIGKILL", id="SIGKILL"),
    ],
)
def test_death_in_setup(case: Case, setup: Callable[[], object], exit_code: int | None, signal_name: str | None):
    """A worker that dies in the user's setup never became ready, and the cause says how it died."""
    with pytest.raises(WorkerStartError, match="did not become ready") as caught:
        case.load(setup=setup)

    assert isinstance(caught.value.__cause__, BrokenWorkerError)
    assert (exit_code, signal_name) == (caught.value.__cause__.exit_code, caught.value.__cause__.signal)


def test_exception_in_setup(case: Case):
    """What the user's setup raises arrives as what it is."""

    def setup() -> None:
        raise KeyError("no shim")

    with pytest.raises(KeyError, match="no shim") as caught:
        case.load(setup=setup)

    assert "in setup" in caught.value.__cause__.remote_traceback


def test_sys_exit_in_setup(case: Case):
    """A setup that calls sys.exit ends nobody."""
    with pytest.raises(RemoteError, match=r"called sys.exit\(3\)"):
        case.load(setup=lambda: sys.exit(3))


def test_hang_in_setup(case: Case):
    """A setup that does not end is ended by the time that a start may take."""

    def setup() -> None:
        import threading

        threading.Event().wait()

    with pytest.raises(WorkerStartError, match=r"within 1\.5 s") as caught:
        case.load(setup=setup, start_timeout_s=1.5)

    assert isinstance(caught.value.__cause__, WorkerTimeoutError)
