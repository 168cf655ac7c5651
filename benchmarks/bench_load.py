"""What loading a model costs, against torch.hub.load in process: time and memory.

    python benchmarks/bench_load.py [--busy] [--quick | --save]

Models of 10, 100 and 1000 MB whose entrypoint reads a checkpoint with torch.load and fills the module by
load_state_dict, as hub repositories do, from the call to the result of the first forward. Every load is one
in a program of its own, which has imported torch and, for isohub, has its forkserver running: what a first
load waits for besides is in bench_start.py. Memory is what all processes of the program take together (the
kernel's PSS, the forkserver left out), at its highest, beyond what they took before; it is looked at in runs
that are not timed.
A model of 5,000 tensors is loaded and called under `ulimit -n 256` besides.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from common import Options, Result, interleave, pss_bytes, run

SIZES_MB = (10, 100, 1000)
HUBCONF = """
from pathlib import Path
import torch
from torch import nn

class Layer(nn.Module):
    # 5 MB that nobody fills with random numbers first.
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1118, 1118))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)

def make(megabytes):
    return nn.Sequential(*[Layer() for _ in range(megabytes // 5)])

def model(megabytes):
    net = make(megabytes)
    state = torch.load(Path(__file__).parent / f"{megabytes}.pt", weights_only=True)
    net.load_state_dict(state)
    return net.eval()

class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList([torch.full((4,), float(number)) for number in range(5000)])

    def forward(self, x):
        return x + sum(part[0] for part in self.parts)

def many():
    return Many().eval()
"""
# Reads what to do from the command line, says when it is ready, and does it when it is told to.
PROGRAM = """
import json, sys, time
import torch
how, folder, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
x = torch.rand(1, 1118)
pids = []
if how == "isohub":
    from pathlib import Path
    import isohub
    isohub.load(Path(folder), "make", 0)
    pids = [worker.pid for worker in isohub.workers()]
print(json.dumps(pids), flush=True)
sys.stdin.readline()
start = time.perf_counter()
with torch.no_grad():
    if how == "isohub":
        model = isohub.load(Path(folder), "model", megabytes)
    else:
        model = torch.hub.load(folder, "model", megabytes, source="local")
    model(x)
print(json.dumps(time.perf_counter() - start), flush=True)
sys.stdin.readline()
"""
MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import torch
import isohub
model = isohub.load(Path(sys.argv[1]), "many")
assert [float(part[0]) for part in model.state_dict().values()] == [float(number) for number in range(5000)]
with torch.no_grad():
    assert float(model(torch.ones(1))) == 1 + 4999 * 5000 / 2
"""


def measure(options: Options, result: Result) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        names: dict[str, object] = {"__file__": "", "__name__": "hubconf"}
        exec(HUBCONF, names)
        done = subprocess.run(
            [sys.executable, "-c", MANY, folder], capture_output=True, text=True, check=False, timeout=60
        )
        result.measures["5,000 tensors under ulimit -n 256: works"] = done.returncode == 0
        if done.returncode:
            result.notes.append("5,000 tensors under ulimit -n 256: " + " ".join(done.stderr.splitlines()[-1:])[:300])
        for megabytes in SIZES_MB[:2] if options.quick else SIZES_MB:
            path = Path(folder, f"{megabytes}.pt")
            model = names["make"](megabytes)  # type: ignore[operator]
            torch.save(model.state_dict(), path)
            del model
            measure_size(folder, megabytes, options, result)
            path.unlink()


def measure_size(folder: str, megabytes: int, options: Options, result: Result) -> None:
    what = f"{megabytes} MB"
    variants = {"isohub": Load("isohub", folder, megabytes), "in process": Load("torch.hub", folder, megabytes)}
    samples = interleave(variants, rounds=options.rounds(7), warm_up=0, budget_s=8 if megabytes < 1000 else 25)
    result.samples[f"load of {what}"] = samples
    result.ratio(f"load of {what}: isohub / in process", samples["isohub"].median_s, samples["in process"].median_s)
    peaks = {name: variant.peak_bytes() for name, variant in variants.items()}
    for name, (peak, grown) in peaks.items():
        result.measures[f"load of {what}: peak memory, MB, {name}"] = round(peak / 1e6)
        result.measures[f"load of {what}: growth of memory at its peak, MB, {name}"] = round(grown / 1e6)
    result.ratio(f"load of {what}: peak memory, isohub / in process", peaks["isohub"][0], peaks["in process"][0])


class Load:
    """Loads in a new program each time."""

    def __init__(self, how: str, folder: str, megabytes: int) -> None:
        self._how, self._folder, self._megabytes = how, folder, megabytes

    def timed(self, repeats: int) -> list[float]:
        return [self._run(None) for _ in range(repeats)]

    def peak_bytes(self) -> tuple[int, int]:
        """Return the memory of the program's processes at its highest, and by how much that is more than before."""
        watch = Watch()
        self._run(watch)
        return watch.peak, watch.peak - watch.before

    def _run(self, watch: Watch | None) -> float:
        command = [sys.executable, "-c", PROGRAM, self._how, self._folder, str(self._megabytes)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            pids = json.loads(process.stdout.readline())
            if watch is not None:
                watch.start([process.pid, *pids])
            process.stdin.write("go\n")
            process.stdin.flush()
            took_s = float(json.loads(process.stdout.readline()))
            if watch is not None:
                watch.stop()
        return took_s


class Watch:
    """Looks at the memory of some processes all the time."""

    def __init__(self) -> None:
        self.before = self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._pids: list[int] = []

    def start(self, pids: list[int]) -> None:
        self._pids = pids
        self.before = self.peak = pss_bytes(*pids)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, pss_bytes(*self._pids))


if __name__ == "__main__":
    run("load", measure, __doc__)
