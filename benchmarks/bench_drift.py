"""Whether a call gets slower, or memory grows, over a million calls.

    python benchmarks/bench_drift.py [--busy] [--quick | --save]

One thread calls a small module. Latency is the median of the last tenth of the calls against that of the
second tenth; memory is what program and worker have for themselves, after the second tenth and at the end.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch
from common import Options, Result, Sample, run

import isohub
from isohub.supervisor.memory import memory_of

HUBCONF = """
from torch import nn

def small():
    return nn.Identity().eval()
"""
CALLS = 1_000_000
QUICK_CALLS = 20_000
QUANTILES = 1000


def measure(options: Options, result: Result) -> None:
    calls = QUICK_CALLS if options.quick else CALLS
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        Path(folder, "hubconf.py").write_text(HUBCONF)
        model = isohub.load(Path(folder), "small")
        pids = [os.getpid(), isohub.workers()[-1].pid]
        x = torch.rand(8)
        tenths: list[Sample] = []
        memory: list[int] = []
        for _ in range(10):
            # Of each tenth so many quantiles: all of the times would be the growth that is seen.
            tenths.append(Sample(tuple(sorted(timed(model, x, calls // 10))[:: calls // 10 // QUANTILES])))
            memory.append(sum(memory_of(pid).private_bytes or 0 for pid in pids))
        isohub.shutdown()
    result.measures["calls"] = calls
    result.ratio("latency, last tenth / second tenth", tenths[-1].median_s, tenths[1].median_s)
    # The times of a tenth are kept while it runs, and given back before the next.
    result.measures["growth of memory, MB"] = round((memory[-1] - memory[1]) / 1e6, 2)
    result.samples["small calls"] = {f"tenth {number}": tenth for number, tenth in enumerate(tenths, 1)}


def timed(model: torch.nn.Module, x: torch.Tensor, count: int) -> list[float]:
    times = []
    clock = time.perf_counter
    for _ in range(count):
        start = clock()
        model(x)
        times.append(clock() - start)
    return times


if __name__ == "__main__":
    run("drift", measure, __doc__)
