"""Whatever a worker starts ends with it, however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, WorkerTimeoutError
from tests.helpers.programs import wait_for_end

RepoOf = Callable[..., str]
# Each tells the pid of the process that is to be left behind; all of them hold whatever they inherited.
HUBCONF = """
    import multiprocessing
    import os
    import signal
    import subprocess
    import threading
    import torch

    def told(leave):
        read, write = os.pipe()
        leave(write)
        os.close(write)
        with open(read) as pids:
            return [int(pid) for pid in pids.read().split()]

    def stay(write):
        os.write(write, b"%d " % os.getpid())
        os.close(write)
        while True:
            signal.pause()

    def fork(write):
        if not os.fork():
            stay(write)

    def session(write):
        if not os.fork():
            os.setsid()
            stay(write)

    def daemon(write):
        child = os.fork()
        if not child:
            os.setsid()
            if not os.fork():
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                stay(write)
            os._exit(0)
        os.waitpid(child, 0)

    def tree(write):
        if not os.fork():
            session(write)
            daemon(write)
            stay(write)

    def program(write):
        command = "echo $$; exec sleep 1000 > /dev/null"
        subprocess.Popen(["/bin/sh", "-c", command], stdout=write, start_new_session=True)

    def ends_at_once():
        os._exit(3)

    def kills_itself():
        os.kill(os.getpid(), signal.SIGKILL)

    def comes_back():
        os.fork()
        return os.getpid()

    def terminate():
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
        child.terminate()
        child.join()
        return child.exitcode

    class Keeper(torch.nn.Module):
        def leave(self, how):
            return told(globals()[how])

        def end(self, how):
            return globals()[how]()

        def hang(self):
            threading.Event().wait()

    def keeper():
        return Keeper()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def close(keeper: Any) -> None:
    isohub.workers()[0].close()


def kill(keeper: Any) -> None:
    os.kill(keeper.isohub.pid, signal.SIGKILL)
    wait_for_end(keeper.isohub.pid)
    with pytest.raises(BrokenWorkerError):
        keeper.end("comes_back")


def exit_at_once(keeper: Any) -> None:
    with pytest.raises(BrokenWorkerError):
        keeper.end("ends_at_once")


def overdue(keeper: Any) -> None:
    with pytest.raises(WorkerTimeoutError), isohub.deadline(0.3):
        keeper.hang()


@pytest.mark.parametrize("end", [close, kill, exit_at_once, overdue])
@pytest.mark.parametrize(("how", "count"), [("fork", 1), ("session", 1), ("daemon", 1), ("tree", 3), ("program", 1)])
def test_descendants_end_with_their_worker(repo_of: RepoOf, how: str, count: int, end: Callable[[Any], None]):
    """When it is known that a worker has ended, none of its descendants lives, in whatever session it is."""
    keeper = isohub.load(repo_of(HUBCONF), "keeper")
    pids = keeper.leave(how)
    assert [True] * count == [alive(pid) for pid in pids]

    end(keeper)

    assert [False] * count == [alive(pid) for pid in pids]


def test_descendants_of_others_live(repo_of: RepoOf):
    """A daemon lives as long as its own worker, whichever others end."""
    repo = repo_of(HUBCONF)
    dedicated = isohub.Isolation(dedicated=True)
    first, second = isohub.load(repo, "keeper", isolate=dedicated), isohub.load(repo, "keeper", isolate=dedicated)
    (mine,), (other,) = first.leave("daemon"), second.leave("daemon")

    kill(first)

    assert [alive(mine), alive(other)] == [False, True]
    assert second.leave("fork")


def test_fork_in_a_call_does_not_answer(repo_of: RepoOf):
    """A call in whose middle the repository forks has one answer, that of the process which was asked."""
    keeper = isohub.load(repo_of(HUBCONF), "keeper", verbose=False)

    assert [keeper.isohub.pid] * 5 == [keeper.end("comes_back") for _ in range(5)]
    assert torch.equal(torch.ones(2), isohub.run_in(keeper, lambda _: torch.ones(2)))


def test_child_that_is_terminated_says_nothing(repo_of: RepoOf, capfd: pytest.CaptureFixture[str]):
    """What a repository's process pool ends by SIGTERM ends as in a program of its own, without a word."""
    keeper = isohub.load(repo_of(HUBCONF), "keeper")

    assert keeper.end("terminate") == -signal.SIGTERM
    assert capfd.readouterr().err == ""
