"""One request to a worker, from what is said to what the answer says.

Whatever breaks it in the middle (death, deadline, nonsense, Ctrl-C) ends the worker, since nobody could say what the
next bytes on the channel belong to.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.shm.channel import DeadlineError, PeerGoneError
from isohub.supervisor import endings, parts
from isohub.supervisor.deadlines import Deadline, nearest, until
from isohub.supervisor.raised import exception
from isohub.wire.lifecycle import Event, State, after
from isohub.wire.messages import Callback, Payload, Raised, Returned, Verb

if TYPE_CHECKING:
    from types import TracebackType

    from isohub.supervisor.worker import Worker

__all__ = ["Begun", "Exchange", "Guard"]


class Exchange:
    """One request, made by whoever has the worker's turn.

    `make` does all of it. `say`, `send`, `take` and `settle` are its steps, for whoever has something to do while the
    worker is at work.

    Args:
        worker: Whom to ask.
        verb: What to do.
        due: Until when.
    """

    def __init__(self, worker: Worker, verb: Verb, due: Deadline | None) -> None:
        self._worker = worker
        self._verb = verb
        self._due = due
        self._deadline = None if due is None else due.at
        self._said: tuple[bytes, list[int]] = b"", []
        self._answered = Event.ANSWER  # what the answer will be to the state of the worker
        self._begun = 0.0
        self._answer: Returned | Raised = Returned()
        self._value: Any = None

    def make(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, muted: bool, of: Any, fields: dict[str, Any]
    ) -> tuple[Any, list[Exception]]:
        """Return the value of the answer, and what to raise instead, alone in a list; see `Worker.request`."""
        self.say(args, kwargs, of, fields)
        with Guard(self._worker, self._due):
            self.send(muted=muted)
            self.take()
        return self.settle()

    def say(self, args: tuple[Any, ...], kwargs: dict[str, Any], of: Any, fields: dict[str, Any]) -> None:
        """Have the request ready; nothing is sent, and nothing kept if it cannot be said."""
        worker = self._worker
        worker.check()
        if worker._state not in (State.IDLE, State.SERVING):
            raise endings.reentered(worker._who)
        if self._due is not None and not self._due.left_s:
            raise endings.waited(worker._who, self._due.seconds)
        if of is not None:
            fields["handle"] = worker.border.proxies.handle_of(of)
        self._answered = Event.ANSWER if worker._state is State.IDLE else Event.ANSWER_WITHIN
        self._said = self._request(self._verb, worker.border.pack(args, kwargs), fields)

    def send(self, *, muted: bool = False) -> None:
        """Send the request; from now on whatever goes wrong ends the worker, see `Guard`."""
        worker, connection = self._worker, self._worker._connected()
        self._begun = time.monotonic()
        worker._state = after(worker._state, Event.REQUEST)
        connection.mute(muted)
        connection.send(*self._said, self._deadline)
        worker.border.sent()

    def take(self) -> None:
        """Wait for the answer and take in what it says."""
        worker = self._worker
        answer = worker._connected().answer(worker.border, self._deadline, self._call_back)
        if self._verb == "build" and isinstance(answer, Returned):
            parts.tell(answer.took, self._begun)
        worker._generator.answered(answer.rng)
        worker._state = after(worker._state, self._answered)
        if isinstance(answer, Returned):
            self._value = worker.border.unpack(answer.payload)
        # Afterwards: the worker may have let go of what it sends, such as a state dict.
        worker.border.settle(answer.freed, answer.dropped)
        if self._verb == "build" and worker.sharing is not None and isinstance(answer, Returned):
            worker.sharing.note(worker, answer.payload.blocks)
        self._answer = answer

    def settle(self) -> tuple[Any, list[Exception]]:
        """Do what is left to do; return the value, and what to raise instead, alone in a list."""
        worker, connection, answer = self._worker, self._worker._connected(), self._answer
        refused = worker._services.refused(answer.refusal if isinstance(answer, Raised) else 0)
        if self._verb != "release":  # that is nobody's call
            worker.calls, worker.last_call_at = worker.calls + 1, time.time()  # noqa: TID251 - a date as well
        connection.drain()
        connection.mute(False)
        if self._answered is Event.ANSWER:
            worker.border.settled()
            thrown = worker._callbacks.settle(answer)
            if worker.border.proxies.has_released:
                worker.release_soon()  # it was not free for those that died meanwhile
        else:
            thrown = worker._callbacks.find(answer)
        value, self._value = self._value, None
        return value, [exception(answer, refused)] if isinstance(answer, Raised) and not thrown else thrown

    def _call_back(self, callback: Callback) -> tuple[bytes, list[int]]:
        """Make a call that the worker's code makes of a module here; return the request that says how it ended."""
        worker, border = self._worker, self._worker.border
        worker._generator.answered(callback.state.rng)
        worker._state = after(worker._state, Event.CALLBACK)
        arguments = border.unpack(callback.payload)
        border.settle(callback.freed, callback.dropped)
        verb, value, number = worker._callbacks.make(callback, arguments, border.proxies.find)
        worker.check()  # the call may have ended the worker
        try:
            said = self._request(verb, border.pack((value,), {}), {"handle": number})
        except LocalProtocolError as error:  # a hook returned what cannot cross
            said = self._request("throw", border.pack((), {}), {"handle": worker._callbacks.threw(error)})
        worker._state = after(worker._state, Event.RESUME)
        return said

    def _request(self, verb: Verb, payload: Payload, fields: dict[str, Any]) -> tuple[bytes, list[int]]:
        """Return a request as bytes, and the descriptors that go with it."""
        worker = self._worker
        try:
            return worker.border.say(verb, payload, worker._generator.current(), fields)
        except BaseException:
            worker._generator.unsend()
            raise


