"""Trains a model of 67 MB in a fresh process, in process or isolated, and tells what memory that took.

Run as a program: `python -m tests.helpers.training FOLDER plain|isolated OPTIMIZER`. It prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import isohub

__all__ = ["HUBCONF", "held_bytes"]

# Four weights of 16 MiB, small activations, and no memory that is not asked for by training itself.
HUBCONF = """
    import torch
    from torch import nn

    def net(width):
        return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())])
"""
WIDTH = 2048
STEPS = 4

_LINE = re.compile(r"^(Pss_Anon|Pss_Shmem): +(\d+) kB$", re.MULTILINE)


def held_bytes(pid: int | str, kinds: Container[str] = ("Pss_Anon", "Pss_Shmem")) -> int:
    """Return what memory a process has that no file is behind, its part of what it shares with others included."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kilobytes) for kind, kilobytes in _LINE.findall(text) if kind in kinds) << 10


@contextmanager
def peak(held: Callable[[], int]) -> Iterator[list[int]]:
    """Give a list whose last number is the most that `held` returned while the block ran."""
    found = [held()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):  # a sampler: nothing tells it when memory is at its highest
            found.append(max(found[-1], held()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.append(max(found[-1], held()))


def train(model: Any, optimizer: torch.optim.Optimizer, width: int) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.ones(4, width)).sum().backward()
        optimizer.step()


def measure(folder: str, isolated: bool, kind: str) -> dict[str, int]:
    """Return how far private and shared memory rose at the highest, and what all that training needs takes."""

    def load(width: int) -> Any:
        return isohub.load(Path(folder), "net", width, isolate=isolated)

    def optimizer_for(model: Any) -> torch.optim.Optimizer:
        if kind == "adam":
            return torch.optim.Adam(model.parameters(), lr=1e-4)
        return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    small = load(8)  # stays, so that its worker does
    train(small, optimizer_for(small), 8)
    pids = ["self", *(worker.pid for worker in isohub.workers())]

    def private() -> int:
        return sum(held_bytes(pid, ["Pss_Anon"]) for pid in pids)

    def shared() -> int:
        return sum(held_bytes(pid, ["Pss_Shmem"]) for pid in pids)

    before = private(), shared()
    with peak(private) as own, peak(shared) as common:
        model = load(WIDTH)
        optimizer = optimizer_for(model)
        train(model, optimizer, WIDTH)
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    return {
        "private": own[-1] - before[0], "shared": common[-1] - before[1], "processes": len(pids),
        "needed": sum(tensor.nbytes for tensor in tensors), "samples": len(own),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], sys.argv[2] == "isolated", sys.argv[3])))
