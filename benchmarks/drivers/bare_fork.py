"""The program of a forkserver whose forks write one byte and end: what a worker costs at the least.

It is `multiprocess`'s loop with what isohub's forkserver has imported, so that a fork of it costs as much as a fork
of that one.
"""

from __future__ import annotations

import os
from typing import Any

from multiprocess import forkserver


def main(listener_fd: int, alive_fd: int, preload: list[str]) -> None:
    forkserver._serve_one = write_a_byte
    forkserver.main(listener_fd, alive_fd, preload)


def write_a_byte(channel: int, *_: Any) -> int:
    os.write(channel, b"x")
    return 0
