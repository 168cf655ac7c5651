"""What a comparison found, as plain frozen data: what `--json` prints, and all that a report is made of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from isohub.comparison.code import CodeDifference
from isohub.comparison.layers import GradientDifference, LayerDifference
from isohub.comparison.numbers import Numbers
from isohub.comparison.speed import Latency, SpeedRatio
from isohub.comparison.states import StateDifference
from isohub.comparison.structure import StructureDifference

__all__ = ["Kind", "Pair", "Results", "Version", "plain"]

Kind = Literal["equal", "within tolerance", "different", "broken", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One of the versions.

    Attributes:
        label: What it is called here.
        repo: Its repository, as a text that `isohub.load` takes.
        ref: The branch or tag; None for a commit or a working tree.
        commit: Its commit, 40 hexadecimal digits; None for a working tree.
        error: Why it could not be compared; None if it could.
        type: The class of the model.
        modules: How many modules it has.
        parameters: How many numbers are in its parameters.
        buffers: How many are in its buffers.
        weights_bytes: Bytes of both.
        files: The files that it imported.
        latency: How long a call takes; None if it was not measured.
        peak_bytes: How much more memory its worker took at the peak of the first call; None if that is not known.
        private_bytes: Memory of the worker alone after all calls; None if it is not known.
    """

    label: str
    repo: str
    ref: str | None
    commit: str | None
    error: str | None = None
    type: str = ""
    modules: int = 0
    parameters: int = 0
    buffers: int = 0
    weights_bytes: int = 0
    files: list[str] = field(default_factory=list)
    latency: Latency | None = None
    peak_bytes: int | None = None
    private_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How one version differs from the baseline.

    Attributes:
        baseline: Label of the baseline.
        other: Label of the other.
        kind: What it comes to.
        changes: What changed, in words of this list: outputs, weights, names, structure, signature, docstring,
            dependencies, code, speed, memory, broken.
        verdict: What it comes to, in one sentence.
        findings: What else there is to say, a sentence each.
        metrics: Figures by the names that `fail_on` knows; None where one has no meaning here.
        outputs: Numbers for each part of the output.
        only_in_baseline: Paths of parts of the output that only the baseline has.
        only_in_other: Paths that only the other has.
        other_texts: Paths of parts that are no numbers, and differ.
        state: The state dicts; None if they were not compared.
        structure: Module trees and entrypoints; the same.
        layers: Layer by layer; the same.
        gradients: The same.
        speed: How many times as long the other takes; the same.
        code: The files that were imported; the same.
    """

    baseline: str
    other: str
    kind: Kind
    changes: list[str]
    verdict: str
    findings: list[str]
    metrics: dict[str, float | bool | None]
    outputs: list[Numbers] = field(default_factory=list)
    only_in_baseline: list[str] = field(default_factory=list)
    only_in_other: list[str] = field(default_factory=list)
    other_texts: list[str] = field(default_factory=list)
    state: StateDifference | None = None
    structure: StructureDifference | None = None
    layers: LayerDifference | None = None
    gradients: GradientDifference | None = None
    speed: SpeedRatio | None = None
    code: CodeDifference | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """Two or more versions of a model, compared: `Comparison` adds the ways to show it.

    Attributes:
        entrypoint: The entrypoint.
        arguments: Its arguments, as text.
        baseline: Label of the version that the others are compared with.
        inputs: What they were called with, in words.
        calls: How many calls each version had.
        samples: How many samples were in them.
        seed: From which the random generators started.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        versions: The versions, in the order in which they were given.
        pairs: Each version but the baseline, against it.
        environment: What the figures depend on.
        command: A command line that does the same; empty if there is none.
        created: When it was made, in ISO 8601.
        duration_s: How long it took.
    """

    entrypoint: str
    arguments: str
    baseline: str
    inputs: str
    calls: int
    samples: int
    seed: int
    rtol: float
    atol: float
    versions: list[Version]
    pairs: list[Pair]
    environment: dict[str, str | int]
    command: str
    created: str
    duration_s: float

    @property
    def verdict(self) -> str:
        """What it comes to: the verdicts of all pairs."""
        return "\n".join(pair.verdict for pair in self.pairs)

    @property
    def is_equal(self) -> bool:
        """Whether all outputs agree, within the tolerance."""
        return all(pair.kind in ("equal", "within tolerance") for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data that JSON knows; infinities and NaN as texts."""
        document: dict[str, Any] = plain({"verdict": self.verdict, **asdict(self)})
        return document


def plain(value: Any) -> Any:
    """Return data without values that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, list | tuple) else value
