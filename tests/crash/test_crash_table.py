"""Every place where a repository's code runs, crossed with every way to fail there: what the caller gets.

After each row the worker of the other ref answers, the same ref loads and works, and nothing is left behind.
"""

from __future__ import annotations

import os
import re
import select
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
import isohub.api
from isohub.errors import BrokenWorkerError, RemoteError, WorkerTimeoutError
from tests.helpers.programs import wait_for_end
from tests.helpers.repos import make_repo, sample, url

# raises  the caller gets the error of that kind of crash (ERRORS), at once
# own     the caller gets the very exception that its own hook raised
# later   the crash is between two calls: the next one gets that error
# well    the caller notices nothing
# ends    the worker is being closed, and is closed in time, without an error
# -       cannot be. While it is idle nothing of the repository runs, so what happens comes from outside: a signal
#         (SIGSTOP for a hang). A hook of the caller's is in the caller's process, which is not the worker's to
#         crash; it can raise, and end the worker. Handlers of signals belong to the main thread.
TABLE = """
                 import  entrypoint export  forward backward inner_hook parent_hook attribute thread  atexit  idle
raise            raises  raises     well    raises  raises   raises     own         raises    well    ends    -
raise-unsayable  raises  raises     well    raises  raises   raises     own         raises    well    ends    -
sys.exit         raises  raises     raises  raises  raises   raises     own         raises    well    ends    -
os._exit         raises  raises     raises  raises  raises   raises     -           raises    later   ends    -
SIGSEGV          raises  raises     raises  raises  raises   raises     raises      raises    later   ends    later
SIGABRT          raises  raises     raises  raises  raises   raises     raises      raises    later   ends    later
SIGKILL          raises  raises     raises  raises  raises   raises     raises      raises    later   ends    later
out-of-memory    raises  raises     well    raises  raises   raises     -           raises    well    ends    -
hang             raises  raises     raises  raises  raises   raises     -           raises    well    ends    later
hang-deaf        raises  raises     raises  raises  raises   raises     -           raises    -       ends    -
close-all        raises  raises     raises  raises  raises   raises     -           raises    later   ends    -
flood            well    well       well    well    well     well       -           well      well    ends    -
grandchild       well    well       well    well    well     well       -           well      well    ends    -
"""


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


ERRORS: dict[str, tuple[type[BaseException], str]] = {
    "raise": (ValueError, r"^\('no such size', 3\)$"),
    "raise-unsayable": (RemoteError, r"its message cannot be shown"),
    "sys.exit": (RemoteError, r"called sys\.exit\(3\)"),
    "os._exit": (BrokenWorkerError, r"exited with code 3\."),
    "SIGSEGV": (BrokenWorkerError, r"was ended by SIGSEGV\."),
    "SIGABRT": (BrokenWorkerError, r"was ended by SIGABRT\."),
    "SIGKILL": (BrokenWorkerError, r"was ended by SIGKILL\."),
    "out-of-memory": (MemoryError, r"^$"),
    "hang": (WorkerTimeoutError, r"did not answer within 1 s and was killed"),
    "hang-deaf": (WorkerTimeoutError, r"did not answer within 1 s and was killed"),
    # Its process ends when it cannot answer; which of the two is noticed first is a race.
    "close-all": (BrokenWorkerError, r"exited with code 70\.|closed its channel to this program"),
}
# What else is there to read of them. The last words of a worker that died are in `test_crashes.py`.
FIELDS: dict[str, dict[str, object]] = {
    "raise-unsayable": {"type_name": "crash.Unsayable"},
    "sys.exit": {"type_name": "SystemExit"},
    "os._exit": {"exit_code": 3, "signal": None},
    **{name: {"exit_code": None, "signal": name} for name in ("SIGSEGV", "SIGABRT", "SIGKILL")},
    "hang": {"timeout_s": 1.0},
    "hang-deaf": {"timeout_s": 1.0},
}
# By what a caller may catch them as well.
BASES = {"raise-unsayable": RuntimeError, "hang": TimeoutError, "hang-deaf": TimeoutError}
# After these the worker is as it was before.
HARMLESS = {"raise", "raise-unsayable", "sys.exit", "out-of-memory", "flood", "grandchild"}
OWN_ERRORS = {"raise": ValueError, "raise-unsayable": UnsayableError, "sys.exit": SystemExit}
X = torch.tensor([1.0, 10.0, 100.0])
PRODUCT = [1.0, 20.0, 300.0]


