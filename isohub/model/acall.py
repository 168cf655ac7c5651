"""Calls from asyncio programs: `await isohub.acall(model, x)`.

::

    task ── acall ──> lane of the model's worker ──> a thread, as long as the lane has calls ──> Worker.request
      ^                                                                              │
      └──────────────── call_soon_threadsafe(result) <───────────────────────────────┘

A worker does one thing at a time, so one thread for each is as fast as many, and no more are ever needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any

import torch

from isohub.model.objects import Lease
from isohub.supervisor import endings
from isohub.supervisor.deadlines import Deadline, nearest, until
from isohub.supervisor.worker import Worker

__all__ = ["acall"]

# Threads for calls that belong to no worker, such as loads.
MAX_OTHERS = 8


def acall(target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
    """Call something of isohub's without blocking the event loop: `await isohub.acall(model, x)`.

    The call runs in a thread, with the context variables of this task and with torch's modes as they are here
    (gradients, inference mode, autocast). Calls of one worker are made one after another, in the order in which
    they were awaited; calls of different workers run at the same time.

    When the task is cancelled, the wait ends at once. A call that has not begun is never made. One that has
    begun goes on in the worker, which stays in step and keeps its weights, and its result is dropped; the next
    call of that worker waits for it. To have a worker that takes too long killed instead, set a deadline:
    `isohub.deadline` around the call, or `Isolation(timeout_s=...)`.

    Args:
        target: An isolated module, a `RemoteObject`, a method of one of these, or `isohub.run_in`. Anything else
            that can be called may take a thread too, such as `isohub.load` or a module of your own around
            isolated ones; of these at most eight run at the same time.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        A coroutine: what to await for what the call returns or raises.

    Raises:
        TypeError: `target` cannot be called.
        WorkerTimeoutError: When awaited: also for a call that others kept from beginning until its deadline.

    Example:
        >>> first, second = await asyncio.gather(isohub.acall(v1, image), isohub.acall(v2, image))
    """
    if not callable(target):
        raise TypeError(f"acall() takes something that can be called, and got a {type(target).__name__}")
    worker = _worker_of(target) or (_worker_of(args[0]) if args else None)
    due = nearest(None if worker is None else worker.isolation.timeout_s)
    modes = _Modes()
    return _wait(worker, due, functools.partial(_within, due, modes, functools.partial(target, *args, **kwargs)))


async def _wait(worker: Worker | None, due: Deadline | None, call: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    job = _Job(loop, functools.partial(contextvars.copy_context().run, call))
    del call
    timer = None
    if due is not None:
        timer = loop.call_later(due.left_s, job.expire, "of no one" if worker is None else worker.label, due)
    _lanes.of(worker).add(job)
    try:
        return await job.future
    finally:
        job.drop()
        if timer is not None:
            timer.cancel()
        del job  # what the call raised holds this frame


class _Modes:
    """The modes of torch that belong to a thread, as they are in this one."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def call(self, function: Callable[[], Any]) -> Any:
        """Call `function` with these modes."""
        with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
            if self._autocast is None:
                return function()
            with torch.autocast("cpu", dtype=self._autocast):
                return function()


def _within(due: Deadline | None, modes: _Modes, function: Callable[[], Any]) -> Any:
    with until(due):
        return modes.call(function)


class _Job:
    """One call. Its future is the loop's, and is only touched there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self._loop = loop
        self._call: Callable[[], Any] | None = call
        self._lock = threading.Lock()
        self._is_due = True

    def begin(self) -> bool:
        """Return whether the call is to be made; it is not if nobody waits for it, or it was begun."""
        with self._lock:
            is_due, self._is_due = self._is_due, False
            return is_due

    def drop(self) -> bool:
        """Have the call not be made; return whether it had not begun."""
        was_due = self.begin()
        if was_due:
            self._call = None  # and with it the arguments
        return was_due

    def expire(self, who: str, due: Deadline) -> None:
        """Give up, if the call has not begun; one that has begun ends by itself."""
        if self.drop() and not self.future.done():
            self.future.set_exception(endings.waited(who, due.seconds))

    def run(self) -> None:
        """Make the call."""
        call, self._call = self._call, None
        assert call is not None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - it is the awaiting task's
            # A future refuses StopIteration, as a coroutine does.
            if isinstance(error, StopIteration):
                error = RuntimeError("the call raised StopIteration")
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, how: Callable[[Any], None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(how, what)

    def _succeed(self, result: object) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Lane:
    """Calls in order, made by at most so many threads, which end with the last of them."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._threads = 0

    def add(self, job: _Job) -> None:
        """Have a call made."""
        with self._lock:
            self._jobs.append(job)
            if self._threads == self._width:
                return
            self._threads += 1
        try:
            # A daemon: the end of the program does not wait for a call that hangs.
            threading.Thread(target=self._work, name="isohub-acall", daemon=True).start()
        except BaseException:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._jobs.clear()
            raise

    def _work(self) -> None:
        while True:
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._threads -= 1
                    return
            if job.begin():
                job.run()
            del job


class _Lanes:
    """The lanes of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_workers: weakref.WeakKeyDictionary[Worker, _Lane] = weakref.WeakKeyDictionary()
        self._of_others = _Lane(MAX_OTHERS)

    def of(self, worker: Worker | None) -> _Lane:
        """Return the lane for calls of a worker; None for those of which it is not known before."""
        if worker is None:
            return self._of_others
        with self._lock:
            return self._of_workers.setdefault(worker, _Lane(1))


_lanes = _Lanes()
# A fork has none of the threads, and may have been made while one of them had a lock.
os.register_at_fork(after_in_child=_lanes.__init__)  # type: ignore[misc]


def _worker_of(value: object) -> Worker | None:
    """Return the worker that a call of `value` goes to; None if it is not known before."""
    if isinstance(value, MethodType):
        value = value.__self__
    lease = getattr(value, "_isohub_lease", None)
    return lease.worker if isinstance(lease, Lease) else None
