"""A new process in the place of one that died: `Isolation(restart="on-crash")`.

The `Worker` stays what it is, so that everybody who has it finds the new process: the registry, `Repo` objects,
and all handles. What its objects were is built again by the layer above, when each is used next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isohub import trace
from isohub.errors import BrokenWorkerError, IsohubError, RestartError, WorkerStartError, WorkerTimeoutError
from isohub.hub import tree
from isohub.hub.checkout import Checkout
from isohub.supervisor import state
from isohub.supervisor.callbacks import Callbacks
from isohub.supervisor.idle import IdleWorkers
from isohub.supervisor.proxies import Proxies
from isohub.wire.lifecycle import Event, State, after
from isohub.wire.messages import Prepare, TorchState, Verb

if TYPE_CHECKING:
    from isohub.supervisor.worker import Worker

__all__ = ["MAX_TRIES", "PAUSE_S", "Restart"]

# A process that dies again and again, at once, is not helped by yet another.
MAX_TRIES = 3
# So much time has to pass then between one try and the next; a single call that goes well ends that.
PAUSE_S = 5.0
# Requests that go well in a worker that dies with every call.
_SAYS_LITTLE = ("getattr", "dir", "describe", "release")


class Restart:
    """What is needed to start one worker again.

    Args:
        idle: Where its processes come from.
        prepare: What each is told first.
        checkout: The files.
        make_proxies: Makes what stands for the objects of a new process.
    """

    def __init__(
        self, idle: IdleWorkers, prepare: Prepare, checkout: Checkout, make_proxies: Callable[[], Proxies]
    ) -> None:
        self._idle = idle
        self._prepare = prepare
        self._checkout = checkout
        self._make_proxies = make_proxies
        self._depth = 0
        self._tries = 0  # since the last call that went well
        self._last = 0.0

    def may_follow(self, end: IsohubError | None) -> bool:
        """Return whether a process that ended so gets a successor: not if it lied, or was closed."""
        return isinstance(end, BrokenWorkerError | WorkerTimeoutError | WorkerStartError)

    @contextmanager
    def around(self, worker: Worker, verb: Verb) -> Iterator[None]:
        """Have a process there for a request; the worker's lock is held.

        Not for one within another request: that one has failed with the process, and its caller is told so.

        Raises:
            RestartError: It died too often in quick succession, or its files are no longer the same.
            WorkerStartError: The new one does not become ready.
        """
        if not self._depth and verb != "release":
            worker.reap()
            if worker.state == State.BROKEN.value and worker.alive:
                self._start(worker)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and verb not in _SAYS_LITTLE:
            self._tries = 0

    @contextmanager
    def replaying(self, worker: Worker, modes: TorchState) -> Iterator[None]:
        """Do requests in the body under the modes of then, and leave the random generator here where it is."""
        before = worker._generator
        worker._generator = state.Recorded(modes)
        try:
            yield
        finally:
            # Within another one, that goes on; else the worker is told the whole state next.
            worker._generator = before if isinstance(before, state.Recorded) else state.Generator()

    def give_up(self, worker: Worker, reason: IsohubError) -> None:
        """Have nothing follow a process that died; what its worker has kept for that is let go."""
        if self.may_follow(worker._end):
            worker._end, worker.restart = reason, None
            if worker.lease is not None:
                worker.lease.close()

    def _start(self, worker: Worker) -> None:
        left_s = self._last + PAUSE_S - time.monotonic()
        if self._tries >= MAX_TRIES and left_s > 0:
            raise RestartError(
                f"worker {worker.label} died {self._tries + 1} times without a call that went well in between. The "
                f"next call after {left_s:.1f} s starts it again; the last time: {worker._end}",
                worker=worker.label,
                retry_after_s=left_s,
                stderr_tail=getattr(worker._end, "stderr_tail", ()),
            )
        if self._checkout.commit is None and tree.fingerprint(self._checkout.files) != self._checkout.fingerprint:
            raise RestartError(
                f"worker {worker.label} died, and the files in {self._checkout.files} were edited since it started: "
                "the model cannot be built again from them. Its weights stay readable here; load it again",
                worker=worker.label,
            )
        with trace.step("supervisor.restart", worker=worker.label, restarts=worker.restarts + 1) as step:
            self._tries += 1
            worker.restarts += 1
            self._last = time.monotonic()
            worker._state = after(worker._state, Event.RESTART)
            worker._end = None
            worker._callbacks = Callbacks()
            worker._generator = state.Generator()
            worker.started_at = time.time()  # noqa: TID251 - a date to show, not a duration
            worker.border = worker.new_border()
            worker.border.proxies = self._make_proxies()
            worker.start(self._idle, self._prepare)
            step.fields["pid"] = worker.pid
