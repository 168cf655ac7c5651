"""One step of work: started, then complete or failed.

Every step of a load (`resolve`, `fetch`, `launch`, `build`, ...) runs under `step`, so that one place
decides what is told about it: a log record on the logger of that layer, and a call of every
registered listener. The idea is httpcore's `_trace.py`.

Records are of level DEBUG, two a step. `ISOHUB_LOG=1` in the environment prints those of steps that ended, one
line a step, on stderr; `ISOHUB_LOG=debug` prints all.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Step", "add_listener", "remove_listener", "step", "tell"]

VARIABLE = "ISOHUB_LOG"
_OFF = ("", "0", "false", "no", "off")


@dataclass
class Step:
    """A step that is running or over.

    Attributes:
        name: `layer.verb`, e.g. `"hub.resolve"`.
        fields: What it works on; for a log line and for listeners.
        start_s: When it began, by `time.monotonic`.
        duration_s: Seconds that it took; 0.0 while it runs.
        state: `"started"`, `"complete"` or `"failed"`.
    """

    name: str
    fields: dict[str, object] = field(default_factory=dict)
    start_s: float = 0.0
    duration_s: float = 0.0
    state: str = "started"


_listeners: list[Callable[[Step], None]] = []


def add_listener(listener: Callable[[Step], None]) -> None:
    """Call `listener` with each step as it starts and as it ends, in the thread that does it."""
    _listeners.append(listener)


def remove_listener(listener: Callable[[Step], None]) -> None:
    """Take back `add_listener`.

    Raises:
        ValueError: The listener is not registered.
    """
    _listeners.remove(listener)


@contextmanager
def step(name: str, **fields: object) -> Iterator[Step]:
    """Run the body as one named step; `fields` say what it works on."""
    this = Step(name, fields, time.monotonic())
    logger = _logger(name)
    _tell(logger, this)
    try:
        yield this
    except BaseException:
        this.state = "failed"
        raise
    else:
        this.state = "complete"
    finally:
        this.duration_s = time.monotonic() - this.start_s
        _tell(logger, this)


def tell(name: str, start_s: float, duration_s: float, **fields: object) -> None:
    """Tell of a step that is over, and that another process took, or the kernel."""
    this = Step(name, fields, start_s)
    logger = _logger(name)
    _tell(logger, this)
    this.state, this.duration_s = "complete", duration_s
    _tell(logger, this)


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(f"isohub.{name.split('.', 1)[0]}")


def _tell(logger: logging.Logger, this: Step) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        fields = " ".join(f"{key}={value}" for key, value in this.fields.items())
        told = (this.name, this.state, fields, this.duration_s * 1e3)
        logger.debug("%s %s %s (%.1f ms)", *told, extra={"isohub_state": this.state})
    for listener in tuple(_listeners):
        listener(this)


def _print_if_asked() -> None:
    """Print records on stderr, if the environment asks for it."""
    asked = os.environ.get(VARIABLE, "").lower()
    if asked in _OFF:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if asked != "debug":
        handler.addFilter(lambda record: getattr(record, "isohub_state", "") != "started")
    logger = logging.getLogger("isohub")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


_print_if_asked()
