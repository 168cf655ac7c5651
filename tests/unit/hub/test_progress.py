"""How far a download is: nothing if it is quick, a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import pytest

from isohub.hub import progress
from isohub.hub.progress import Progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """A function that makes a terminal stderr, and returns one that tells what was drawn on it."""
    reading, writing = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb", buffering=0) as drawn:
        os.set_blocking(reading, False)

        def read() -> bytes:
            stream.flush()
            return drawn.read() or b""

        def use() -> Callable[[], bytes]:  # by the test itself: pytest puts its own stderr in place before that
            monkeypatch.setattr(sys, "stderr", stream)
            return read

        yield use


def bring(name: str) -> None:
    with Progress(name) as bar:
        bar.stands_at(0, 4_000_000)
        for _ in range(4):
            bar.advance(1_000_000)


def test_nothing_of_what_is_quick(terminal, caplog: pytest.LogCaptureFixture) -> None:
    """What takes less than a second draws no bar and writes no line."""
    caplog.set_level(logging.INFO, "isohub.hub")
    drawn = terminal()

    bring("quick.zip")

    assert (drawn(), caplog.messages) == (b"", [])


def test_a_bar_on_a_terminal(terminal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer has a bar with its name, and no lines in the log."""
    caplog.set_level(logging.INFO, "isohub.hub")
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.0)
    drawn = terminal()

    bring("slow.zip")

    assert b"slow.zip" in drawn()
    assert caplog.messages == []


def test_lines_elsewhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal there is a line in the log, not for every block, and nothing on stderr."""
    caplog.set_level(logging.INFO, "isohub.hub")
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.0)

    bring("slow.zip")

    assert caplog.messages == ["slow.zip: 0.0 of 4.0 MB"]
    assert capfd.readouterr() == ("", "")
