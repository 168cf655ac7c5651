from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from isohub import trace

Told = list[tuple[str, str, dict[str, object], bool]]


@pytest.fixture
def told() -> Iterator[Told]:
    """What a listener was told: name, state, fields, and whether it had taken any time."""
    told: Told = []

    def listen(step: trace.Step) -> None:
        told.append((step.name, step.state, dict(step.fields), step.duration_s > 0))

    trace.add_listener(listen)
    yield told
    trace.remove_listener(listen)


def test_step_is_told_twice(told: Told):
    """A step is told when it starts and when it is complete, with its fields and how long it took."""
    with trace.step("hub.resolve", repo="a/b") as step:
        step.fields["commit"] = "1a2b"

    assert told == [
        ("hub.resolve", "started", {"repo": "a/b"}, False),
        ("hub.resolve", "complete", {"repo": "a/b", "commit": "1a2b"}, True),
    ]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_failed_step_is_told_and_raises(told: Told, error: BaseException):
    """A step that raises is told as failed, and the exception goes on."""
    with pytest.raises(type(error)), trace.step("hub.fetch"):
        raise error

    assert [state for _, state, *_ in told] == ["started", "failed"]


def test_steps_nest(told: Told):
    """A step within a step is told within it."""
    with trace.step("outer.one"), trace.step("inner.two"):
        pass

    assert [(name, state) for name, state, *_ in told] == [
        ("outer.one", "started"),
        ("inner.two", "started"),
        ("inner.two", "complete"),
        ("outer.one", "complete"),
    ]


def test_step_is_logged(caplog: pytest.LogCaptureFixture):
    """Each step is two records on the logger of its layer, at DEBUG."""
    with caplog.at_level(logging.DEBUG, "isohub"), trace.step("hub.resolve", repo="a/b"):
        pass

    assert [(record.name, record.levelname) for record in caplog.records] == [("isohub.hub", "DEBUG")] * 2
    assert caplog.messages[0].startswith("hub.resolve started repo=a/b")
    assert caplog.messages[1].startswith("hub.resolve complete repo=a/b")


def test_nothing_is_logged_by_default(caplog: pytest.LogCaptureFixture):
    """A program that did not ask for debug messages gets none."""
    with caplog.at_level(logging.INFO, "isohub"), trace.step("hub.resolve"):
        pass

    assert caplog.records == []


def test_listener_can_be_taken_back():
    """A listener that was removed is told nothing more; one that is not there cannot be removed."""
    told: list[trace.Step] = []
    listen: Callable[[trace.Step], None] = told.append
    trace.add_listener(listen)
    trace.remove_listener(listen)

    with trace.step("hub.resolve"):
        pass

    assert told == []
    with pytest.raises(ValueError, match="not in list"):
        trace.remove_listener(listen)


def test_listener_may_remove_itself():
    """A listener that leaves while it is told does not keep the next one from being told."""
    told: list[str] = []

    def once(step: trace.Step) -> None:
        told.append(step.state)
        trace.remove_listener(once)

    def always(step: trace.Step) -> None:
        told.append(f"always {step.state}")

    trace.add_listener(once)
    trace.add_listener(always)
    try:
        with trace.step("hub.resolve"):
            pass
    finally:
        trace.remove_listener(always)

    assert told == ["started", "always started", "always complete"]


def test_step_of_another_process_is_told_whole(told: Told):
    """A step that is over when it is told of has its beginning and its duration."""
    taken: list[tuple[str, float, float]] = []

    def listen(step: trace.Step) -> None:
        taken.append((step.state, step.start_s, step.duration_s))

    trace.add_listener(listen)
    try:
        trace.tell("worker.hubconf", 2.0, 0.5)
    finally:
        trace.remove_listener(listen)

    assert taken == [("started", 2.0, 0.0), ("complete", 2.0, 0.5)]
    assert [name for name, *_ in told] == ["worker.hubconf", "worker.hubconf"]
