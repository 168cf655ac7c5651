"""Why a worker ended: found out while what is left of it is still there."""

from __future__ import annotations

import signal

from isohub.errors import IsohubError
from isohub.options import Isolation
from isohub.supervisor import endings
from isohub.supervisor.connection import Connection
from isohub.supervisor.deadlines import Deadline

__all__ = ["STATUS_S", "find_cause"]

# How long to wait for the exit status of a worker that has hung up; the forkserver reaps it at once.
STATUS_S = 2.0
# How long an overdue worker may take to say where it is, before it is killed for good.
TERM_GRACE_S = 1.0


def find_cause(
    who: str, connection: Connection, isolation: Isolation, known: IsohubError | None, overdue: Deadline | None
) -> IsohubError:
    """End the process, unless it has ended by itself, and return why.

    Args:
        who: The worker, with its pid.
        connection: The worker's.
        isolation: Its settings.
        known: Why it is ended, if that is known.
        overdue: The deadline that it missed, if it did. It is asked to end (SIGTERM), and says where it is, by
            `faulthandler`, which works in native code too; then it is killed.
    """
    process, restarts = connection.process, isolation.restart == "on-crash"
    if overdue is not None:
        connection.mute(True)  # what it says now is for the error, not for the terminal
        process.kill(signal.SIGTERM)
        process.exit_status(TERM_GRACE_S)
        known = known or endings.overdue(who, overdue.seconds, connection.tail(), restarts)
    if known is not None:
        process.kill()
    status = process.exit_status(STATUS_S)
    tail = connection.tail()
    if known is not None:
        return known
    if status is None and not process.ended:
        # It closed its end of the channel and lives on; nobody can talk to it any more.
        return endings.hung_up(who, tail, restarts)
    return endings.broken(who, status, tail, memory_bytes=isolation.memory_bytes, restarts=restarts)
