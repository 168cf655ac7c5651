"""`isohub.bisect`: the first commit whose model differs from a good one.

::

    good ──────────────────────────────┐ stays loaded
    History.between(goods, bad) ──> choose ──> load, same inputs ──> Trial: good | bad | skipped ──┐
              ^────────────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from isohub import trace
from isohub.comparison.expression import Expression
from isohub.comparison.finding import Bisection
from isohub.comparison.history import Commit, History, choose
from isohub.comparison.inputs import Inputs
from isohub.comparison.numbers import Tolerance
from isohub.comparison.results import Pair
from isohub.comparison.runner import Plan, Progress, Runner
from isohub.comparison.sources import Source, at_ref
from isohub.comparison.subjects import Conditions, Subject, Together, opened
from isohub.comparison.trials import Trial, TrialCache, key_of
from isohub.errors import BisectError
from isohub.hub.cache import Cache
from isohub.hub.resolve import resolve
from isohub.options import Isolation
from isohub.refs import RepoRef

__all__ = ["bisect"]

_MODES = {"eval": False, "train": True, "loaded": None}
_CHECKS_OF = {"latency": "speed", "state": "state", "structure": "structure", "signature": "structure"}


def bisect(
    repo: str | os.PathLike[str],
    entrypoint: str,
    good: str,
    bad: str,
    inputs: Any = None,
    *,
    fail_on: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    seed: int = 0,
    preprocess: str | None = None,
    mode: Literal["eval", "train", "loaded"] = "eval",
    speed_s: float = 2.0,
    jobs: int | None = None,
    use_cache: bool = True,
    isolate: Isolation | None = None,
    source: str = "github",
    git_host: str | None = None,
    trust_repo: bool | Literal["check"] = "check",
    progress: Progress | None = None,
) -> Bisection:
    """Find the first commit whose model differs from a good one.

    Commits are chosen by git's own bisection, so that a history of n commits, with merges, takes about log2(n) loads
    beside those of the good and the bad one. Commits that do not load, or fail when they are called, are skipped.

    Args:
        repo: The repository; for a folder the git repository that it is part of.
        entrypoint: Name of an entrypoint in its hubconf.py.
        good: A branch, tag or commit whose model is as it should be.
        bad: One whose model is not.
        inputs: As in `isohub.compare`; a stream is read into memory. Without any, what
            entrypoints return is compared: plain data, or weights and modules.
        fail_on: When a commit counts as bad, such as `"max_abs > 1e-4"` or `"latency_ratio_low > 1.2"`; if nothing is
            said, when its outputs differ by more than the tolerance.
        args: Arguments of the entrypoint.
        kwargs: Keyword arguments of the entrypoint.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        seed: From which the random generators start, for each load and each call.
        preprocess: A function of hubconf.py that each version puts its inputs through first.
        mode: As in `isohub.compare`.
        speed_s: Seconds for measuring the speed of a commit, if `fail_on` asks for it.
        jobs: How many commits are tried at once; if nothing is said, as many as cores allow. More than one are a guess
            at what will be wanted next, so that it takes less time and more loads.
        use_cache: Whether to take over what earlier runs found, and to keep what this one finds.
        isolate: Settings of the workers.
        source: Where a plain `owner/name` lies, as in `isohub.load`.
        git_host: Another host, as in `isohub.load`.
        trust_repo: As in `isohub.load`.
        progress: Called with what is going on, how many commits were tried, and None.

    Returns:
        The commit, how it changed the files that were imported, and the numbers.

    Raises:
        BisectError: The bad commit does not differ from the good one, or does not load, or they have no history in
            common.
        ExpressionError: `fail_on` cannot be read.
        ValueError: An option is none of those that there are.
        RefError, ResolveError, FetchError, UntrustedRepoError: The repository cannot be had.
        Exception: What the good commit raised.

    Example:
        >>> found = isohub.bisect("git+file:///srv/models.git", "net", "v1", "main", torch.rand(8, 3, 32, 32))
        >>> print(found.first_bad.subject)
    """
    if mode not in _MODES:
        raise ValueError(f"mode takes {', '.join(map(repr, _MODES))}, not {mode!r}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    expression = None if fail_on is None else Expression(fail_on)
    base = RepoRef.parse(repo, source=source, git_host=git_host)
    ends = [_commit_of(at_ref(base, ref)) for ref in (good, bad)]
    count = jobs or max(1, (len(os.sched_getaffinity(0)) - 1) // 2)
    given = (inputs if isinstance(inputs, Inputs) else Inputs(inputs)).kept()
    conditions = Conditions(
        entrypoint=entrypoint,
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        seed=seed,
        preprocess=preprocess,
        training=_MODES[mode],
        isolation=isolate or Isolation(threads=max(1, torch.get_num_threads() // (1 + count))),
        trust_repo=trust_repo,
        # The commits come from the repository's own history.
        skip_validation=True,
    )
    plan = Plan(
        checks=_checks(given, expression),
        tolerance=Tolerance(rtol=rtol, atol=atol),
        speed_s=speed_s,
        progress=progress,
    )
    digest = key_of(
        {
            "repo": base.identity,
            "subdirectory": base.subdirectory,
            "good": ends[0],
            "entrypoint": entrypoint,
            "arguments": repr((conditions.args, sorted(conditions.kwargs.items()))),
            "inputs": given.digest(),
            "fail_on": fail_on,
            "how": [rtol, atol, seed, preprocess, mode, conditions.isolation.threads, sorted(plan.checks)],
            "torch": str(torch.__version__),
            # What a setup function does cannot be told from outside.
            "isolation": repr(conditions.isolation) if conditions.isolation.setup is None else os.urandom(8).hex(),
        }
    )
    with trace.step("compare.bisect", repo=str(base)), tempfile.TemporaryDirectory(prefix="isohub-bisect-") as folder:
        plan.tell("Reading the history")
        cache = TrialCache(digest, enabled=use_cache)
        how = _How(base=base, conditions=conditions, inputs=given, plan=plan, expression=expression, cache=cache)
        return _Search(how, History(at_ref(base, ends[0]), Path(folder) / "history.git")).run(ends[0], ends[1], count)


@dataclass(frozen=True, kw_only=True)
class _How:
    """What a trial is: of which repository, loaded how, called with what, when it is bad, what is known already."""

    base: RepoRef
    conditions: Conditions
    inputs: Inputs
    plan: Plan
    expression: Expression | None
    cache: TrialCache


class _Search:
    """Tries commits until one is the first bad one.

    Args:
        how: What a trial is.
        history: The commits.
    """

    def __init__(self, how: _How, history: History) -> None:
        self._base, self._conditions, self._inputs = how.base, how.conditions, how.inputs
        self._plan, self._expression, self._cache = how.plan, how.expression, how.cache
        self._history = history
        self._trials: dict[str, Trial] = {}
        self._trees: dict[str, str] = {}
        self._loads = 0
        self._good: Subject | None = None
        self._good_commit = ""
        self._open = ExitStack()

    def run(self, good: str, bad: str, jobs: int) -> Bisection:
        """Search between two commits; see `bisect`."""
        history = self._history
        for commit in (good, bad):
            if not history.has(commit):
                raise BisectError(
                    f"{commit[:10]} belongs to no branch or tag of {self._base.label}, so there is no history to it",
                    good=good,
                    bad=bad,
                )
        candidates = history.between([good], bad)
        self._trees = history.trees([good, *candidates])
        self._good_commit = good
        with self._open:
            self._check_ends(good, bad)
            first, suspects = self._narrow([good], bad, jobs)
        return self._result(good, bad, first, suspects, len(candidates))

    def _check_ends(self, good: str, bad: str) -> None:
        history = self._history
        base = history.merge_base(good, bad)
        if base == bad:
            raise BisectError(
                f"{bad[:10]}, the bad commit, is {'the good one' if good == bad else 'an ancestor of the good one'}: "
                "exchange good and bad to find when it became good",
                good=good,
                bad=bad,
            )
        worst = self._try([bad])[bad]
        if worst.verdict != "bad":
            what = "is no different" if worst.verdict == "good" else "cannot be compared"
            raise BisectError(f"{bad[:10]}, the bad commit, {what}: {worst.reason}", good=good, bad=bad)
        if base != good and self._try([base])[base].verdict == "bad":
            raise BisectError(
                f"{base[:10]}, which the good and the bad commit both come from, differs from the good one as well: "
                f"it was changed between the two. Bisect between {base[:10]}, as the good one, and {good[:10]}",
                good=good,
                bad=bad,
            )

    def _narrow(self, goods: list[str], bad: str, jobs: int) -> tuple[str | None, list[str]]:
        """Return the first bad commit, or those among which it is, if the rest had to be skipped."""
        while True:
            candidates = [commit for commit in self._history.between(goods, bad) if commit != bad]
            skipped = {commit for commit, trial in self._trials.items() if trial.verdict == "skipped"}
            chosen = choose(candidates, skipped)
            if chosen is None:
                return (bad, []) if not candidates else (None, [*candidates, bad])
            self._plan.tell(f"{len(candidates) + 1} commits left", len(self._trials), None)
            trial = self._try([chosen, *self._guesses(goods, bad, chosen, skipped, jobs - 1)])[chosen]
            if trial.verdict == "good":
                goods = [*goods, chosen]
            elif trial.verdict == "bad":
                bad = chosen

    def _guesses(self, goods: list[str], bad: str, chosen: str, skipped: set[str], count: int) -> list[str]:
        """Return what will be wanted next, whether `chosen` turns out bad or good."""
        guesses: list[str] = []
        for next_goods, next_bad in ((goods, chosen), ([*goods, chosen], bad)):
            if len(guesses) < count:
                following = [commit for commit in self._history.between(next_goods, next_bad) if commit != next_bad]
                guess = choose(following, skipped | {chosen})
                if guess is not None and guess not in guesses:
                    guesses.append(guess)
        return guesses

    def _try(self, commits: list[str]) -> dict[str, Trial]:
        """Return trials of commits, of those that are not known yet by loading them, all at once."""
        wanted = []
        for commit in commits:
            known = self._trials.get(commit) or self._cache.find(commit) or self._twin(commit)
            if known is None:
                wanted.append(commit)
            else:
                self._trials[commit] = known
        if wanted:
            for trial in self._load(wanted):
                self._trials[trial.commit] = trial
                self._cache.keep(trial)
        return {commit: self._trials[commit] for commit in commits}

    def _twin(self, commit: str) -> Trial | None:
        """Return the trial of a commit with exactly the same files."""
        tree = self._trees.get(commit)
        if tree is None:
            return None
        if tree == self._trees.get(self._good_commit):
            return Trial(commit=commit, verdict="good", reason="It has the files of the good commit.", how="same files")
        for other, trial in self._trials.items():
            if self._trees.get(other) == tree:
                return replace(trial, commit=commit, how="same files")
        return None

    def _load(self, commits: list[str]) -> list[Trial]:
        good = self._baseline()
        sources = [self._source(commit) for commit in commits]
        threads = ThreadPoolExecutor(1 + len(commits), thread_name_prefix="isohub-bisect")
        with threads as pool, ThreadPoolExecutor(1) as lane, opened(sources, self._conditions) as found:
            self._loads += len(commits)
            runner = Runner(Together([good, *found.subjects], pool, [lane, *found.lanes]), 0, self._inputs, self._plan)
            runner.run()
            versions = [runner.version(subject) for subject in (good, *found.subjects)]
            pairs = [runner.pair(1 + place, versions) for place in range(len(commits))]
        return [
            self._judged(commit, pair, version.files)
            for commit, pair, version in zip(commits, pairs, versions[1:], strict=True)
        ]

    def _judged(self, commit: str, pair: Pair, files: list[str]) -> Trial:
        expression, metrics = self._expression, pair.metrics
        verdict: Literal["good", "bad", "skipped"]
        reason: str | None = pair.verdict
        if pair.kind == "broken" and (expression is None or "broken" not in expression.names):
            verdict = "skipped"
        elif expression is None:
            verdict = "bad" if pair.kind == "different" else "good"
        elif expression.unknown(metrics):
            verdict, reason = "skipped", expression.reason(metrics)
        else:
            held = expression.reason(metrics)
            verdict, reason = ("good", pair.verdict) if held is None else ("bad", f"{pair.verdict} {held}")
        return Trial(
            commit=commit,
            verdict=verdict,
            reason=reason or "",
            metrics=metrics,
            findings=pair.findings,
            files=files,
        )

    def _baseline(self) -> Subject:
        """Return the good commit, loaded; it stays so for the whole search."""
        if self._good is None:
            together = self._open.enter_context(opened([self._source(self._good_commit)], self._conditions))
            self._good = together.subjects[0]
            self._loads += 1
        return self._good

    def _source(self, commit: str) -> Source:
        return Source(commit[:10], at_ref(self._base, commit))

    def _result(self, good: str, bad: str, first: str | None, suspects: list[str], commits: int) -> Bisection:
        history = self._history
        trial = self._trials.get(first) if first is not None else None
        told: Commit | None = None if first is None else history.commit(first)
        prefix = at_ref(self._base, good).subdirectory
        files = [f"{prefix}/{name}" if prefix else name for name in (trial.files if trial is not None else [])]
        # What the bad commit no longer imports, the good one did.
        worst = self._trials.get(bad)
        files += [name for name in (worst.files if worst is not None else []) if name not in files]
        return Bisection(
            repo=str(self._base),
            entrypoint=self._conditions.entrypoint,
            good=good,
            bad=bad,
            first_bad=told,
            suspects=[history.commit(commit) for commit in suspects],
            reason=trial.reason if trial is not None else "",
            findings=trial.findings if trial is not None else [],
            metrics=trial.metrics if trial is not None else {},
            diff=history.diff(told, files) if told is not None else [],
            changed_files=history.changed_files(told) if told is not None else [],
            commits=commits,
            loads=self._loads,
            trials=list(self._trials.values()),
        )


def _commit_of(ref: RepoRef) -> str:
    commit = resolve(ref, Cache()).commit
    assert commit is not None, "only a folder has none"
    return commit


def _checks(inputs: Inputs, expression: Expression | None) -> frozenset[str]:
    # Without inputs the outputs are what entrypoints return that is plain data.
    checks = {"code", "outputs", *(("state", "structure") if inputs.is_none else ())}
    for name in expression.names if expression is not None else ():
        checks.add(_CHECKS_OF.get(name.partition("_")[0], "outputs"))
        if name.startswith("gradient"):
            checks.add("gradients")
    return frozenset(checks)
