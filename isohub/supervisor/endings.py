"""How a worker can end, each as the error that its callers get: what happened, and what to do next."""

from __future__ import annotations

import os
import signal

from isohub.errors import (
    BrokenWorkerError,
    ForeignProcessError,
    IsohubError,
    RemoteProtocolError,
    WorkerClosedError,
    WorkerError,
    WorkerStartError,
    WorkerTimeoutError,
)
from isohub.wire.texts import clean

__all__ = [
    "again", "broken", "closed", "deadlocked", "foreign", "hung_up", "interrupted", "lied", "overdue", "reentered",
    "unready", "waited",
]  # fmt: skip


def broken(
    who: str, status: int | None, tail: tuple[str, ...], *, memory_bytes: int | None = None, restarts: bool = False
) -> BrokenWorkerError:
    """It died by itself.

    Args:
        who: The worker, with its pid.
        status: Its exit code, or the negative number of a signal; None when nobody knows.
        tail: The last lines of its stderr.
        memory_bytes: The memory that it could have; None where there was no limit.
        restarts: Whether the next call starts a new one.
    """
    name = None
    if status is None:
        how = "ended, and nobody knows how: the forkserver ended with it"
    elif status < 0:
        name = _signal_name(-status)
        how = f"was ended by {name}"
    else:
        how = f"exited with code {status}"
    # Native code that gets no memory ends its process in many ways, and says why in as many, or not at all.
    limit = "" if memory_bytes is None else f" It had a limit, Isolation(memory_bytes={memory_bytes})."
    return BrokenWorkerError(
        f"worker {who} {how}.{limit} Its weights stay readable here; {_next(restarts)}{_shown(tail)}",
        worker=who,
        stderr_tail=tail,
        exit_code=status if status is not None and status >= 0 else None,
        signal=name,
    )


def hung_up(who: str, tail: tuple[str, ...], restarts: bool = False) -> BrokenWorkerError:
    """It closed its end of the channel without ending."""
    return BrokenWorkerError(
        f"worker {who} closed its channel to this program without ending, and was killed. Its weights stay readable "
        f"here; {_next(restarts)}{_shown(tail)}",
        worker=who,
        stderr_tail=tail,
        signal="SIGKILL",
    )


def overdue(who: str, timeout_s: float, tail: tuple[str, ...], restarts: bool = False) -> WorkerTimeoutError:
    """It did not answer in time."""
    return WorkerTimeoutError(
        f"worker {who} did not answer within {timeout_s:g} s and was killed. If it only was slow, take a larger "
        "Isolation(timeout_s=...) or start_timeout_s, or more time in isohub.deadline(); "
        f"{_next(restarts)}{_shown(tail)}",
        worker=who,
        stderr_tail=tail,
        timeout_s=timeout_s,
    )


def waited(who: str, timeout_s: float) -> WorkerTimeoutError:
    """A call of it did not get its turn in time; the worker goes on."""
    return WorkerTimeoutError(
        f"a call of worker {who} did not begin within {timeout_s:g} s: what came before it, such as calls of other "
        "threads, took as long. Nothing was sent, and the worker goes on. Give it more time, or a worker of its own by "
        "Isolation(dedicated=True)",
        worker=who,
        timeout_s=timeout_s,
        killed=False,
    )


def deadlocked(who: str) -> WorkerError:
    """Its turn would never come."""
    return WorkerError(
        f"worker {who} is in a call of another thread, whose hook waits for a worker that this thread's call has: both "
        "would wait for ever, so this call is refused. Have one thread at a time call models whose hooks call each "
        "other",
        worker=who,
    )


def unready(label: str, error: BaseException) -> WorkerStartError:
    """It did not become ready."""
    tail = getattr(error, "stderr_tail", ())
    return WorkerStartError(f"worker {label} did not become ready: {error}", worker=label, stderr_tail=tail)


def lied(who: str, fault: Exception) -> RemoteProtocolError:
    """It sent what no honest worker sends."""
    return RemoteProtocolError(
        f"worker {who} was killed, since it sent what no honest worker sends: {clean(str(fault), 1000)}. Either the "
        "repository attacks this program, or this is a fault of isohub: then please report it with the repository and "
        "commit"
    )


def interrupted(who: str, interruption: BaseException, restarts: bool = False) -> BrokenWorkerError:
    """A call was broken off here, by Ctrl-C say."""
    return BrokenWorkerError(
        f"worker {who} was killed, since {type(interruption).__name__} broke off a call; {_next(restarts)}",
        worker=who,
        signal="SIGKILL",
    )


def closed(who: str) -> WorkerClosedError:
    """This program closed it."""
    return WorkerClosedError(
        f"worker {who} was closed. Its weights stay readable here; load again for a new worker", worker=who
    )


def reentered(who: str) -> WorkerError:
    """It was asked something in the middle of an exchange of the same thread."""
    return WorkerError(
        f"worker {who} is in the middle of another call of this thread: a signal handler or a __del__ that runs "
        "meanwhile cannot call it",
        worker=who,
    )


def foreign(who: str, owner_pid: int) -> ForeignProcessError:
    """It has not ended, but it is not this process's to talk to."""
    return ForeignProcessError(
        f"worker {who} belongs to process {owner_pid}, and this is process {os.getpid()}: call isohub.load in the "
        "process that uses the model, or send it there by pickle, which loads it again (as a DataLoader does with "
        'multiprocessing_context="spawn")',
        worker=who,
    )


def again(error: IsohubError) -> IsohubError:
    """Return a fresh copy of `error`: each caller gets one with a traceback of its own."""
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def _next(restarts: bool) -> str:
    """Return what to do next."""
    if restarts:
        return "the next call starts a new worker on them, and this one is not made again"
    return 'load again for a new worker, or have one started by itself: Isolation(restart="on-crash")'


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _shown(tail: tuple[str, ...]) -> str:
    return ". The last lines of its stderr:" + "".join(f"\n    {line}" for line in tail) if tail else ""
