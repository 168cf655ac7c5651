"""What a call of an isolated module costs: against in process, the floor of the machine, and the rivals.

    python benchmarks/rivals.py                 # once: makes the rivals' environments
    python benchmarks/bench_call.py [--busy] [--quick | --save]

Inputs of 1 kB, 600 kB (1x3x224x224 float32) and 64 MiB, outputs of 4 kB, 64 MiB, 1 to 100 tensors and a state
dict; `drivers/work.py` has what is called. Nearly all of the time is the border. Each call gets an input that
was not sent before.

The floor is written here: a pipe each way between two processes, the input copied into shared memory that
both have mapped, one short message each way. "memcpy" is one copy of the large tensor into warm memory.
The first part has isohub, in process and the floors take turns; then isohub takes turns with one rival after
the other, since some of them keep helpers running. A rival's ratio is of its own turns.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Options, Result, interleave, run
from rivals import RIVALS, Driven, RivalError, drive

import isohub

DRIVERS = Path(__file__).parent / "drivers"
sys.path.insert(0, str(DRIVERS))

import work  # noqa: E402

HUBCONF = """
import torch
import work

class Work(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

class Buffer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.rand(64 << 18))

    def forward(self, x):
        return self.kept

def case(name):
    return Work(work.function_of(name)).eval()

def buffer():
    return Buffer().eval()
"""
LARGE = ("64 MiB in", "64 MiB out", "state dict")
CASES = ("1 kB in", "600 kB in", *LARGE, "1 tensor out", "10 tensors out", "100 tensors out")
WITH_RIVALS = ("1 kB in", "600 kB in", *LARGE, "100 tensors out")
THREADS = (1, 2, 8)
CALLS_A_THREAD = 20
RIVAL_BUDGET_S = 1.0


def measure(options: Options, result: Result) -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        Path(folder, "hubconf.py").write_text(HUBCONF)
        shutil.copy(DRIVERS / "work.py", folder)
        models = {case: isohub.load(Path(folder), "case", case) for case in CASES}
        for case, model in models.items():
            measure_case(case, model, options, result)
        measure_buffer(isohub.load(Path(folder), "buffer"), options, result)
        measure_descriptors(models["state dict"], result)
        measure_threads(models["600 kB in"], options, result)
        for name in RIVALS:
            with drive(result.notes, [name]) as found:
                for driven in found.values():
                    measure_rival(driven, models, options, result)
        conclude(result)
        isohub.shutdown()


class Fresh:
    """A function that is given another tensor each time, made before the clock runs."""

    def __init__(self, function: Callable[[torch.Tensor], object], case: str) -> None:
        self._function, self._case = function, case

    def timed(self, repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            x = work.input_of(self._case)
            start = time.perf_counter()
            result = self._function(x)
            times.append(time.perf_counter() - start)
            del result
        return times


def measure_case(case: str, model: torch.nn.Module, options: Options, result: Result) -> None:
    in_process = work.function_of(case)
    x = work.input_of(case)
    assert work.same(model(x), in_process(x))
    exchange, stop = floor_for(x)
    variants = {
        "isohub": Fresh(model, case),
        "in process": Fresh(in_process, case),
        "floor: pipe and memcpy": Fresh(exchange, case),
    }
    if case in LARGE:
        variants["memcpy"] = Fresh(copy_of(case, in_process(x) if case != "64 MiB in" else x), case)
    small = case not in LARGE
    try:
        samples = interleave(
            variants, rounds=options.rounds(200 if small else 30), repeats=5 if small else 1, warm_up=5, budget_s=3
        )
    finally:
        stop()
    result.samples[case] = samples
    overhead_s = samples["isohub"].median_s - samples["in process"].median_s
    result.measures[f"{case}: overhead, us"] = round(overhead_s * 1e6, 1)
    result.ratio(f"{case}: overhead / floor", overhead_s, samples["floor: pipe and memcpy"].median_s)
    if case == "state dict":
        result.ratio(f"{case}: isohub / memcpy", samples["isohub"].median_s, samples["memcpy"].median_s)
    elif case in LARGE:
        result.ratio(f"{case}: overhead / memcpy", overhead_s, samples["memcpy"].median_s)


def measure_buffer(model: torch.nn.Module, options: Options, result: Result) -> None:
    """Measure an output that lies in the module's weights already: nobody has to copy it."""
    case = "64 MiB out"
    kept = torch.rand(64 << 18)
    samples = interleave(
        {"isohub": Fresh(model, case), "memcpy": Fresh(copy_of(case, kept), case)},
        rounds=options.rounds(30),
        budget_s=3,
    )
    result.samples["64 MiB out, a buffer of the module"] = samples
    ratio = samples["isohub"].median_s, samples["memcpy"].median_s
    result.ratio("64 MiB out, a buffer of the module: isohub / memcpy", *ratio)


