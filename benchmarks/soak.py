"""Whether anything grows: loads and closes, calls, training steps and kills, for as long as it is asked.

    python benchmarks/soak.py [--loads 10000] [--calls 1000000] [--minutes N] [--seed 0] [--save]

One worker stays for the whole run and is called; beside it workers are started, used, and closed, killed
while they idle, or killed in the middle of a call. Every few seconds a row tells what this process has, and how
long calls took since the last row. It ends with 1 if something grew: a count at all, or private memory by more
than a few megabytes, from the second quarter of the run (when all that happens once has happened) to the last.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import report

import isohub
from isohub.errors import WorkerError
from isohub.supervisor.memory import memory_of

HUBCONF = """
import os, signal
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x, die=False):
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)

def net():
    return Net()
"""
# Ways in which a worker ends, as often as this.
ENDS = ["close"] * 8 + ["killed while idle", "killed in a call"]
SAMPLE_S = 10.0
# The allocator keeps some of what was freed, and not always the same.
SLACK_BYTES = 4 << 20


@dataclass(frozen=True)
class Row:
    """What this process has at one moment, and what it did since the row before."""

    at_s: float
    loads: int
    calls: int
    kills: int
    descriptors: int
    mappings: int
    threads: int
    children: int
    handles: int
    private_bytes: int
    forkserver_private_bytes: int
    worker_private_bytes: int
    call_p50_us: float
    call_p99_us: float
    load_p50_ms: float
    load_p99_ms: float


COUNTS = ("descriptors", "mappings", "threads", "children", "handles")
MEMORY = ("private_bytes", "forkserver_private_bytes", "worker_private_bytes")


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._draw = random.Random(seed)
        self._began = time.perf_counter()
        self._call_s: list[float] = []
        self._load_s: list[float] = []
        self._x = torch.ones(1, 16)
        self.loads = self.calls = self.kills = 0
        self.rows: list[Row] = []
        self.stays = isohub.load(folder, "net", verbose=False)
        (self._worker,) = isohub.workers()

    def call(self, count: int) -> None:
        """Call the model that stays; one call in ten with a backward pass."""
        for number in range(count):
            start = time.perf_counter()
            if number % 10:
                with torch.no_grad():
                    self.stays(self._x)
            else:
                self.stays(self._x).sum().backward()
            self._call_s.append(time.perf_counter() - start)
        self.calls += count

    def load(self) -> None:
        """Start a worker, load in it, call, and end it in one of the ways."""
        start = time.perf_counter()
        model = isohub.load(self._folder, "net", verbose=False, isolate=isohub.Isolation(dedicated=True))
        self._load_s.append(time.perf_counter() - start)
        worker = isohub.workers()[-1]
        model(self._x)
        end = self._draw.choice(ENDS)
        if end == "close":
            worker.close()
        else:
            self.kills += 1
            if end == "killed while idle":
                worker.kill()
            with contextlib.suppress(WorkerError):
                model(self._x, die=True)
        self.loads += 1

    def sample(self) -> None:
        """Note a row, and print it."""
        gc.collect()
        with torch.no_grad():
            self.stays(self._x)  # tells the worker what was let go of here
        parent, worker = Path("/proc/self"), self._worker.status()
        tasks = [task.read_text().split() for task in parent.glob("task/*/children")]
        forkserver = int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1])
        self.rows.append(
            Row(
                at_s=round(time.perf_counter() - self._began, 1),
                loads=self.loads,
                calls=self.calls,
                kills=self.kills,
                descriptors=len(list((parent / "fd").iterdir())),
                mappings=(parent / "maps").read_text().count("memfd:isohub"),
                threads=threading.active_count(),
                children=sum(map(len, tasks)),
                handles=worker.handles,
                private_bytes=memory_of(os.getpid()).private_bytes or 0,
                forkserver_private_bytes=memory_of(forkserver).private_bytes or 0,
                worker_private_bytes=worker.memory.private_bytes or 0,
                call_p50_us=round(quantile(self._call_s, 0.5) * 1e6, 1),
                call_p99_us=round(quantile(self._call_s, 0.99) * 1e6, 1),
                load_p50_ms=round(quantile(self._load_s, 0.5) * 1e3, 1),
                load_p99_ms=round(quantile(self._load_s, 0.99) * 1e3, 1),
            )
        )
        self._call_s.clear()
        self._load_s.clear()
        row = asdict(self.rows[-1])
        if len(self.rows) == 1:
            print("  ".join(short(name) for name in row), file=sys.stderr)
        shown = (f"{value / 1e6:.1f}" if name.endswith("_bytes") else str(value) for name, value in row.items())
        print(
            "  ".join(f"{value:>{len(short(name))}}" for value, name in zip(shown, row, strict=True)), file=sys.stderr
        )


def short(name: str) -> str:
    return name.replace("forkserver_private_bytes", "server_MB").replace("private_bytes", "MB").rjust(6)


def quantile(times_s: list[float], share: float) -> float:
    ordered = sorted(times_s)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def grown(rows: list[Row]) -> dict[str, float]:
    """Return what was more in the last quarter than in the second one, by how much."""
    quarter = max(len(rows) // 4, 1)
    early, late = rows[quarter : 2 * quarter] or rows[:1], rows[-quarter:]
    found = {}
    for name in (*COUNTS, *MEMORY):
        more = statistics.median(getattr(row, name) for row in late) - statistics.median(
            getattr(row, name) for row in early
        )
        if more > (SLACK_BYTES if name in MEMORY else 0):
            found[name] = more
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, whatever is done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="keep the JSON in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    end = time.perf_counter() + asked.minutes * 60
    calls_a_load = max(asked.calls // max(asked.loads, 1), 1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        soak = Soak(Path(folder), asked.seed)
        soak.call(200)
        next_sample = time.perf_counter()
        while soak.loads < asked.loads and time.perf_counter() < end:
            soak.call(calls_a_load)
            soak.load()
            if time.perf_counter() >= next_sample:
                soak.sample()
                next_sample = time.perf_counter() + SAMPLE_S
        soak.sample()
        isohub.shutdown()
    found = grown(soak.rows)
    rows = soak.rows
    thinned = [asdict(row) for row in rows[:: max(len(rows) // 30, 1)]]
    report(
        "soak",
        {
            "loads": soak.loads,
            "calls": soak.calls,
            "kills": soak.kills,
            "minutes": round(rows[-1].at_s / 60, 1),
            "grown": found,
            "columns": list(thinned[0]),
            "rows": [list(row.values()) for row in thinned],
        },
    )
    print(f"grown: {found}" if found else "nothing grew", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
