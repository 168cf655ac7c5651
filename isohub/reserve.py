"""Workers kept ready before a load asks for one."""

from __future__ import annotations

from isohub.options import DEFAULT_START_TIMEOUT_S
from isohub.supervisor import early
from isohub.supervisor.idle import MAX_WORKERS

__all__ = ["warm"]


def warm(workers: int = 1, *, wait: bool = False) -> None:
    """Start what loads need ahead of them, and keep some workers in reserve from now on.

    Called before the program imports torch, it has the first load ready in about the time of that import, since the
    process that workers are forked from imports torch meanwhile.

    A worker in reserve is a process that was forked and not given a repository yet; a load that needs a worker takes
    one and is spared the fork. The reserve is filled up again in the background. It serves loads of any repository
    with any `Isolation`. `workers()` does not list it, `isohub ps` does, as `ready`. Each one takes some megabytes.
    `ISOHUB_IDLE_WORKERS` in the environment asks for the same, from the first load on.

    Args:
        workers: How many to keep, beside those in use; with 0, those there are end. `shutdown` ends them as well.
        wait: Whether to return only when they are ready, which takes as long as importing torch the first time.

    Raises:
        TypeError, ValueError: `workers` is no number, or not from 0 to 64.
        WorkerStartError: The forkserver, which workers are forked from, cannot be started, or, with `wait`, they do
            not come within a minute.

    Example:
        >>> isohub.warm(2)  # when a server starts, say
    """
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"isohub.warm takes a number of workers, not {workers!r}")
    if not 0 <= workers <= MAX_WORKERS:
        raise ValueError(f"isohub.warm keeps from 0 to {MAX_WORKERS} workers in reserve, not {workers}")
    early.start()  # before the next line, which imports torch if nobody has
    from isohub.api import _registry

    _registry.keep_idle(workers)
    if wait:
        _registry.wait_for_idle(DEFAULT_START_TIMEOUT_S)
