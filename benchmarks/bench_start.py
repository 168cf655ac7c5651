"""What starting a worker costs: the first, and a further one, against the floor and the rivals.

    python benchmarks/bench_start.py [--busy] [--quick | --save]

A further worker is measured as its user meets it: from the call of `isohub.load`, with the forkserver warm,
to the result of an entrypoint in a process of its own. The floor is a bare fork of a forkserver with the
same memory, which writes one byte and is asked for it in the same way. The fresh interpreter only has to import
torch and say so. A rival's worker answers one call.
The first worker is that of a new program, without the time that this program takes to import torch.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import Options, Result, Sample, interleave, run
from rivals import RIVALS, RivalError, drive

import isohub
from isohub.supervisor.launch import ForkServer
from isohub.supervisor.memory import Memory, memory_of

HUBCONF = """
def nothing():
    return None
"""
# The second program does nothing but what the first one does before its clock runs.
FIRST = """
import sys, time
from pathlib import Path
import torch
import isohub
start = time.perf_counter()
isohub.load(Path(sys.argv[1]), "nothing")
print(time.perf_counter() - start)
"""
IMPORTS = {
    "import isohub": "import isohub",
    "isohub --help": "import sys; sys.argv = ['isohub', '--help']; from isohub.cli.main import main; main()",
    "a Python that does nothing": "pass",
}


def measure(options: Options, result: Result) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        measure_further(Path(folder), options, result)
        isohub.shutdown()
        first = [run_first(folder) for _ in range(options.rounds(5))]
        result.samples["the first worker of a program"] = {"isohub": Sample(tuple(first))}
    result.samples["without torch"] = interleave(
        {name: in_new_interpreter(code) for name, code in IMPORTS.items()}, rounds=options.rounds(10), warm_up=1
    )
    nothing_s = result.samples["without torch"]["a Python that does nothing"].median_s
    for name in ("import isohub", "isohub --help"):
        beyond_s = result.samples["without torch"][name].median_s - nothing_s
        result.measures[f"{name}: beyond a bare Python, ms"] = round(beyond_s * 1e3, 1)
        result.ratio(f"{name} / a bare Python", beyond_s + nothing_s, nothing_s)
    all_s = result.samples["without torch"]["isohub --help"].median_s
    result.measures["isohub --help: all, ms"] = round(all_s * 1e3, 1)


def measure_further(folder: Path, options: Options, result: Result) -> None:
    own = isohub.Isolation(dedicated=True)
    taken: list[Memory] = []

    def further_worker() -> None:
        isohub.load(folder, "nothing", isolate=own)

    further_worker()
    bare = BareForkServer()
    try:
        samples = interleave(
            {
                "isohub": Ended(further_worker, taken),
                "isohub, from the reserve": Ended(further_worker, [], reserve=1),
                "floor: bare fork": bare,
            },
            rounds=options.rounds(20),
            budget_s=15,
        )
    finally:
        bare.close()
    # Apart: they make the others wait for the processor's caches.
    samples |= interleave({"fresh interpreter": fresh_interpreter}, rounds=options.rounds(5), warm_up=1, budget_s=20)
    result.samples["a further worker"] = samples
    further_s = samples["isohub"].median_s
    result.ratio("further worker / bare fork", further_s, samples["floor: bare fork"].median_s)
    reserved_s = samples["isohub, from the reserve"].median_s
    result.ratio("further worker from the reserve / bare fork", reserved_s, samples["floor: bare fork"].median_s)
    result.ratio("fresh interpreter / further worker", samples["fresh interpreter"].median_s, further_s)
    private = [memory.private_bytes for memory in taken if memory.private_bytes is not None]
    proportional = [memory.proportional_bytes for memory in taken if memory.proportional_bytes is not None]
    if private and proportional:
        result.measures["private memory of a further worker, MB"] = megabytes(private)
        result.measures["proportional memory of a further worker, MB"] = megabytes(proportional)
    for name in RIVALS:
        with drive(result.notes, [name]) as found:
            for driven in found.values():
                result.versions[name] = driven.version
                start = driven.start()
                variants = {"isohub": Ended(further_worker, []), name: start}
                try:
                    pair = interleave(variants, rounds=options.rounds(10), warm_up=1, budget_s=3)
                except RivalError as error:
                    result.notes.append(f"left out: {name}: {error}")
                    continue
                samples[name] = pair[name]
                result.ratio(f"a further worker: {name} / isohub", pair[name].median_s, pair["isohub"].median_s)
                result.measures[f"private memory of a further worker, MB, {name}"] = megabytes(start.private_bytes)


class Ended:
    """Starts a worker, and looks at it and ends it when the clock does not run.

    With a `reserve`, one that was forked before the clock runs; no other is forked while it does.
    """

    def __init__(self, start: Callable[[], None], taken: list[Memory], reserve: int = 0) -> None:
        self._start, self._taken, self._reserve = start, taken, reserve

    def timed(self, repeats: int) -> list[float]:
        found = []
        for _ in range(repeats):
            isohub.warm(self._reserve, wait=True)
            sample = interleave({"": self._start}, rounds=1, warm_up=0)[""]
            isohub.warm(0)
            worker = isohub.workers()[-1]
            self._taken.append(memory_of(worker.pid))
            worker.close()
            found.append(sample.median_s)
        return found


class BareForkServer(ForkServer):
    """A forkserver with the same memory, whose forks write a byte and end."""

    def command(self, listener_fd: int, alive_fd: int) -> list[str]:
        *python, program = super().command(listener_fd, alive_fd)
        place = f"import sys; sys.path.append({os.fspath(Path(__file__).parent / 'drivers')!r}); "
        return [*python, place + program.replace("isohub.supervisor.orphans", "bare_fork")]

    def timed(self, repeats: int) -> list[float]:
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            process = self.begin()
            assert process.channel.recv(1) == b"x"
            found.append(time.perf_counter() - start)
            with contextlib.suppress(ProcessLookupError):  # on a busy machine it has ended by now
                process.arrive(time.monotonic() + 10)
            process.exit_status(10)  # it would be ending while the next variant is timed
            process.close()
        return found


def megabytes(nbytes: list[int]) -> float:
    return round(statistics.median(nbytes) / 1e6, 1)


def fresh_interpreter() -> None:
    subprocess.run([sys.executable, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True)


def in_new_interpreter(code: str) -> Callable[[], None]:
    def start() -> None:
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    return start


def run_first(folder: str) -> float:
    done = subprocess.run([sys.executable, "-c", FIRST, folder], check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    run("start", measure, __doc__)
