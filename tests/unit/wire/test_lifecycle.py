from __future__ import annotations

import pytest

from isohub.wire.lifecycle import TRANSITIONS, Event, State, after

# What each event leads to in each state, by hand; "-" cannot happen.
TABLE = """
            PREPARED  REQUEST  ANSWER  CALLBACK  ANSWER_WITHIN  RESUME  CLOSE   DEATH   RESTART
STARTING    IDLE      -        -       -         -              -       CLOSED  BROKEN  -
IDLE        -         BUSY     -       -         -              -       CLOSED  BROKEN  -
BUSY        -         -        IDLE    SERVING   SERVING        -       CLOSED  BROKEN  -
SERVING     -         BUSY     -       -         -              BUSY    CLOSED  BROKEN  -
CLOSED      -         -        -       -         -              -       CLOSED  CLOSED  -
BROKEN      -         -        -       -         -              -       BROKEN  BROKEN  STARTING
"""


def rows() -> list[tuple[State, Event, State | None]]:
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]
    return [
        (State[state], Event[event], None if cell == "-" else State[cell])
        for state, *cells in lines
        for event, cell in zip(head, cells, strict=True)
    ]


def test_every_state_and_event_is_walked():
    """The table of this test has a cell for every state and event."""
    assert {(state, event) for state in State for event in Event} == {(state, event) for state, event, _ in rows()}


@pytest.mark.parametrize(("state", "event", "expected"), rows(), ids=lambda value: getattr(value, "name", "impossible"))
def test_what_follows(state: State, event: Event, expected: State | None):
    """Each event leads to its state, and one that cannot happen is a fault, not a surprise."""
    if expected is None:
        with pytest.raises(KeyError):
            after(state, event)
    else:
        assert expected is after(state, event)


def test_ended_is_for_good():
    """Nothing leads out of a closed state, and nothing but a restart out of a broken one."""
    ended = {State.CLOSED, State.BROKEN}
    out = {(state, event) for (state, event), target in TRANSITIONS.items() if state in ended and target is not state}

    assert {(State.BROKEN, Event.RESTART)} == out


def test_every_state_is_reached():
    """From the start, each state can be come to."""
    reached = {State.STARTING}
    while more := {target for (state, _), target in TRANSITIONS.items() if state in reached} - reached:
        reached |= more

    assert set(State) == reached
