"""Takes versions through all checks: what `isohub.compare` and `isohub.bisect` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from isohub.comparison import answers, probes
from isohub.comparison.code import compare_code, requirement_files
from isohub.comparison.inputs import Call, Inputs
from isohub.comparison.layers import compare_gradients, compare_layers
from isohub.comparison.leaves import leaves_of
from isohub.comparison.numbers import Difference, Tolerance
from isohub.comparison.results import Pair, Version
from isohub.comparison.speed import Latency, measure_speed, ratio_of
from isohub.comparison.states import StateDifference, compare_states, renames_of
from isohub.comparison.structure import compare_structures, tree_of
from isohub.comparison.subjects import Subject, Together, is_its_own
from isohub.comparison.verdict import Found, judge
from isohub.errors import ProtocolError, WorkerError
from isohub.supervisor.memory import memory_of

__all__ = ["Plan", "Progress", "Runner"]

Progress = Callable[[str, int, int | None], object]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        checks: Names of `CHECKS`.
        tolerance: What counts as the same.
        speed_s: Seconds for measuring speed.
        progress: Called with what is going on, how many inputs are through, and of how many.
    """

    checks: frozenset[str]
    tolerance: Tolerance
    speed_s: float = 2.0
    progress: Progress | None = None

    def tell(self, what: str, done: int = 0, total: int | None = None) -> None:
        """Say what is going on."""
        if self.progress is not None:
            self.progress(what, done, total)


class Runner:
    """Takes the versions through all checks.

    Args:
        together: The versions.
        baseline: Which of them the others are compared with.
        inputs: What they are called with.
        plan: What is compared.
    """

    def __init__(self, together: Together, baseline: int, inputs: Inputs, plan: Plan) -> None:
        self._together = together
        self._subjects = together.subjects
        self._baseline = baseline
        self._inputs = inputs
        self._plan = plan
        self._pool = together.pool
        self.calls = self.samples = 0
        self._first: Call | None = None
        self._gathered = {place: _Outputs(plan.tolerance) for place in range(len(self._subjects)) if place != baseline}
        self._files: dict[int, list[str]] = {}
        self._latencies: dict[str, Latency] = {}
        self._trees: dict[int, dict[str, str]] = {}

    def run(self) -> None:
        """Call all versions with all inputs, and measure them."""
        self._need_baseline()
        if "outputs" in self._plan.checks:
            for outputs in self._answers():
                self._need_baseline()
                for place, gathered in self._gathered.items():
                    if self._subjects[place].error is None:
                        gathered.add(outputs[self._baseline], outputs[place])
                self._plan.tell("Comparing outputs", self.calls, self._inputs.count)
        else:
            self._first = next(iter(self._inputs), None)
            self.samples = 0 if self._first is None else self._first.samples
        if "code" in self._plan.checks:
            for place, subject in enumerate(self._subjects):
                if subject.target is not None:
                    self._files[place] = subject.attempt(_files, subject) or []
        callable_ones = [subject for subject in self._subjects if subject.error is None and subject.is_called]
        if "speed" in self._plan.checks and self._first is not None and len(callable_ones) > 1:
            self._plan.tell("Measuring speed")
            self._latencies = measure_speed(callable_ones, self._first, self._plan.speed_s)
        self._need_baseline()

    def version(self, subject: Subject) -> Version:
        """Return what is known of one version by itself."""
        checkout = None if subject.repo is None else subject.repo.checkout
        module = subject.module
        parameters = [] if module is None else list(module.parameters())
        buffers = [] if module is None else list(module.buffers())
        place = self._subjects.index(subject)
        if module is not None:
            self._trees[place] = tree_of(module)
        worker = None if subject.target is None else subject.target._isohub_lease.worker
        return Version(
            label=subject.source.label,
            repo=str(subject.source.ref),
            ref=None if checkout is None else checkout.ref_name,
            commit=None if checkout is None else checkout.commit,
            error=subject.error,
            type=subject.facts.get("type", "") or type(subject.result).__name__,
            modules=len(self._trees.get(place, {})),
            parameters=sum(tensor.numel() for tensor in parameters),
            buffers=sum(tensor.numel() for tensor in buffers),
            weights_bytes=sum(tensor.nbytes for tensor in (*parameters, *buffers)),
            files=self._files.get(place, []),
            latency=self._latencies.get(subject.source.label),
            peak_bytes=subject.peak_bytes,
            private_bytes=memory_of(worker.pid).private_bytes if worker is not None and worker.alive else None,
        )

    def pair(self, place: int, versions: list[Version]) -> Pair:
        """Return how one version differs from the baseline; if it fails meanwhile, `versions` is told as well."""
        one, other = self._subjects[self._baseline], self._subjects[place]
        found = Found()
        if other.error is None:
            other.attempt(self._compare, one, other, place, found)
            if other.cause is not None and other.cause is one.raised:
                one.fail(other.cause)
                self._need_baseline()
        if "code" in self._plan.checks and one.repo is not None and other.repo is not None:
            roots = (one.repo.checkout.root, other.repo.checkout.root)
            imported = (self._files.get(self._baseline, []), self._files.get(place, []))
            if other.error is not None or not (imported[0] or imported[1]):
                # What it would have imported is not known: what the baseline did, and what it is made of.
                imported = (imported[0] or _sources_below(roots[0]), _sources_below(roots[1]))
            found.code = compare_code(roots, imported, requirement_files(roots))
        if other.error != versions[place].error:
            versions[place] = replace(versions[place], error=other.error)
        return judge(versions[self._baseline], versions[place], found)

    def _compare(self, one: Subject, other: Subject, place: int, found: Found) -> None:
        checks, tolerance = self._plan.checks, self._plan.tolerance
        gathered = self._gathered[place]
        if "outputs" in checks and gathered.calls:
            found.outputs = gathered.numbers()
            found.only_in_baseline = sorted(gathered.missing)
            found.only_in_other = sorted(gathered.extra)
            found.other_texts = sorted(gathered.texts)
        state = self._state(one, other)
        renames = {} if state is None else renames_of(state.moved, self._trees.get(self._baseline, {}))
        if "state" in checks:
            found.state = state
        if "structure" in checks and (one.facts or other.facts):
            trees = self._trees.get(self._baseline, {}), self._trees.get(place, {})
            found.structure = compare_structures(*trees, (one.facts, other.facts), renames)
            renames = {**renames, **dict(found.structure.renamed)}
        if self._first is not None and one.module is not None and other.module is not None:
            first, pool = self._first, self._pool
            if "layers" in checks:
                self._plan.tell("Comparing layers")
                with _looking(found, "Layers"):
                    found.layers = compare_layers(one, other, first, renames=renames, tolerance=tolerance, pool=pool)
            if "gradients" in checks:
                self._plan.tell("Comparing gradients")
                with _looking(found, "Gradients"):
                    found.gradients = compare_gradients(one, other, first, renames, pool)
        latencies = [self._latencies.get(subject.source.label) for subject in (one, other)]
        if latencies[0] is not None and latencies[1] is not None:
            found.speed = ratio_of(latencies[0], latencies[1])

    def _state(self, one: Subject, other: Subject) -> StateDifference | None:
        if one.module is None or other.module is None:
            return None
        if not self._plan.checks & {"state", "structure", "layers", "gradients"}:
            return None
        return compare_states(one.module.state_dict(), other.module.state_dict())

    def _answers(self) -> Iterator[list[Any]]:
        """Yield the outputs of all versions for one input after the other.

        While those of one are compared the versions are at work on the next.
        """
        if not any(subject.is_called for subject in self._subjects):
            if any(subject.target is None for subject in self._subjects):
                self.calls = 1  # what the entrypoints returned is what there is
                yield [subject.result for subject in self._subjects]
            return
        under_way: Callable[[], list[Any]] | None = None
        for number, call in enumerate(self._inputs):
            if self._first is None:
                self._first = call
            begun = self._together.begin_call(_output, call, number)
            if under_way is not None:
                yield under_way()
            under_way = begun
            self.calls += 1
            self.samples += call.samples
        if under_way is not None:
            yield under_way()

    def _need_baseline(self) -> None:
        """Raise what ails the baseline: without it nothing can be compared."""
        subject = self._subjects[self._baseline]
        if subject.cause is not None:
            note = f"It is the baseline, {subject.source.label}: without it nothing can be compared."
            if hasattr(subject.cause, "add_note"):
                subject.cause.add_note(note)
            raise subject.cause


