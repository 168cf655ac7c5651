"""The parent's handle on one worker process.

::

    caller ── request ──> pack ──> send ────────── socket ─────────> worker: do it
                                    │ <── NeedSegment / Granted ──>    │
    caller <── value ── unpack <── check <────── Returned | Raised ────┘

One exchange at a time: threads that call the same worker wait for their turn. Whatever breaks an exchange
in the middle (death, deadline, nonsense, Ctrl-C) ends the worker, since nobody could say what the next
bytes on the channel belong to. A deadline holds for all of it: the wait for the turn, the exchange, and
what hooks ask of this worker or others meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from isohub.errors import (
    IsohubError,
    RemoteProtocolError,
)
from isohub.hub.checkout import Checkout
from isohub.hub.leases import Lease
from isohub.hub.services import Services
from isohub.options import Isolation
from isohub.shm.segment import KeptSegments
from isohub.supervisor import endings, state
from isohub.supervisor.background import Background
from isohub.supervisor.border import Border
from isohub.supervisor.callbacks import Callbacks
from isohub.supervisor.connection import Connection
from isohub.supervisor.deadlines import Deadline, nearest
from isohub.supervisor.exchange import Exchange
from isohub.supervisor.idle import IdleWorkers
from isohub.supervisor.lending import CommonInputs
from isohub.supervisor.post_mortem import STATUS_S, find_cause
from isohub.supervisor.releases import Releases
from isohub.supervisor.restart import Restart
from isohub.supervisor.shares import Shares
from isohub.supervisor.sharing import Sharing
from isohub.supervisor.starting import start
from isohub.supervisor.status import WorkerStatus, status_of
from isohub.supervisor.turns import Turn
from isohub.wire.lifecycle import Event, State, after
from isohub.wire.messages import Prepare, Verb

__all__ = ["Worker"]

# How long a worker that was asked to end may take for the repository's own clean-up.
CLOSE_GRACE_S = 5.0
_NOTHING = contextlib.nullcontext()


class Worker:
    """One worker process, and everything that this process has in common with it.

    It owns the channel, the output pipes and the segments. `close` (or `with`) ends it.

    Args:
        label: The repository as people know it, `owner/name:ref@1a2b3c4`.
        isolation: Its settings.
        background: The thread that reads its output.
        services: Fetches what its code wants from the network.
        common: Inputs that go to several workers at once.
    """

    def __init__(
        self, label: str, isolation: Isolation, background: Background, services: Services, common: CommonInputs
    ) -> None:
        self.label = label
        self.common = common
        self.isolation = isolation
        self.kept = KeptSegments() if isolation.restart == "on-crash" else None
        self.border = self.new_border()
        self.restart: Restart | None = None  # once it has started; None: its death is for good
        self.restarts = 0  # how often a new process was started in the place of one that died
        self.sharing: Sharing | None = None  # finds weights that other workers have as well
        self.shares: Shares | None = None
        self.calls = 0
        self.started_at = time.time()  # noqa: TID251 - a date to show, not a duration
        self.last_call_at: float | None = None
        self.checkout: Checkout | None = None
        self._background = background
        self._services = services
        self._turn = Turn()
        self._state = State.STARTING
        self._owner_pid = os.getpid()
        self.lease: Lease | None = None  # its checkout stays in the cache as long as it lives
        self._connection: Connection | None = None
        self._releases = Releases(self)
        self._callbacks = Callbacks()
        self._generator: state.Generator | state.Recorded = state.Generator()
        self._end: IsohubError | None = None  # why it ended; told to everybody who asks again
        self.pid = 0

    def __repr__(self) -> str:
        again = f" restarts={self.restarts}" if self.restarts else ""
        return f"<Worker {self.label} pid={self.pid} {self._state.value}{again}>"

    def __enter__(self) -> Worker:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """`"starting"`, `"idle"`, `"busy"`, `"closed"` or `"broken"`."""
        # To tell it of handles that died here is nobody's call.
        return State.IDLE.value if self._state is State.BUSY and self._releases.is_telling else self._state.value

    @property
    def alive(self) -> bool:
        """Whether it can be asked anything; the process may have to be started again for that."""
        may_follow = self.restart is not None and self.restart.may_follow(self._end)
        return may_follow if self._state is State.BROKEN else self._state is not State.CLOSED

    def new_border(self) -> Border:
        """Return what a process has in common with this one, in the beginning."""
        isolation = self.isolation
        return Border(
            frozen=isolation.results == "frozen",
            memory_bytes=isolation.memory_bytes,
            kept=self.kept,
            common=self.common,
        )

    @property
    def weights_nbytes(self) -> int:
        """Bytes of shared memory that is there for weights."""
        return self.border.residents.nbytes

    def status(self) -> WorkerStatus:
        """Return what it is, does and takes at this moment."""
        return status_of(self)

    def start(self, idle: IdleWorkers, prepare: Prepare) -> None:
        """Launch the process and prepare it; see `starting.start`."""
        start(self, idle, prepare)

    def request(
        self,
        verb: Verb,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        muted: bool = False,
        of: Any = None,
        **fields: Any,
    ) -> Any:
        """Ask for something and return the answer.

        Args:
            verb: What to do.
            args: Positional arguments for it.
            kwargs: Keyword arguments for it.
            muted: Whether to keep what it prints to ourselves.
            of: The lease of the object to do it with, if its handle is not among `fields`.
            **fields: Further fields of `wire.messages.Request`.

        Raises:
            LocalProtocolError: An argument cannot cross; nothing was sent.
            BrokenWorkerError: The worker is dead, or dies meanwhile.
            WorkerTimeoutError: `isolation.timeout_s` passed, or the deadline that the caller set. The worker was
                killed, unless other threads had it all the time.
            WorkerError: It is in a call that waits for one of this thread's.
            WorkerClosedError: The worker was closed.
            ForeignProcessError: This process is a fork of the one that has the worker.
            RemoteProtocolError: The worker sent nonsense, and was killed.
            Exception: What the repository's code raised.
        """
        if os.getpid() != self._owner_pid:
            self.check()  # before the lock, which another thread may have held when this process was forked
        due = nearest(self.isolation.timeout_s)
        if not self._turn.try_take():
            self._turn.take(due, self._who)
        try:
            with _NOTHING if self.restart is None else self.restart.around(self, verb):
                value, raised = Exchange(self, verb, due).make(args, kwargs or {}, muted=muted, of=of, fields=fields)
        finally:
            self._turn.give()
        if verb == "build" and self.sharing is not None:
            self.sharing.look(self)
        if raised:
            raise raised.pop()  # from the list: else this frame and the exception would keep each other
        return value

    def part_weights(self) -> None:
        """Have the weights of this worker on pages that no other worker has, where forks write as well.

        Raises:
            IsohubError: As `request`.
        """
        if os.getpid() != self._owner_pid:
            self.check()  # before the lock, as in `request`
        due = nearest(self.isolation.timeout_s)
        self._turn.take(due, self._who)
        try:
            if self.shares is not None and self._state is State.IDLE:
                self.shares.part()
                self.request("release")  # it is done when the border is crossed
        finally:
            self._turn.give()

    def reap(self) -> None:
        """Notice that an idle worker has ended by itself, so that `alive` says so."""
        if not self._turn.try_take():
            return  # whoever has the turn will notice
        try:
            if self._state is State.IDLE and self._connected().process.ended:
                self._finish(Event.DEATH, None)
        finally:
            self._turn.give()

    def release_soon(self) -> None:
        """Tell the worker of handles that died here, unless a request is just going to."""
        self._releases.soon(self._background)

    def begin_close(self) -> None:
        """Ask an idle worker to end, and do not wait for it; `close` does."""
        if self._end is not None or not self._turn.try_take():
            return
        try:
            if self._state is State.IDLE:
                self._end = endings.closed(self._who)
                self._connected().ask_to_end(time.monotonic() + CLOSE_GRACE_S)
        finally:
            self._turn.give()

    def close(self, timeout_s: float = CLOSE_GRACE_S) -> None:
        """End the worker: ask first, and kill it if it takes longer than `timeout_s`. May be called again.

        A request of another thread that is under way is waited for as long, and then broken off.
        """
        if not self.alive:
            return
        if os.getpid() != self._owner_pid:
            self.forget()
            return
        deadline = time.monotonic() + timeout_s
        reason = endings.closed(self._who)
        if not self._turn.try_until(Deadline(deadline, timeout_s)):
            self._end = self._end or reason
            self.kill()
            # Whoever is in a call finds it dead. If that one is in a hook of the user's, it finds it later.
            if not self._turn.try_until(Deadline(time.monotonic() + STATUS_S, STATUS_S)):
                return
        try:
            if self._state in (State.CLOSED, State.BROKEN):
                if self.restart is not None:
                    self.restart.give_up(self, reason)
                return  # by another thread, while this one waited for the lock
            if self._state is State.IDLE:
                self.begin_close()
                self._connected().process.exit_status(max(deadline - time.monotonic(), 0.0))
            self._finish(Event.CLOSE, reason)
        finally:
            self._turn.give()
        self._releases.join()

    def refuse(self, fault: RemoteProtocolError) -> IsohubError:
        """End the worker, whose answer turned out to make no sense in what it says, and return the error to raise."""
        self._turn.take(None, self._who)
        try:
            return self._finish(Event.DEATH, endings.lied(self._who, fault))
        finally:
            self._turn.give()

    def kill(self) -> None:
        """End the process at once, whatever it is doing. A request that waits for it fails."""
        if self._connection is not None:
            self._connection.process.kill()

    def check(self) -> None:
        """Raise if nothing can be asked of this worker.

        Raises:
            ForeignProcessError: This process is a fork of the one that has it.
            BrokenWorkerError: It died.
            WorkerClosedError: It was closed.
        """
        if os.getpid() != self._owner_pid:
            raise endings.foreign(self._who, self._owner_pid)
        if self._end is not None:
            raise endings.again(self._end)

    def forget(self) -> None:
        """Close our descriptors without ending anything: in a fork of the process that has the worker."""
        if self._connection is not None:
            self._connection.forget()
        self._services.close()
        if self.lease is not None:
            self.lease.close()

    def _connected(self) -> Connection:
        assert self._connection is not None, "a worker that was started has one"
        return self._connection

    def _finish(self, event: Event, error: IsohubError | None, overdue: Deadline | None = None) -> IsohubError:
        """End everything of the worker, and return why.

        Args:
            event: What happened to it.
            error: Why it is ended. None if it died by itself, or is overdue.
            overdue: The deadline that it missed.
        """
        self._callbacks.forget()  # also when it has ended: each call within another one comes by here
        if self._end is not None and self._state in (State.CLOSED, State.BROKEN):
            return endings.again(self._end)  # a request that was asked to make the answer has dealt with it
        connection = self._connected()
        self._state = after(self._state, event)
        self._end = self._end or error
        try:
            self._end = find_cause(self._who, connection, self.isolation, self._end, overdue)
        finally:
            # Also when a second Ctrl-C comes while the first is being dealt with.
            if self._end is None:
                self._end = endings.broken(self._who, None, ())
            connection.process.kill()
            connection.close()
            self.border.close()
            if self.sharing is not None:
                self.sharing.left(self)
            self._services.close()
            if self.lease is not None and not self.alive:  # else the next process needs the checkout
                self.lease.close()
        # A copy is raised: a traceback would keep the frames of the call, and with them the model, alive.
        return endings.again(self._end)

    @property
    def _who(self) -> str:
        return f"{self.label} (pid {self.pid})"
