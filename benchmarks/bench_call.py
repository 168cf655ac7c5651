"""What a call of an isolated module costs beyond the same forward in process.

    python benchmarks/bench_call.py [--save]

Inputs of 1 kB, 600 kB (1x3x224x224 float32) and 64 MiB go to a module that looks at one element a row, so
that nearly all of the time is the border. The floor is written here: a socket pair between two processes,
the input copied into shared memory that both have mapped, one short message each way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleave, report

import isohub

HUBCONF = """
import torch

class Look(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.view(-1)[:4] * self.scale

def look():
    return Look().eval()
"""
SHAPES = {"1 kB": (256,), "600 kB": (1, 3, 224, 224), "64 MiB": (16, 1024, 1024)}
GOAL_US = 300.0  # for 600 kB


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        isolated = isohub.load(Path(folder), "look")
        plain = isohub.load(Path(folder), "look", isolate=False)
        result: dict[str, object] = {}
        with torch.no_grad():
            for name, shape in SHAPES.items():
                result[name] = measure(isolated, plain, torch.rand(shape), rounds=300 if shape[0] != 16 else 15)
        isohub.shutdown()
    report("call", {"sizes": result, "goal": f"600 kB: overhead at most {GOAL_US:.0f} us"})


def measure(isolated: torch.nn.Module, plain: torch.nn.Module, x: torch.Tensor, rounds: int) -> dict[str, object]:
    floor, stop = floor_for(x)
    try:
        samples = interleave(
            {"isolated": lambda: isolated(x), "in process": lambda: plain(x), "floor": floor},
            rounds=rounds,
            repeats=5,
            warm_up=10,
        )
    finally:
        stop()
    overhead_s = samples["isolated"].median_s - samples["in process"].median_s
    return {
        "overhead over in process, us": round(overhead_s * 1e6, 1),
        "overhead / floor": round(overhead_s / samples["floor"].median_s, 2),
        **{name: sample.asdict() for name, sample in samples.items()},
    }


def floor_for(x: torch.Tensor) -> tuple[Callable[[], object], Callable[[], None]]:
    """Return one exchange at the least that it can cost, and what ends the other process."""
    nbytes = x.numel() * x.element_size()
    memory = mmap.mmap(-1, nbytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while theirs.recv(512):
            theirs.send(b"y" * 200)
        os._exit(0)
    theirs.close()
    message = b"x" * 300

    def exchange() -> None:
        ctypes.memmove(address, x.data_ptr(), nbytes)
        ours.send(message)
        ours.recv(512)

    def stop() -> None:
        nonlocal memory
        ours.close()
        os.waitpid(pid, 0)
        del memory  # it has to live as long as `exchange` writes there

    return exchange, stop


if __name__ == "__main__":
    main()
