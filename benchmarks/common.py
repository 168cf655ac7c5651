"""One way to measure, for every benchmark.

Absolute times on a shared machine mean little, so each benchmark runs its variants interleaved in one
session and prints ratios. Medians and quantiles, never means: one preemption would own a mean.

A script ends with `run("name", measure, __doc__)`, which brings the options that all of them have:

    --busy   keep every processor busy meanwhile, by processes that spin and end with the script
    --quick  a few rounds, to see whether it works; the figures mean nothing, and are never kept
    --save   keep the figures as benchmarks/results/<name>-<idle or busy>.json, which report.py reads
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Options", "Result", "Sample", "Timed", "interleave", "pss_bytes", "report", "run"]

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent

Value = float | int | bool | str | None


class Timed(Protocol):
    """A variant that takes its times itself, because it runs in another process."""

    def timed(self, repeats: int) -> list[float]: ...


Variant = Callable[[], object] | Timed


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    busy: bool = False
    quick: bool = False
    save: bool = False

    @property
    def state(self) -> str:
        return "busy" if self.busy else "idle"

    def rounds(self, many: int) -> int:
        return min(many, 2) if self.quick else many


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


@dataclass
class Result:
    """What a benchmark found.

    Attributes:
        measures: Single figures by name: the ratios that the goals are about, memory, counts.
        samples: Times, by what was done and by who did it.
        notes: What a reader must know: who was left out and why, what is measured in place of what.
        versions: Of the rivals that took part.
    """

    measures: dict[str, Value] = field(default_factory=dict)
    samples: dict[str, dict[str, Sample]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, above: float, below: float) -> None:
        """Keep a ratio; none where there is nothing to divide by."""
        self.measures[name] = round(above / below, 3) if below > 0 else None

    def document(self, name: str, options: Options, load_average: float) -> dict[str, object]:
        return {
            "benchmark": name,
            "state": options.state,
            "quick": options.quick,
            "machine": machine(load_average),
            "versions": self.versions,
            "measures": self.measures,
            "samples": {
                what: {who: sample.asdict() for who, sample in found.items()} for what, found in self.samples.items()
            },
            "notes": self.notes,
        }


def interleave(
    variants: dict[str, Variant], *, rounds: int, repeats: int = 1, warm_up: int = 3, budget_s: float = 60.0
) -> dict[str, Sample]:
    """Time each variant `repeats` times a round, in turn, for `rounds` rounds or until `budget_s` is used up.

    Interleaved, whatever else the machine does strikes all variants alike. The budget is for slow machines;
    two rounds are run in any case.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(warm_up):
        for variant in variants.values():
            _times_of(variant, 1)
    deadline = time.perf_counter() + budget_s
    for done in range(rounds):
        if done >= 2 and time.perf_counter() > deadline:
            break
        for name, variant in variants.items():
            times[name] += _times_of(variant, repeats)
    return {name: Sample(tuple(found)) for name, found in times.items()}


def _times_of(variant: Variant, repeats: int) -> list[float]:
    if not callable(variant):
        return variant.timed(repeats)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        variant()
        found.append(time.perf_counter() - start)
    return found


def report(name: str, figures: dict[str, object]) -> None:
    """Print what a script of another kind found; with `--save`, keep it. `report.py` leaves it out."""
    text = json.dumps({"benchmark": name, "machine": machine(os.getloadavg()[0]), **figures}, indent=2)
    print(text)
    if "--save" in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n")


def pss_bytes(*pids: int) -> int:
    """Return what some processes take together: the kernel's PSS, in which a shared page counts once in all."""
    from isohub.supervisor.memory import memory_of

    return sum(memory_of(pid).proportional_bytes or 0 for pid in pids)


def machine(load_average: float) -> dict[str, object]:
    """Return what the figures depend on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "kernel": platform.release(),
        "load_average_before": round(load_average, 2),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit that was measured, with a plus if the package was edited since; None outside of git."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--match="], cwd=ROOT, check=True, capture_output=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "isohub"], cwd=ROOT, check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.decode().strip() + ("+" if changed.returncode else "")


@contextlib.contextmanager
def busy_processors() -> Iterator[None]:
    """Keep every processor busy. The spinning processes end with this one, however it ends."""
    # The parent looks after itself: whoever kills this script with SIGKILL leaves no spinning process.
    program = f"import os\nwhile os.getppid() == {os.getpid()}:\n for _ in range(10**5): pass"
    count = len(os.sched_getaffinity(0))
    spinning = [subprocess.Popen([sys.executable, "-I", "-S", "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()


def run(name: str, measure: Callable[[Options, Result], None], description: str | None) -> None:
    """Run a benchmark as the command line says: print what it found, and keep it if asked to."""
    options = _options(description)
    load_average = os.getloadavg()[0]
    result = Result()
    with busy_processors() if options.busy else contextlib.nullcontext():
        measure(options, result)
    text = json.dumps(result.document(name, options, load_average), indent=2)
    print(text)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{options.state}.json").write_text(text + "\n")


def _options(description: str | None) -> Options:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", action="store_true", help="keep every processor busy meanwhile")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few rounds, to see whether it works")
    how.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    return Options(**vars(parser.parse_args()))