class Begun:
    """A request that was sent, and whose answer nobody has waited for yet. The thread has the worker's turn until then.

    Args:
        worker: Whom to ask.
        verb: What to do.
        args: Positional arguments for it.
        kwargs: Keyword arguments for it.
        of: The lease of the object to do it with.
        **fields: Further fields of `wire.messages.Request`.

    Raises:
        IsohubError: As `Worker.request`, of which this is the first half.
    """

    def __init__(
        self, worker: Worker, verb: Verb, args: tuple[Any, ...], kwargs: dict[str, Any], *, of: Any, **fields: Any
    ) -> None:
        if os.getpid() != worker._owner_pid:
            worker.check()
        self._worker = worker
        self._due = nearest(worker.isolation.timeout_s)
        self._exchange = Exchange(worker, verb, self._due)
        worker._turn.take(self._due, worker._who)
        with ExitStack() as stack:
            stack.callback(worker._turn.give)
            if worker.restart is not None:
                stack.enter_context(worker.restart.around(worker, verb))
            self._exchange.say(args, kwargs, of, fields)
            with Guard(worker, self._due):
                self._exchange.send()
            self._held = stack.pop_all()

    def result(self) -> Any:
        """Wait for the answer and return its value, or raise what it says; as `Worker.request`."""
        with self._held:
            with Guard(self._worker, self._due):
                self._exchange.take()
            value, raised = self._exchange.settle()
        if raised:
            raise raised.pop()
        return value

    def break_off(self, interruption: BaseException) -> None:
        """End the worker: nobody is going to wait for the answer."""
        with self._held:
            worker = self._worker
            worker._finish(Event.DEATH, endings.interrupted(worker._who, interruption, worker.restart is not None))


class Guard:
    """Turns every way in which an exchange can break into the end of the worker and its error.

    Args:
        worker: Whose exchange it is.
        due: Until when it may take; holds as well for what hooks ask of workers meanwhile.
    """

    # A class, since it is there for each call: a generator as a context manager takes five times as long.
    __slots__ = ("_due", "_until", "_worker")

    def __init__(self, worker: Worker, due: Deadline | None) -> None:
        self._worker = worker
        self._due = due
        self._until = None if due is None else until(due)

    def __enter__(self) -> None:
        if self._until is not None:
            self._until.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._until is not None:
            self._until.__exit__(kind, error, traceback)
        if error is not None:
            self._broken(error)

    def _broken(self, error: BaseException) -> None:
        worker = self._worker
        if isinstance(error, PeerGoneError):
            raise worker._finish(Event.DEATH, None) from None
        if isinstance(error, DeadlineError):
            raise worker._finish(Event.DEATH, None, self._due) from None
        if isinstance(error, RemoteProtocolError):
            raise worker._finish(Event.DEATH, endings.lied(worker._who, error)) from error
        # Ctrl-C, say. The answer may still come, and would be taken for that of the next request.
        worker._finish(Event.DEATH, endings.interrupted(worker._who, error, worker.restart is not None))
