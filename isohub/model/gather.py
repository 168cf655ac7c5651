"""Calls of several models at once, from one thread: `isohub.gather`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from isohub.model.module import IsolatedModule
from isohub.model.objects import BoundMethod, Lease, RemoteObject
from isohub.model.refusals import is_followed
from isohub.supervisor.exchange import Begun
from isohub.supervisor.worker import Worker
from isohub.wire.messages import Verb

__all__ = ["gather"]


def gather(calls: Iterable[tuple[Any, ...] | partial[Any]], *, return_exceptions: bool = False) -> list[Any]:
    """Call several models at the same time, and return what they return, in order.

    All calls are sent, then all are waited for: models in different workers compute at the same time. A tensor that
    goes to several of them is copied once for all of them. Calls that share a worker are made one after the other, in
    order, and so is what has to be called here: a module that has hooks in this program, or that lives in it. Those
    are called in the order given, while the others are at work.

    Args:
        calls: Each a tuple of what is called and its positional arguments, `(model, image)`; or a
            `functools.partial`, which may have keyword arguments. What is called: an isolated module, a
            `RemoteObject`, a method of one of these, or anything else that can be called.
        return_exceptions: Whether what a call raises stands in its place in the list, as `asyncio.gather` has it.

    Returns:
        The results, in the order of the calls.

    Raises:
        TypeError: Something in `calls` is no call; nothing was called.
        Exception: What the first of the calls that failed has raised, once all of them have ended.
        KeyboardInterrupt: And the workers whose answers were not there yet are killed, as by any call that is broken
            off.

    Example:
        >>> old, new = isohub.gather([(v1, image), (v2, image)])
    """
    jobs = [_job(number, call) for number, call in enumerate(calls)]
    results: list[Any] = [None] * len(jobs)
    failed: list[tuple[int, Exception]] = []
    while jobs:
        jobs = _round(jobs, results, failed)
    failed.sort(key=lambda one: one[0])
    if failed and not return_exceptions:
        first = failed[0][1]
        failed.clear()
        try:
            raise first
        finally:
            del first  # or this frame and what it raises would keep each other
    for place, error in failed:
        results[place] = error
    return results


class _Job(NamedTuple):
    """One call: by a request to its worker, or, where `worker` is None, by calling `target` here."""

    place: int
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    worker: Worker | None
    verb: Verb = "call"


def _job(place: int, call: Any) -> _Job:
    kwargs: dict[str, Any] = {}
    if isinstance(call, partial):
        target, args, kwargs = call.func, call.args, call.keywords
    elif isinstance(call, tuple) and call:
        target, args = call[0], call[1:]
    else:
        raise TypeError(
            f"gather() takes tuples such as (model, image), or functools.partial, and call {place} is a "
            f"{type(call).__name__}"
        )
    if not callable(target):
        raise TypeError(f"gather() takes what can be called, and got a {type(target).__name__} for call {place}")
    lease: Lease | None = getattr(target, "_isohub_lease", None) if _is_remote(target) else None
    # With a part, what the call does to the object is noted, to be done again after a restart; see `model.journal`.
    # And a generator of random numbers has to move on here as well.
    has_generator = torch.Generator in map(type, (*args, *kwargs.values()))
    if lease is None or has_generator or (isinstance(target, BoundMethod) and lease.part is not None):
        return _Job(place, target, args, kwargs, None)
    return _Job(place, target, args, kwargs, lease.worker, "method" if isinstance(target, BoundMethod) else "call")


def _is_remote(target: Any) -> bool:
    """Return whether a call of it is nothing but one request."""
    if is_followed():  # `ask` refuses what cannot be
        return False
    if type(target) is BoundMethod or issubclass(type(target), RemoteObject):
        return True
    if not issubclass(type(target), IsolatedModule) or torch._C._get_tracing_state() is not None:
        return False
    has_global_hooks = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not (has_global_hooks or target.has_hooks() or target._compiled_call_impl is not None)


def _round(jobs: list[_Job], results: list[Any], failed: list[tuple[int, Exception]]) -> list[_Job]:
    """Make at most one call of each worker, and all that are made here; return the calls that are left."""
    here = [job for job in jobs if job.worker is None]
    first: dict[int, _Job] = {}
    left = [job for job in jobs if job.worker is not None and first.setdefault(id(job.worker), job) is not job]
    begun: list[tuple[_Job, Begun]] = []
    try:
        # Always in this order, so that two threads never wait for each other's workers.
        together = [first[worker] for worker in sorted(first)]
        if together:
            _send(together, begun, failed)
        for job in here:
            _note(job, lambda job=job: job.target(*job.args, **job.kwargs), results, failed)  # type: ignore[misc]
        while begun:
            job, one = begun[0]
            _note(job, one.result, results, failed)
            del begun[0]
    except BaseException as interruption:
        for _, one in begun:
            one.break_off(interruption)
        raise
    return left


def _send(jobs: list[_Job], begun: list[tuple[_Job, Begun]], failed: list[tuple[int, Exception]]) -> None:
    worker = jobs[0].worker
    assert worker is not None, "calls that are made here are sent to nobody"
    with worker.common.offering(_common_tensors(jobs)):
        for job in jobs:
            lease: Lease = job.target._isohub_lease
            assert job.worker is not None
            try:
                name = job.target.__name__ if job.verb == "method" else ""
                path = job.target._isohub_path
                one = Begun(job.worker, job.verb, job.args, job.kwargs, of=lease, path=path, name=name)
            except Exception as error:  # noqa: BLE001 - raised once all calls have ended
                failed.append((job.place, error))
            else:
                begun.append((job, one))


def _note(job: _Job, call: Callable[[], Any], results: list[Any], failed: list[tuple[int, Exception]]) -> None:
    try:
        results[job.place] = call()
    except Exception as error:  # noqa: BLE001 - likewise
        failed.append((job.place, error))


def _common_tensors(jobs: list[_Job]) -> list[torch.Tensor]:
    """Return the tensors that more than one of the calls have among their arguments."""
    found: dict[int, torch.Tensor] = {}
    common: dict[int, torch.Tensor] = {}
    for job in jobs:
        own = {id(leaf): leaf for leaf in tree_leaves((job.args, job.kwargs)) if type(leaf) is torch.Tensor}
        common.update((key, found[key]) for key in own.keys() & found.keys())
        found.update(own)
    return list(common.values())
