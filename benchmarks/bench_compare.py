"""What it costs to compare two versions over a data set, against the slower one alone.

    python benchmarks/bench_compare.py [--save]

Two versions of a convolutional network, one of them somewhat deeper, see the same 30 batches: each alone in its
worker, called in a loop, and both by `isohub.compare`, which calls them at the same time and compares their outputs.
One torch thread each. Times of the clock mean something on two idle cores alone; therefore the time of the processors
is told as well: that of the busier worker and of this process together, and what this process adds to it. (The
former grows where workers share a cache or a core.)

Then 10,000 images stream through both, and the memory of this process and of the workers is
looked at along the way.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from common import report

import isohub

HUBCONF = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, depth):
        super().__init__()
        layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(24, 100)

    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))

def net():
    return Net({depth}).eval()
"""
DEPTHS = (7, 8)
BATCHES = 30
ROUNDS = 5
IMAGES = 10_000
GOAL = 1.15
GOAL_GROWTH_BYTES = 16 << 20


class Spent(NamedTuple):
    """Seconds of processors."""

    total: float
    own: float


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folders = []
        for depth in DEPTHS:
            place = Path(folder, str(depth))
            place.mkdir()
            (place / "hubconf.py").write_text(HUBCONF.replace("{depth}", str(depth)))
            folders.append(place)
        torch.set_num_threads(1)
        alone: list[list[tuple[float, Spent]]] = [[], []]
        both: list[tuple[float, Spent]] = []
        for _ in range(ROUNDS):
            for place, one in enumerate(folders):
                alone[place].append(time_alone(one))
            both.append(time_both(folders))
        slower = max(alone, key=lambda times: statistics.median(cpu.total for _, cpu in times))
        ratios = [together[0] / one[0] for together, one in zip(both, slower, strict=True)]
        cpu_ratios = [together[1].total / one[1].total for together, one in zip(both, slower, strict=True)]
        own = [(together[1].own - one[1].own) / one[1].total for together, one in zip(both, slower, strict=True)]
        memory = grow(folders)
        isohub.shutdown()
    report("compare", {
        "alone_s": [round(statistics.median(wall for wall, _ in times), 3) for times in alone],
        "both_s": round(statistics.median(wall for wall, _ in both), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "processor_ratio": round(statistics.median(cpu_ratios), 3),
        "share_of_this_process": round(statistics.median(own), 3),
        "processor_ratios": [round(ratio, 3) for ratio in cpu_ratios],
        "goal": f"at most {GOAL} times the slower one alone",
        "stream": memory,
        "goal_growth_bytes": GOAL_GROWTH_BYTES,
    })  # fmt: skip


def batches(count: int = BATCHES, size: int = 16, side: int = 32) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.rand(size, 3, side, side, generator=generator)


def time_alone(folder: Path) -> tuple[float, Spent]:
    """Return seconds of the clock, and of the processors: the worker's and this process's."""
    with isohub.Repo(folder, isolate=isohub.Isolation(threads=1)) as repo, torch.no_grad():
        model = repo.load("net")
        start, cpu = time.perf_counter(), processor_s()
        for batch in batches():
            model(batch)
        return time.perf_counter() - start, spent(cpu)


def time_both(folders: list[Path]) -> tuple[float, Spent]:
    """Return the same from the first batch on: loading two versions is not what is asked about."""
    started: list[tuple[float, dict[int, float]]] = []
    ended: list[tuple[float, Spent]] = []

    def timed() -> Iterator[torch.Tensor]:
        started.append((time.perf_counter(), processor_s()))
        yield from batches()

    isohub.compare(
        folders[0], "net", folders, timed(), checks=["outputs"], isolate=isohub.Isolation(threads=1),
        progress=lambda *_: ended.append((time.perf_counter(), spent(started[0][1]) if started else Spent(0.0, 0.0))),
    )  # fmt: skip
    return ended[-1][0] - started[0][0], ended[-1][1]


def processor_s() -> dict[int, float]:
    """Return the processor time that this process and each worker have used so far."""
    return {pid: used_s(pid) for pid in (os.getpid(), *(worker.pid for worker in isohub.workers()))}


def used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(before: dict[int, float]) -> Spent:
    """Return the time since then of this process, and with it that of the busiest worker."""
    used = {pid: used_s(pid) - start for pid, start in before.items()}
    own = used.pop(os.getpid())
    return Spent(own + max(used.values()), own)


def grow(folders: list[Path]) -> dict[str, object]:
    """Stream many images, and return how much more memory all processes have at the end than after a tenth."""
    seen: list[int] = []

    def watched() -> Iterator[torch.Tensor]:
        for number, batch in enumerate(batches(IMAGES // 50, 50, side=12)):
            if number in (IMAGES // 500, IMAGES // 50 - 1):
                seen.append(sum(map(private_bytes, [os.getpid(), *(worker.pid for worker in isohub.workers())])))
            yield batch

    found = isohub.compare(
        folders[0], "net", folders, watched(), checks=["outputs"], isolate=isohub.Isolation(threads=1)
    )
    first, last = seen
    return {"images": found.samples, "after_a_tenth_bytes": first, "at_the_end_bytes": last, "growth": last - first}


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    main()