def rows() -> list[Any]:
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]
    return [
        pytest.param(where, how, outcome, id=f"{where}-{how}")
        for how, *outcomes in lines
        for where, outcome in zip(head, outcomes, strict=True)
        if outcome != "-"
    ]


class Case:
    """The repository, and one way to fail at one place of it."""

    def __init__(self, repo: Path, order: Path, where: str, how: str) -> None:
        self.where, self.how, self.order = where, how, order
        self.repo = url(repo, "v1")
        # A hang is only told from slowness by a time; nothing else here may depend on one.
        self.timeout_s = 1.0 if how.startswith("hang") and where != "thread" else 60.0
        self.model: Any = None
        self.own_error: BaseException | None = None
        order.write_text(f"{where} {how}")

    @property
    def lives(self) -> bool:
        """Whether the worker outlives it."""
        if self.where == "parent_hook":
            return self.how.startswith("raise")  # anything but an Exception breaks the call off, as Ctrl-C does
        return (self.how in HARMLESS and self.where != "atexit") or (self.where, self.how) == ("thread", "hang")

    def end_with_children(self) -> list[int]:
        """End the worker; return the process that its code has started, if that does not end as well."""
        child = int(Path(f"{self.order}.pid").read_text())
        try:
            pidfd = os.pidfd_open(child)
        except ProcessLookupError:  # with its worker, which has ended already
            return []
        try:
            for worker in isohub.workers():
                if ":v1@" in worker.label:
                    worker.close()
            ended = select.select([pidfd], [], [], 2)[0]
            if not ended:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return [] if ended else [child]
        finally:
            os.close(pidfd)

    def load(self, timeout_s: float | None = None) -> Any:
        env = {"CRASH": str(self.order)}
        settings = isohub.Isolation(env=env, timeout_s=timeout_s or self.timeout_s, threads=1)
        return isohub.load(self.repo, "net", isolate=settings)

    def work(self) -> object:
        """Do what leads to the place, and return what comes of it."""
        if self.where in ("import", "entrypoint", "export"):
            self.model = self.load()
        else:
            self.model = self.load(timeout_s=60.0)
            for worker in isohub.workers():
                if worker.pid == self.model.isohub.pid:  # the load before may take its time on a busy machine
                    worker.isolation = replace(worker.isolation, timeout_s=self.timeout_s)
        return getattr(self, f"_{self.where}", self._forward)()

    def _import(self) -> object:
        return self.model(X).tolist()

    _entrypoint = _export = _forward = _inner_hook = _import

    def _backward(self) -> object:
        y = self.model(X)
        y.sum().backward()
        return y.tolist()

    def _attribute(self) -> object:
        return PRODUCT if self.model.status == "well" else None

    def _parent_hook(self) -> object:
        def hook(*_: object) -> None:
            if self.how in OWN_ERRORS:
                self.own_error = OWN_ERRORS[self.how](3)
                raise self.own_error
            os.kill(self.model.isohub.pid, signal.Signals[self.how])
            wait_for_end(self.model.isohub.pid)

        self.model.inner.register_forward_hook(hook)
        return self.model(X).tolist()

    def _idle(self) -> object:
        os.kill(self.model.isohub.pid, signal.SIGSTOP if self.how == "hang" else signal.Signals[self.how])
        if self.how != "hang":
            wait_for_end(self.model.isohub.pid)
        return self.model(X).tolist()

    def _thread(self) -> object:
        gate = self.order.with_suffix(".gate")
        os.mkfifo(gate)
        self.model.begin(gate)
        gate.open("w").close()  # opens once the thread is there
        if self.how in HARMLESS or self.how == "close-all":
            wait_for_opener_or_end(gate, self.model.isohub.pid)
        elif self.how != "hang":
            wait_for_end(self.model.isohub.pid)
        return self.model(X).tolist()

    def _atexit(self) -> object:
        (worker,) = [one for one in isohub.workers() if one.pid == self.model.isohub.pid]
        worker.close(timeout_s=1.0 if self.how.startswith("hang") else 60.0)
        wait_for_end(worker.pid)
        return worker.state