class _Outputs:
    """Gathers how the outputs of one version differ from the baseline's."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._differences: dict[str, Difference] = {}
        self.calls = 0
        self.missing: set[str] = set()
        self.extra: set[str] = set()
        self.texts: set[str] = set()

    def add(self, one: Any, other: Any) -> None:
        """Take in two outputs."""
        self.calls += 1
        left, right = leaves_of(one), leaves_of(other)
        self.missing |= left.keys() - right.keys()
        self.extra |= right.keys() - left.keys()
        for path, leaf in left.items():
            partner = right.get(path)
            if partner is None:
                continue
            if isinstance(leaf, torch.Tensor) and isinstance(partner, torch.Tensor):
                if path not in self._differences:
                    self._differences[path] = Difference(path, self._tolerance)
                self._differences[path].add(leaf, partner)
            elif isinstance(leaf, torch.Tensor) or isinstance(partner, torch.Tensor) or leaf != partner:
                self.texts.add(path)

    def numbers(self) -> list[Any]:
        """Return what came together, the part with the greatest difference first."""
        found = [difference.result() for difference in self._differences.values()]
        return sorted(found, key=lambda numbers: -numbers.max_abs)


@contextmanager
def _looking(found: Found, what: str) -> Iterator[None]:
    """Note it if a version cannot be looked into in the body, although it can be called."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ProtocolError | WorkerError) or not is_its_own(error):
            raise
        found.notes.append(f"{what} could not be compared: {answers.clean(' '.join(str(error).split()), 300)}")


def _output(subject: Subject, call: Call, number: int) -> Any:
    if not subject.is_called:
        return subject.result
    return subject.call(call, number)[0]


def _files(subject: Subject) -> list[str]:
    return answers.texts(subject.ask(probes.imported_files), 4096)


def _sources_below(root: Any) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))[:2000]
