"""One way to measure, for every benchmark.

Absolute times on a shared machine mean little, so each benchmark runs its variants interleaved in one
session and prints ratios. Medians and quantiles, never means: one preemption would own a mean.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sample", "interleave", "machine", "report"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sample:
    """The times of one variant, in seconds."""

    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.times_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def asdict(self) -> dict[str, float | int]:
        return {
            "count": len(self.times_s),
            "p10_us": round(self.quantile_s(0.1) * 1e6, 1),
            "median_us": round(self.median_s * 1e6, 1),
            "p90_us": round(self.quantile_s(0.9) * 1e6, 1),
        }


def interleave(
    variants: dict[str, Callable[[], object]], *, rounds: int, repeats: int = 1, warm_up: int = 3
) -> dict[str, Sample]:
    """Time each variant `repeats` times a round, in turn, for `rounds` rounds.

    Interleaved, whatever else the machine does strikes all variants alike.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(warm_up):
        for run in variants.values():
            run()
    for _ in range(rounds):
        for name, run in variants.items():
            for _ in range(repeats):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: Sample(tuple(found)) for name, found in times.items()}


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
    }


def report(name: str, result: dict[str, object]) -> None:
    """Print `result`, and keep it under `benchmarks/results/` if the command line says `--save`."""
    document = {"benchmark": name, "machine": machine(), **result}
    text = json.dumps(document, indent=2)
    print(text)
    if "--save" in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n")
