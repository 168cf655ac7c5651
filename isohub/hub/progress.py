"""How far a download is: a bar on a terminal, lines in the log elsewhere, and nothing if it is over soon."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["Progress"]

_logger = logging.getLogger("isohub.hub")

SHOWN_AFTER_S = 1.0
_LINE_EVERY_S = 10.0


class Progress:
    """Tells how far something is while its `with` block runs.

    Args:
        name: What is brought.
        is_shown: Whether there may be a bar; lines go into the log all the same.
    """

    def __init__(self, name: str, *, is_shown: bool = True) -> None:
        self.name = name
        self._is_bar = is_shown and sys.stderr is not None and sys.stderr.isatty()
        self._came = 0
        self._total: int | None = None
        self._next_s = 0.0
        self._bar: Bar | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Progress:  # noqa: PYI034 - Self is of Python 3.11
        self._next_s = time.monotonic() + SHOWN_AFTER_S
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def stands_at(self, nbytes: int, total_bytes: int | None) -> None:
        """Say how much is here already, and how much it will be; None if nobody knows."""
        self._came, self._total = nbytes, total_bytes
        self._tell()

    def advance(self, nbytes: int) -> None:
        """Say that so many more bytes came."""
        self._came += nbytes
        self._tell()

    def _tell(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._came, total=self._total)
        elif time.monotonic() < self._next_s:
            return
        elif self._is_bar:
            self._bar = self._start()
        else:
            self._next_s = time.monotonic() + _LINE_EVERY_S
            of = f" of {self._total / 1e6:.1f}" if self._total else ""
            _logger.info("%s: %.1f%s MB", self.name, self._came / 1e6, of)

    def _start(self) -> Bar:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        # A console of its own: the global one may belong to a display of the caller's.
        bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self._stack.enter_context(bar)
        bar.add_task(self.name, total=self._total, completed=self._came)
        return bar