def measure_descriptors(model: torch.nn.Module, result: Result) -> None:
    """Count what a state dict holds open as long as it lives, in steady state."""
    x = work.input_of("state dict")
    model(x)
    before = descriptors()
    kept = model(x)
    # A second one that lives beside the first cannot lie in the same memory.
    another = model(x)
    result.measures["state dict: descriptors held"] = descriptors() - before
    assert len(kept) == len(another) == work.STATE_TENSORS


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def measure_threads(model: torch.nn.Module, options: Options, result: Result) -> None:
    case = "600 kB in"
    functions = {"isohub": model, "in process": work.function_of(case)}
    for count in THREADS:
        what = f"{count} thread{'s' * (count > 1)}, {CALLS_A_THREAD} calls of 600 kB each"
        variants = {name: from_threads(function, count, case) for name, function in functions.items()}
        samples = interleave(variants, rounds=options.rounds(20), budget_s=3)
        result.samples[what] = samples
        calls = count * CALLS_A_THREAD
        result.measures[f"{what}: calls a second"] = round(calls / samples["isohub"].median_s)


def from_threads(function: Callable[[torch.Tensor], object], count: int, case: str) -> Callable[[], None]:
    inputs = [work.input_of(case) for _ in range(count)]

    def calls(x: torch.Tensor) -> None:
        with torch.no_grad():  # of each thread's own
            for _ in range(CALLS_A_THREAD):
                function(x)

    def all_of_them() -> None:
        threads = [threading.Thread(target=calls, args=(x,)) for x in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return all_of_them


def measure_rival(driven: Driven, models: dict[str, torch.nn.Module], options: Options, result: Result) -> None:
    result.versions[driven.name] = driven.version
    for case in WITH_RIVALS:
        try:
            pair = interleave(
                {"isohub": Fresh(models[case], case), driven.name: driven.call(case)},
                rounds=options.rounds(60 if case not in LARGE else 10),
                repeats=5 if case not in LARGE else 1,
                warm_up=1,
                budget_s=RIVAL_BUDGET_S,
            )
        except RivalError as error:
            result.notes.append(f"left out: {driven.name}, {case}: {error}")
            continue
        result.samples[case][driven.name] = pair[driven.name]
        result.ratio(f"{case}: {driven.name} / isohub", pair[driven.name].median_s, pair["isohub"].median_s)
    try:
        result.measures[f"state dict: descriptors held, {driven.name}"] = int(
            str(driven.ask(do="fetch", case="state dict")["descriptors"])
        )
    except RivalError as error:
        result.notes.append(f"left out: {driven.name}, descriptors: {error}")


def conclude(result: Result) -> None:
    """Take the faster of what one rival can be had as."""
    for rival in ("torch.multiprocessing", "Ray"):
        ratios = [
            value
            for name in RIVALS
            if name.startswith(rival)
            and isinstance(value := result.measures.get(f"600 kB in: {name} / isohub"), int | float)
        ]
        if ratios:
            result.measures[f"600 kB in: {rival}, the fastest / isohub"] = min(ratios)


def copy_of(case: str, kept: object) -> Callable[[torch.Tensor], object]:
    """Return one copy of the large tensor, or of all of the state dict in one, into warm memory."""
    if isinstance(kept, dict):
        kept = torch.cat(list(kept.values()))
    assert isinstance(kept, torch.Tensor)
    source, target = kept, torch.ones_like(kept)
    # Not copy_, which takes several threads.
    return lambda x: ctypes.memmove(target.data_ptr(), (x if case == "64 MiB in" else source).data_ptr(), source.nbytes)


def floor_for(x: torch.Tensor) -> tuple[Callable[[torch.Tensor], object], Callable[[], None]]:
    """Return one exchange at the least that it can cost, and what ends the other process."""
    nbytes = x.numel() * x.element_size()
    memory = mmap.mmap(-1, nbytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(our_read)
        os.close(our_write)
        while os.read(their_read, 512):
            os.write(their_write, b"y" * 200)
        os._exit(0)
    os.close(their_read)
    os.close(their_write)
    message = b"x" * 300

    def exchange(x: torch.Tensor) -> None:
        ctypes.memmove(address, x.data_ptr(), nbytes)
        os.write(our_write, message)
        os.read(our_read, 512)

    def stop() -> None:
        nonlocal memory
        os.close(our_write)
        os.close(our_read)
        os.waitpid(pid, 0)
        del memory  # it has to live as long as `exchange` writes there

    return exchange, stop


if __name__ == "__main__":
    run("call", measure, __doc__)
