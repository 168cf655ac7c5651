"""The states of a worker, as the parent sees them, and what leads from one to the next.

All transitions are in this table. This file does no I/O and knows no worker.
"""

from __future__ import annotations

import enum

__all__ = ["TRANSITIONS", "Event", "State", "after"]


class State(enum.Enum):
    """What a worker is doing."""

    STARTING = "starting"  #: launched, not yet prepared
    IDLE = "idle"  #: ready for a request
    BUSY = "busy"  #: a request is under way
    SERVING = "serving"  #: a request is under way, whose code waits for a call that this program makes
    CLOSED = "closed"  #: ended because this program said so
    BROKEN = "broken"  #: ended otherwise: crashed, killed, overdue, or caught lying

    __hash__ = object.__hash__  # there is one object for each; Enum's own asks Python for the name's, four times a call


class Event(enum.Enum):
    """What happens to a worker."""

    PREPARED = "prepared"  #: it answered `Prepare`
    REQUEST = "request"  #: a request was sent
    ANSWER = "answer"  #: its answer came
    CALLBACK = "callback"  #: it asked this program to make a call
    RESUME = "resume"  #: the call is made
    ANSWER_WITHIN = "answer within"  #: the answer came to a request that the call made
    CLOSE = "close"  #: the parent asked it to end
    DEATH = "death"  #: it ended, or was killed because it could not be believed any more
    RESTART = "restart"  #: a new process is started in its place: `Isolation(restart="on-crash")`

    __hash__ = object.__hash__


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.PREPARED): State.IDLE,
    (State.STARTING, Event.CLOSE): State.CLOSED,
    (State.STARTING, Event.DEATH): State.BROKEN,
    (State.IDLE, Event.REQUEST): State.BUSY,
    (State.IDLE, Event.CLOSE): State.CLOSED,
    (State.IDLE, Event.DEATH): State.BROKEN,
    (State.BUSY, Event.ANSWER): State.IDLE,
    (State.BUSY, Event.CALLBACK): State.SERVING,
    (State.BUSY, Event.ANSWER_WITHIN): State.SERVING,
    (State.SERVING, Event.REQUEST): State.BUSY,
    (State.SERVING, Event.RESUME): State.BUSY,
    (State.SERVING, Event.CLOSE): State.CLOSED,
    (State.SERVING, Event.DEATH): State.BROKEN,
    (State.BUSY, Event.CLOSE): State.CLOSED,
    (State.BUSY, Event.DEATH): State.BROKEN,
    # An ended worker stays what it is: a death after `close` is the close, and the other way round.
    (State.CLOSED, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.DEATH): State.CLOSED,
    (State.BROKEN, Event.CLOSE): State.BROKEN,
    (State.BROKEN, Event.DEATH): State.BROKEN,
    (State.BROKEN, Event.RESTART): State.STARTING,
}


def after(state: State, event: Event) -> State:
    """Return the state that follows.

    Raises:
        KeyError: The event cannot happen in that state, which is a fault of isohub's own.
    """
    return TRANSITIONS[state, event]
