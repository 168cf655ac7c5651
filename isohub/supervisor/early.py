"""A forkserver that is started before anything in this process imports torch.

Both import it at the same time then, which is most of what the first load of a program takes. This module needs no
torch itself.
"""

from __future__ import annotations

import atexit
import os

from isohub.supervisor.launch import ForkServer

__all__ = ["start", "take"]


class _Early:
    """The forkserver that waits for the registry. From then on it is the registry's alone."""

    def __init__(self) -> None:
        self.server: ForkServer | None = None
        self.taken = False

    def close(self) -> None:
        if self.server is not None:
            self.server.close()

    def forget(self) -> None:
        if self.server is not None:
            self.server.forget()


_early = _Early()


def start() -> None:
    """Start the forkserver that the registry is going to use, unless it has one; does not wait for it."""
    if _early.taken or _early.server is not None:
        return
    _early.server = ForkServer()
    # As long as the registry does not see to it: the end of the program, and forks of this process.
    atexit.register(_early.close)
    os.register_at_fork(after_in_child=_early.forget)
    _early.server.ensure_running()


def take() -> ForkServer:
    """Return the forkserver that was started, or a new one that is not; the first to ask gets it."""
    server, _early.server = _early.server, None
    _early.taken = True
    return server or ForkServer()
