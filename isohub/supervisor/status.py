"""What a worker is, does and takes at one moment, for people and monitoring."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isohub.supervisor.memory import Memory, memory_of

if TYPE_CHECKING:
    from isohub.supervisor.worker import Worker

__all__ = ["WorkerStatus", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker at one moment.

    Attributes:
        label: The repository as people know it, `owner/name:ref@1a2b3c4`.
        pid: Its process id.
        repo: The repository, `owner/name`.
        ref: The branch or tag that was taken; None for a commit or a working tree.
        commit: 40 hexadecimal digits; None for a working tree.
        state: `"starting"`, `"idle"`, `"busy"`, `"serving"`, `"closed"` or `"broken"`.
        calls: How many requests it has answered.
        handles: How many of its objects this program holds.
        uptime_s: Seconds since it was launched.
        last_call_s: Seconds since it last answered a request; None when it never has.
        weights_bytes: Weights in shared memory.
        equal_weights_bytes: Of these, what other workers have as well, and is kept once.
        memory: What it takes of the machine's memory.
    """

    label: str
    pid: int
    repo: str
    ref: str | None
    commit: str | None
    state: str
    calls: int
    handles: int
    uptime_s: float
    last_call_s: float | None
    weights_bytes: int
    equal_weights_bytes: int
    memory: Memory


def status_of(worker: Worker) -> WorkerStatus:
    """Return what a worker is, does and takes now; asks the kernel, not the worker."""
    now, checkout = time.time(), worker.checkout  # noqa: TID251 - what it is compared with are dates
    return WorkerStatus(
        label=worker.label,
        pid=worker.pid,
        repo=worker.label if checkout is None else f"{checkout.repo.owner}/{checkout.repo.name}",
        ref=None if checkout is None else checkout.ref_name,
        commit=None if checkout is None else checkout.commit,
        state=worker.state,
        calls=worker.calls,
        handles=worker.border.handles,
        # A wall clock may be set back meanwhile.
        uptime_s=max(now - worker.started_at, 0.0),
        last_call_s=None if worker.last_call_at is None else max(now - worker.last_call_at, 0.0),
        weights_bytes=worker.weights_nbytes,
        equal_weights_bytes=0 if worker.shares is None else worker.shares.nbytes,
        memory=memory_of(worker.pid),
    )
