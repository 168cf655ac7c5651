"""`isohub.compare`: two or more versions on the same inputs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

import torch

from isohub import trace
from isohub.comparison.inputs import Inputs
from isohub.comparison.numbers import Tolerance
from isohub.comparison.report import Comparison
from isohub.comparison.runner import Plan, Progress, Runner
from isohub.comparison.sources import Source, sources_of
from isohub.comparison.subjects import Conditions, opened
from isohub.errors import ComparisonError
from isohub.options import Isolation

__all__ = ["CHECKS", "compare", "compare_sources"]

CHECKS = ("outputs", "state", "structure", "layers", "speed", "code", "gradients")
_DEFAULT_CHECKS = CHECKS[:-1]
_MODES = {"eval": False, "train": True, "loaded": None}


def compare(
    repo: str | os.PathLike[str],
    entrypoint: str,
    refs: Sequence[str | os.PathLike[str]],
    inputs: Any = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    checks: Sequence[str] = _DEFAULT_CHECKS,
    rtol: float = 0.0,
    atol: float = 0.0,
    seed: int = 0,
    preprocess: str | None = None,
    mode: Literal["eval", "train", "loaded"] = "eval",
    speed_s: float = 2.0,
    isolate: Isolation | None = None,
    source: str = "github",
    git_host: str | None = None,
    trust_repo: bool | Literal["check"] = "check",
    skip_validation: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Compare versions of a model on the same inputs: what differs, and does it matter.

    Each version runs in a worker of its own, all at the same time. Of a stream of inputs two are held at a time.

    Args:
        repo: The repository that plain refs are refs of.
        entrypoint: Name of an entrypoint in its hubconf.py.
        refs: Two or more: refs of `repo`, whole repo texts (`owner/fork:main`), or folders; see the guide.
        inputs: A tensor or an array for one call; a tuple of its positional or a dict of its keyword arguments; or
            an iterable of these, such as a `DataLoader`, of whose items `[sample, label]` the first is taken.
        args: Arguments of the entrypoint.
        kwargs: Keyword arguments of the entrypoint.
        baseline: Which of the refs the others are compared with; the first, if nothing is said.
        checks: What to compare: `"outputs"`, `"state"`, `"structure"`, `"layers"`, `"speed"`, `"code"`,
            `"gradients"`; all but gradients, if nothing is said.
        rtol: Relative tolerance: how far outputs may be apart and still count as the same.
        atol: Absolute tolerance.
        seed: From which the random generators start, for each load and each call.
        preprocess: A function of hubconf.py that each version puts its inputs through first.
        mode: `"eval"` and `"train"` switch modules to that mode, `"loaded"` leaves them as they come.
        speed_s: Seconds for measuring speed.
        isolate: Settings of the workers; if nothing is said, they share the cores.
        source: Where a plain `owner/name` lies, as in `isohub.load`.
        git_host: Another host, as in `isohub.load`.
        trust_repo: As in `isohub.load`.
        skip_validation: As in `isohub.load`.
        progress: Called with what is going on, how many inputs are through, and of how many (or None).
        command: A command line that does the same, for the report.

    Returns:
        What was found. A version that does not load, or fails when it is called, is a finding as well, unless it is
        the baseline.

    Raises:
        ComparisonError: There are fewer than two versions, or the inputs cannot be understood.
        ValueError: An option is none of those that there are.
        RefError, ResolveError, FetchError, UntrustedRepoError, LockError: A version cannot be had.
        Exception: What the baseline raised.

    Example:
        >>> found = isohub.compare("git+file:///srv/models.git", "net", ["v1", "v2"], torch.rand(8, 3, 32, 32))
        >>> print(found.verdict)
    """
    sources = sources_of(repo, refs, source=source, git_host=git_host)
    plan = Plan(
        checks=_checked(checks),
        tolerance=Tolerance(rtol=rtol, atol=atol),
        speed_s=speed_s,
        progress=progress,
    )
    if mode not in _MODES:
        raise ValueError(f"mode takes {', '.join(map(repr, _MODES))}, not {mode!r}")
    conditions = Conditions(
        entrypoint=entrypoint,
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        seed=seed,
        preprocess=preprocess,
        training=_MODES[mode],
        isolation=isolate or Isolation(threads=max(1, torch.get_num_threads() // len(sources))),
        trust_repo=trust_repo,
        skip_validation=skip_validation,
    )
    given = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
    return compare_sources(sources, given, conditions, plan, baseline=_place(sources, refs, baseline), command=command)


def compare_sources(
    sources: Sequence[Source],
    inputs: Inputs,
    conditions: Conditions,
    plan: Plan,
    *,
    baseline: int = 0,
    command: str = "",
) -> Comparison:
    """Compare versions that are known already; see `compare`."""
    began = time.perf_counter()
    with trace.step("compare.run", versions=len(sources)):
        plan.tell("Loading")
        with opened(sources, conditions) as together:
            runner = Runner(together, baseline, inputs, plan)
            runner.run()
            versions = [runner.version(subject) for subject in together.subjects]
            pairs = [runner.pair(place, versions) for place in range(len(sources)) if place != baseline]
    arguments = [repr(value) for value in conditions.args]
    arguments += [f"{name}={value!r}" for name, value in conditions.kwargs.items()]
    return Comparison(
        entrypoint=conditions.entrypoint,
        arguments=", ".join(arguments),
        baseline=sources[baseline].label,
        inputs=inputs.description,
        calls=runner.calls,
        samples=runner.samples,
        seed=conditions.seed,
        rtol=plan.tolerance.rtol,
        atol=plan.tolerance.atol,
        versions=versions,
        pairs=pairs,
        environment=_environment(conditions),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        duration_s=time.perf_counter() - began,
    )


def _checked(checks: Sequence[str]) -> frozenset[str]:
    unknown = [name for name in checks if name not in CHECKS] if not isinstance(checks, str) else [checks]
    if unknown:
        raise ValueError(f"checks takes a list of {', '.join(map(repr, CHECKS))}, not {', '.join(map(repr, unknown))}")
    return frozenset(checks)


def _place(sources: Sequence[Source], refs: Sequence[Any], baseline: str | None) -> int:
    if baseline is None:
        return 0
    for place, one in enumerate(sources):
        if baseline == one.label or (place < len(refs) and baseline == refs[place]):
            return place
    raise ComparisonError(
        f"the baseline {baseline!r} is none of the versions: {', '.join(one.label for one in sources)}"
    )


def _environment(conditions: Conditions) -> dict[str, str | int]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count() or 1,
        "threads": conditions.isolation.threads or torch.get_num_threads(),
    }
