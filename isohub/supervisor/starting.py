"""From a worker that is only planned to one that can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isohub import trace
from isohub.errors import BrokenWorkerError, WorkerStartError, WorkerTimeoutError
from isohub.supervisor import endings
from isohub.supervisor.connection import Connection
from isohub.supervisor.deadlines import nearest
from isohub.supervisor.exchange import Guard
from isohub.supervisor.raised import exception
from isohub.wire.lifecycle import Event, after
from isohub.wire.messages import Raised

if TYPE_CHECKING:
    from isohub.supervisor.idle import IdleWorkers
    from isohub.supervisor.worker import Worker
    from isohub.wire.messages import Prepare

__all__ = ["start"]


def start(worker: Worker, idle: IdleWorkers, prepare: Prepare) -> None:
    """Launch the process of a worker and prepare it.

    Args:
        worker: One that has no process, or none any more.
        idle: Where the process comes from.
        prepare: What it is told first.

    Raises:
        WorkerStartError: It does not become ready in `isolation.start_timeout_s`, or dies.
        WorkerTimeoutError: The deadline that the caller set passes first.
        Exception: Whatever the user's `setup` raised.
    """
    worker._turn.take(None, worker.label)  # nobody else asks it anything yet
    try:
        held, due = nearest(None), nearest(worker.isolation.start_timeout_s)
        assert due is not None
        try:
            with trace.step("supervisor.fork"):
                process = idle.launch(due.at)
        except BaseException as error:
            worker._state = after(worker._state, Event.DEATH)
            worker._end = endings.unready(worker.label, error)
            if not isinstance(error, WorkerStartError):
                raise
            if due is held and not due.left_s:
                raise endings.waited(worker.label, due.seconds) from error
            raise endings.again(worker._end) from error
        worker.pid = process.pid
        worker._connection = connection = Connection(process, worker._background, worker._services)
        try:
            with Guard(worker, due), trace.step("supervisor.prepare"):
                answer = connection.prepare(prepare, worker.border, due.at)
        except (BrokenWorkerError, WorkerTimeoutError) as error:
            if due is held and isinstance(error, WorkerTimeoutError):
                raise
            raise endings.unready(worker.label, error) from error
        connection.drain()
        if isinstance(answer, Raised):
            reason = exception(answer, worker._services.refused(answer.refusal))
            worker._finish(Event.DEATH, WorkerStartError(f"worker {worker.label}: its setup failed"))
            raise reason
        worker._state = after(worker._state, Event.PREPARED)
    finally:
        worker._turn.give()
