"""What a worker says of the time that a build took is shown, and not believed blindly."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from isohub import trace
from isohub.errors import RemoteProtocolError
from isohub.supervisor import parts


@pytest.fixture
def told() -> Iterator[list[trace.Step]]:
    steps: list[trace.Step] = []

    def listen(step: trace.Step) -> None:
        if step.state == "complete":
            steps.append(step)

    trace.add_listener(listen)
    yield steps
    trace.remove_listener(listen)


def test_one_after_the_other(told: list[trace.Step]):
    """The parts are steps that follow one another, and the last one ends with the answer."""
    before = time.monotonic()
    parts.tell([("hubconf", 0.25), ("entrypoint", 2.0), ("export", 0.5)], before - 3.0)

    assert [(step.name, step.duration_s) for step in told] == [
        ("worker.hubconf", 0.25),
        ("worker.entrypoint", 2.0),
        ("worker.export", 0.5),
    ]
    first, second, third = (step.start_s for step in told)
    assert (second - first, third - second) == (pytest.approx(0.25), pytest.approx(2.0))
    assert before <= third + 0.5 + 1e-6 <= time.monotonic() + 1e-5


@pytest.mark.parametrize(
    "took",
    [
        pytest.param([("hubconf", 3.1)], id="longer than the request"),
        pytest.param([("hubconf", 1.6), ("export", 1.6)], id="longer together"),
        pytest.param([("hubconf", -1.0)], id="negative"),
        pytest.param([("hubconf", float("inf"))], id="infinite"),
        pytest.param([("hubconf", float("nan"))], id="no number"),
        pytest.param([("hubconf", 0.1)] * 4, id="too many"),
    ],
)
def test_nonsense(took: list[tuple[str, float]], told: list[trace.Step]):
    """Times that no build can have taken end the worker, and are not told."""
    with pytest.raises(RemoteProtocolError, match="parts of a build"):
        parts.tell(took, time.monotonic() - 3.0)

    assert told == []
