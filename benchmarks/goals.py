"""What the benchmarks must show: one row of the table of goals each.

A row names the figure that it is about, by benchmark and name, so that no figure is ever typed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GOALS", "Goal", "Value"]

Value = float | int | bool | str | None


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        measure: What is measured, for a reader.
        benchmark: Whose result has the figure.
        key: The name of the figure there.
        sense: Whether the figure may be that high, must be that high, or must be true.
        limit: The figure that counts.
        unit: What stands behind the figures.
        idle_only: Whether it is a goal for an otherwise idle machine alone.
    """

    measure: str
    benchmark: str
    key: str
    sense: Literal["at most", "at least", "works"]
    limit: float = 0.0
    unit: str = "x"
    idle_only: bool = False

    @property
    def text(self) -> str:
        """The goal, for a reader."""
        if self.sense == "works":
            return "works"
        only = ", idle" if self.idle_only else ""
        return f"{self.sense} {self.limit:g} {self.unit}".rstrip() + only

    def met(self, value: Value) -> bool:
        if self.sense == "works":
            return value is True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value <= self.limit if self.sense == "at most" else value >= self.limit


_BEYOND = "beyond a bare Python, ms"
_CALL = "call of 600 kB -> 4 kB"
GOALS = (
    Goal(f"{_CALL}: overhead / floor of pipe and memcpy", "call", "600 kB in: overhead / floor", "at most", 2.0),
    Goal(
        f"{_CALL}: torch.multiprocessing at its fastest / isohub",
        "call",
        "600 kB in: torch.multiprocessing, the fastest / isohub",
        "at least",
        8,
        idle_only=True,
    ),
    Goal(f"{_CALL}: pyisolate / isohub", "call", "600 kB in: pyisolate / isohub", "at least", 8, idle_only=True),
    Goal(
        f"{_CALL}: Ray at its fastest / isohub",
        "call",
        "600 kB in: Ray, the fastest / isohub",
        "at least",
        20,
        idle_only=True,
    ),
    Goal(
        "state dict of 320 tensors, 102 MB, from the worker / one memcpy of its bytes",
        "call",
        "state dict: isohub / memcpy",
        "at most",
        1.2,
    ),
    Goal("descriptors that it holds", "call", "state dict: descriptors held", "at most", 2, ""),
    Goal("a model of 5,000 tensors under `ulimit -n 256`", "load", "5,000 tensors under ulimit -n 256: works", "works"),
    Goal("64 MiB in: overhead / memcpy of a warm buffer", "call", "64 MiB in: overhead / memcpy", "at most", 1.3),
    Goal("64 MiB out: overhead / memcpy of a warm buffer", "call", "64 MiB out: overhead / memcpy", "at most", 0.2),
    Goal("a further worker / a bare fork of its forkserver", "start", "further worker / bare fork", "at most", 1.5),
    Goal(
        "a fresh interpreter with torch / a further worker",
        "start",
        "fresh interpreter / further worker",
        "at least",
        50,
    ),
    Goal(
        "private memory of a further worker, small model",
        "start",
        "private memory of a further worker, MB",
        "at most",
        12,
        "MB",
    ),
    Goal(
        "a further worker from the reserve / a bare fork",
        "start",
        "further worker from the reserve / bare fork",
        "at most",
        1.5,
    ),
    Goal(
        "`import isohub`, beyond a Python that does nothing", "start", f"import isohub: {_BEYOND}", "at most", 10, "ms"
    ),
    Goal("`isohub --help`, Python's own start included", "start", "isohub --help: all, ms", "at most", 150, "ms", True),
    Goal("load of 1000 MB / in process: time", "load", "load of 1000 MB: isohub / in process", "at most", 1.15),
    Goal(
        "load of 1000 MB / in process: memory of all processes at its peak",
        "load",
        "load of 1000 MB: peak memory, isohub / in process",
        "at most",
        1.05,
    ),
    Goal(
        "eight refs of one repository with equal weights of 100 MB: memory",
        "branches",
        "8 refs, equal weights of 100 MB: memory, MB",
        "at most",
        100 + 8 * 15,
        "MB",
    ),
    Goal(
        "training step of a ResNet-18, batch 8, 64x64 / in process",
        "train",
        "resnet18: step, isohub / in process",
        "at most",
        1.05,
    ),
    Goal(
        "as many models at once as processors, one thread each / one alone",
        "branches",
        "models in parallel: at once / one alone, isohub",
        "at most",
        1.15,
    ),
    Goal("small calls without a pause", "drift", "calls", "at least", 1_000_000, ""),
    Goal(
        "... latency of the last tenth / the second tenth",
        "drift",
        "latency, last tenth / second tenth",
        "at most",
        1.05,
    ),
    Goal("... growth of private memory from then to the end", "drift", "growth of memory, MB", "at most", 1, "MB"),
)
