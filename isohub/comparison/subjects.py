"""The versions while they are compared: each loaded into a worker of its own, asked by a thread of its own.

Errors of a version's own (its code raises, its worker dies) are a result, and are kept in it. All others, such as
a host that cannot be reached, are raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import torch
from torch.utils._pytree import tree_leaves

from isohub import api
from isohub.comparison import answers, probes
from isohub.comparison.answers import clean
from isohub.comparison.inputs import Call
from isohub.comparison.sources import Source
from isohub.errors import (
    BrokenWorkerError,
    EntrypointError,
    IsohubError,
    MissingDependencyError,
    RemoteError,
    RemoteProtocolError,
    WorkerTimeoutError,
)
from isohub.model.module import IsolatedModule
from isohub.model.objects import RemoteObject, run_in
from isohub.options import Isolation

__all__ = ["Conditions", "Subject", "Together", "is_its_own", "opened"]

# What a version does, rather than what keeps it from being tried.
_ITS_OWN = (
    *(RemoteError, EntrypointError, MissingDependencyError, BrokenWorkerError, WorkerTimeoutError),
    RemoteProtocolError,
)
_MARK = "ISOHUB_COMPARISON"
_MAX_ERROR = 1000


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all versions have in common.

    Attributes:
        entrypoint: The entrypoint.
        args: Its arguments.
        kwargs: Its keyword arguments.
        seed: From which the random generators start for each load and each call.
        preprocess: A function of hubconf.py that each version puts its inputs through; None for none.
        training: Whether modules are in training mode; None for the mode that they come in.
        isolation: Settings of the workers.
        trust_repo: As in `isohub.load`.
        verbose: Whether to pass on what the repositories print.
        skip_validation: As in `isohub.load`.
    """

    entrypoint: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    preprocess: str | None
    training: bool | None
    isolation: Isolation
    trust_repo: Any = "check"
    verbose: bool = False
    skip_validation: bool = False


class Subject:
    """One version, loaded.

    Attributes:
        source: Which it is.
        error: Why it cannot be compared; None if it can.
        cause: The error itself.
        raised: What came of the last probe that failed.
        result: What the entrypoint returned.
        target: The part of it that is called: the first module, or else the first object that stayed in the worker.
        was_training: The mode that it came in; None for what is no module.
        facts: What its hubconf.py says of the entrypoint.
        peak_bytes: How much more memory the first call took at its peak; None if it is not known.
    """

    def __init__(self, source: Source, repo: api.Repo | None, conditions: Conditions) -> None:
        self.source = source
        self.repo = repo
        self.error: str | None = None
        self.cause: Exception | None = None
        self.raised: Exception | None = None
        self.result: Any = None
        self.target: Any = None
        self.facts: dict[str, Any] = {}
        self.peak_bytes: int | None = None
        self._caller: Callable[..., Any] | None = None
        self._conditions = conditions

    def __repr__(self) -> str:
        return f"<Subject {self.source.label} {self.error or 'alive'}>"

    @property
    def module(self) -> IsolatedModule | None:
        """The target, if it is a module."""
        return self.target if isinstance(self.target, IsolatedModule) else None

    @property
    def is_called(self) -> bool:
        """Whether there is something to call; else what the entrypoint returned is the output."""
        return self.target is not None and bool(self.facts.get("callable"))

    def warm_up(self) -> None:
        """Start the worker and import hubconf.py."""
        assert self.repo is not None, "only what was resolved is loaded"
        self.repo.list()

    def load(self) -> None:
        """Load from the entrypoint, and ask what there is to know of it."""
        assert self.repo is not None, "only what was resolved is loaded"
        conditions = self._conditions
        # Weights that are drawn are drawn alike in all versions.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(conditions.seed)
            self.result = self.repo.load(conditions.entrypoint, *conditions.args, **conditions.kwargs)
        self.target = _target(self.result)
        if self.target is None:
            return
        facts = self.ask(probes.facts, conditions.entrypoint)
        if not isinstance(facts, dict):
            raise RemoteProtocolError("no facts where they are due")
        self.facts = {
            "signature": answers.text(facts.get("signature"), 2000),
            "docstring": answers.text(facts.get("docstring")),
            "dependencies": answers.texts(facts.get("dependencies"), 200),
            "type": answers.text(facts.get("type"), 200),
            "training": answers.flag(facts.get("training")),
            "callable": answers.flag(facts.get("callable")),
        }
        if conditions.training is not None and self.module is not None:
            self.module.train(conditions.training)

    def ask(self, probe: Callable[..., Any], *args: Any) -> Any:
        """Run a probe on the target, in the worker.

        Raises:
            Exception: What the probe raised, or became of the worker.
        """
        try:
            return run_in(self.target, probe, *args)
        except Exception as error:
            self.raised = error
            raise

    def arguments(self, call: Call, number: int = 0) -> probes.Given:
        """Return what a probe needs to call the target with the `number`-th input."""
        return call.args, dict(call.kwargs), self._conditions.seed + number, self._conditions.preprocess

    def call(self, call: Call, number: int = 0) -> tuple[Any, float]:
        """Call the target and return its output, and the seconds that the worker took for it."""
        if self._caller is None:
            caller = self.ask(probes.Caller, self._conditions.seed, self._conditions.preprocess)
            if not isinstance(caller, RemoteObject) or not callable(caller):
                raise RemoteProtocolError("no object to call where one is due")
            self._caller = caller
        measured = number == 0 and self.peak_bytes is None
        start = time.perf_counter()
        try:
            answer = self._caller(call.args, dict(call.kwargs), number, measured)
        except Exception as error:
            self.raised = error
            raise
        output, seconds, *peak = _parts(answer, 3 if measured else 2)
        if peak:
            self.peak_bytes = None if peak[0] is None else answers.number(peak[0])
        return output, answers.seconds(seconds, time.perf_counter() - start)

    def attempt(self, step: Callable[..., Any], *args: Any) -> Any:
        """Take a step; an error of the version's own is kept, and None returned."""
        if self.error is not None:
            return None
        try:
            return step(*args)
        except Exception as error:
            if not is_its_own(error):
                raise
            self.fail(error)
            return None

    def let_go(self) -> None:
        """Forget what lives in the worker, which is about to end."""
        self.result = self.target = self._caller = None

    def fail(self, error: Exception) -> None:
        """Give this version up: that is how it differs from the others."""
        name = getattr(error.__cause__ if isinstance(error.__cause__, RemoteError) else error, "type_name", "")
        self.cause = error
        self.error = clean(f"{name or type(error).__name__}: {error}", _MAX_ERROR)


