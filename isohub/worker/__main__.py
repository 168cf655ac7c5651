"""The program a worker process runs.

Contract:

* The process has one end of a socket pair, open as the descriptor that `main` is given (or that the
  command line names: `python -m isohub.worker FD`). It speaks the messages of `isohub.wire.messages`.
* Its stdout and stderr are where its output should go; its stdin is empty.
* It ends with exit code 0 when the other end closes or asks it to, 70 (EX_SOFTWARE) when isohub itself
  failed in it, and otherwise with what the repository's code made of it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import traceback

from isohub.shm.channel import Channel, PeerGoneError
from isohub.worker.serve import serve
from isohub.worker.title import WORKER, name_process

__all__ = ["main"]

EX_SOFTWARE = 70


def main(fd: int) -> int:
    """Serve the parent at the other end of `fd` until it has enough; return the exit code."""
    # A crash in native code leaves a traceback on stderr, which the parent's error then shows.
    with contextlib.suppress(Exception):
        faulthandler.enable()
    _tell_place(on=True)
    name_process(WORKER)
    channel = Channel(socket.socket(fileno=fd), accept_descriptors=True)
    # A fork that the repository makes must neither talk to the parent nor keep the channel open after us.
    os.register_at_fork(after_in_child=channel.close)
    os.register_at_fork(
        before=functools.partial(_tell_place, on=False), after_in_parent=functools.partial(_tell_place, on=True)
    )
    try:
        serve(channel)
    except PeerGoneError:
        pass  # the parent ended, or closed us without a word
    except Exception:  # noqa: BLE001 - whatever it is, the parent learns it from stderr and the code
        with contextlib.suppress(Exception):  # the repository may have closed it
            traceback.print_exc()
        return EX_SOFTWARE
    # A forked child skips these otherwise; the repository may have registered a clean-up.
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return 0


def _tell_place(on: bool) -> None:
    """Have this process say where it is when it gets SIGTERM, by which the parent ends a worker that is overdue.

    A fork that the repository makes does not: `Process.terminate` of `multiprocessing` sends the same signal. A
    handler of the repository's own stays.
    """
    with contextlib.suppress(Exception):
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        if on:
            faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)  # in native code too
        else:
            faulthandler.unregister(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