def wait_for_opener_or_end(gate: Path, pid: int) -> None:
    """Wait until somebody has opened `gate` to write, being over it, or the process has ended without."""
    fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        os.close(fd)
        return
    try:
        poll = select.poll()
        poll.register(fd, 0)  # hung up, once there was somebody
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(60_000)
    finally:
        os.close(fd)
        os.close(pidfd)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that crashes on demand at `v1`, and never at `v2`."""
    return make_repo(tmp_path_factory.mktemp("owner") / "repo", sample("crashing"))


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize(("where", "how", "outcome"), rows())
def test_crash(repo: Path, tmp_path: Path, where: str, how: str, outcome: str):
    """A crash of a repository's code is the error that the table says, and costs nobody else anything."""
    case = Case(repo, tmp_path / "order", where, how)
    bystander = isohub.load(url(repo, "v2"), "net")
    expected = bystander(X)

    if outcome in ("well", "ends"):
        assert case.work() == (PRODUCT if outcome == "well" else "closed")
    else:
        kind, text = (OWN_ERRORS[how], "") if outcome == "own" else ERRORS[how]
        with pytest.raises(kind) as caught:
            case.work()
        assert (caught.value is case.own_error) is (outcome == "own")
        assert outcome == "own" or re.search(text, str(caught.value)), str(caught.value)
        if outcome != "own":
            assert_fields(caught.value, how)

    assert case.order.exists() is (where in ("idle", "parent_hook")), "the place was never come to"
    assert torch.equal(expected, bystander(X))
    assert case.lives is (len(isohub.workers()) == 2)
    assert {worker.pid for worker in isohub.workers()} == children_of(isohub.api._registry.forkserver_pid)
    case.order.unlink(missing_ok=True)
    if case.lives and case.model is not None and where != "parent_hook":
        assert case.model(X).tolist() == PRODUCT
    left = case.end_with_children() if how == "grandchild" else []
    again = case.load(timeout_s=60.0)
    assert (again(X).tolist(), again.status) == (PRODUCT, "well")
    assert torch.equal(expected, bystander(X))
    case.model = bystander = again = expected = None  # a failure would keep them, and be told as a leak as well
    assert left == []


def assert_fields(error: BaseException, how: str) -> None:
    """Fail unless an error that came from a worker tells what that kind of crash has to tell."""
    fields = FIELDS.get(how, {})
    assert fields == {name: getattr(error, name) for name in fields}
    assert isinstance(error, BASES.get(how, BaseException))
    if how == "raise":  # a builtin exception is what it was, caused by one with the worker's own traceback
        assert isinstance(error.__cause__, RemoteError)
        assert "no such size" in str(error.__cause__)
        assert 'crash.py", line' in error.__cause__.remote_traceback
    if isinstance(error, BrokenWorkerError):
        assert "repo:v1@" in error.worker
        assert len(error.stderr_tail) <= 30


def test_table_is_whole():
    """The table has every way that the repository knows, at every place."""
    namespace: dict[str, Any] = {}
    exec(str(sample("crashing")["v1"]["crash.py"], "utf-8"), namespace)
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]

    assert [line[0] for line in lines] == list(namespace["HOW"])
    assert {len(line) - 1 for line in lines} == {len(head)}


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