class Together:
    """Has all versions do something at the same time, a thread each.

    Attributes:
        subjects: The versions.
        pool: Threads for what has no order.
        lanes: A thread for each version: two steps of a model that keeps a state are taken in order.
    """

    def __init__(
        self, subjects: Sequence[Subject], pool: ThreadPoolExecutor, lanes: Sequence[ThreadPoolExecutor]
    ) -> None:
        self.subjects = list(subjects)
        self.pool = pool
        self.lanes = list(lanes)

    def begin(self, step: Callable[..., Any], *args: Any) -> list[Future[Any]]:
        """Let each version begin a step, a function that is given the version first."""
        return [
            lane.submit(subject.attempt, step, subject, *args)
            for subject, lane in zip(self.subjects, self.lanes, strict=True)
        ]

    def begin_call(self, step: Callable[..., Any], call: Call, *args: Any) -> Callable[[], list[Any]]:
        """Let each version begin a step with this call, whose tensors are copied once for all; return what waits."""
        workers = [subject.target._isohub_lease.worker for subject in self.subjects if subject.target is not None]
        tensors = [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, torch.Tensor)]
        with ExitStack() as stack:
            if len(workers) > 1:
                stack.enter_context(workers[0].common.offering(tensors))
            futures = self.begin(step, call, *args)
            held = stack.pop_all()

        def results() -> list[Any]:
            with held:
                return [future.result() for future in futures]

        return results

    def do(self, step: Callable[..., Any], *args: Any) -> list[Any]:
        """Have each version take a step, and return what came, in order."""
        return [future.result() for future in self.begin(step, *args)]


@contextmanager
def opened(sources: Sequence[Source], conditions: Conditions) -> Iterator[Together]:
    """Load all versions, and end their workers after the body.

    Raises:
        ResolveError, FetchError, UntrustedRepoError, LockError: A version cannot be had.
    """
    marks = [f"{uuid4().hex}-{number}" for number in range(len(sources))]
    isolations = [
        # With a worker of its own each, even where two refs are one commit, and where others of this program use it.
        replace(conditions.isolation, env={**conditions.isolation.env, _MARK: mark}, dedicated=False)
        for mark in marks
    ]
    subjects: list[Subject] = []
    pool = ThreadPoolExecutor(len(sources), thread_name_prefix="isohub-compare")
    lanes = [ThreadPoolExecutor(1, thread_name_prefix="isohub-compare") for _ in sources]
    try:
        # One after the other: it may ask on the terminal whether the code is trusted.
        for source, isolation in zip(sources, isolations, strict=True):
            subjects.append(_resolved(source, isolation, conditions))
        together = Together(subjects, pool, lanes)
        together.do(Subject.warm_up)
        for subject in subjects:
            subject.attempt(subject.load)
        yield together
    except BaseException:
        # A thread that waits for a worker ends with it.
        for worker in api.workers():
            if worker.isolation.env.get(_MARK) in marks:
                worker.kill()
        raise
    finally:
        for threads in (pool, *lanes):
            threads.shutdown()
        for subject in subjects:
            subject.let_go()
            if subject.repo is not None:
                subject.repo.close()


def _resolved(source: Source, isolation: Isolation, conditions: Conditions) -> Subject:
    try:
        repo = api.Repo(
            str(source.ref),
            isolate=isolation,
            trust_repo=conditions.trust_repo,
            verbose=conditions.verbose,
            skip_validation=conditions.skip_validation,
        )
    except FileNotFoundError as error:  # there is no hubconf.py
        subject = Subject(source, None, conditions)
        subject.fail(error)
        return subject
    return Subject(source, repo, conditions)


def is_its_own(error: Exception) -> bool:
    """Return whether an error is a version's own doing."""
    if isinstance(error, IsohubError):
        return isinstance(error, _ITS_OWN)
    return isinstance(error.__cause__, RemoteError) or isinstance(error, FileNotFoundError)


def _target(result: Any) -> Any:
    found = list(_remote_parts(result, 0))
    return next((part for part in found if isinstance(part, IsolatedModule)), found[0] if found else None)


def _remote_parts(value: Any, depth: int) -> Iterator[Any]:
    if getattr(type(value), "_isohub_lease", None) is not None or "_isohub_lease" in getattr(value, "__dict__", {}):
        yield value
    elif isinstance(value, list | tuple | dict) and depth < 5:
        for member in value.values() if isinstance(value, dict) else value:
            yield from _remote_parts(member, depth + 1)


def _parts(value: object, count: int) -> tuple[Any, ...]:
    if not isinstance(value, tuple) or len(value) != count:
        raise RemoteProtocolError(f"no {count} values where they are due")
    return value
