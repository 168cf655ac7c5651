"""A repository of versions with equal weights, and what is seen of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import isohub
from isohub import api
from tests.helpers.repos import make_repo, url

__all__ = ["TENSOR_BYTES", "WEIGHTS_BYTES", "by_numpy", "by_tensor", "equal_bytes", "loader", "seen", "use", "watcher",
           "weights_memory"]  # fmt: skip

HUBCONF = """
import threading
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        # 4 times 4 MiB, no two of them alike, beside small ones.
        for number in range(4):
            values = torch.arange(1 << 20).remainder(1009 + number).reshape(1024, 1024) / 1024 - 0.5
            if number == 3:
                values += last
            setattr(self, f"w{number}", nn.Parameter(values))
        self.register_buffer("steps", torch.zeros(1 << 20))
        self.relu = nn.ReLU()
        self.bias = nn.Parameter(torch.zeros(1024))

    def forward(self, x):
        for number in range(4):
            x = torch.tanh(x @ getattr(self, f"w{number}")) + self.bias
        return x

    def count(self, place):
        self.steps[place] += 1

    def add(self, number, value):
        with torch.no_grad():
            getattr(self, f"w{number}").view(-1)[-1] += value

    def add_around_relu(self, number, value):
        self.add(number, value / 2)
        self.relu(torch.zeros(1))
        self.add(number, value / 2)

    def count_around_relu(self):
        self.count(0)
        self.relu(torch.zeros(1))
        self.count(0)
        return float(self.steps[0])

    def sums(self):
        return [float(getattr(self, f"w{number}").detach().double().sum()) for number in range(4)]

def net(last=0.0):
    return Net(last)

def busy():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return Net(0.0)
"""
TENSOR_BYTES = 4 << 20
WEIGHTS_BYTES = 5 * TENSOR_BYTES


def loader(folder: Path) -> Callable[..., Any]:
    """Make the repository, and return a function that loads the model of version `number`."""
    repo = make_repo(folder / "owner" / "repo", {f"v{n}": {"hubconf.py": f"# {n}\n{HUBCONF}"} for n in range(4)})

    def load(
        number: int, name: str = "net", /, *, isolate: isohub.Isolation | None = None, **kwargs: float
    ) -> torch.nn.Module:
        return isohub.load(url(repo, f"v{number}"), name, isolate=isolate or isohub.Isolation(), **kwargs)

    return load


def equal_bytes() -> list[int]:
    """Return how much of each worker's weights is kept once, in the order in which they were loaded."""
    return [worker.status().equal_weights_bytes for worker in isohub.workers()]


def weights_memory() -> int:
    """Return the memory that all segments take, here and in all workers."""
    total = 0
    for pid in (os.getpid(), *(worker.pid for worker in isohub.workers())):
        text = Path(f"/proc/{pid}/smaps").read_text()
        for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
            if "memfd:isohub" in mapping.partition("\n")[0]:
                total += int(re.search(r"^Pss: +(\d+) kB", mapping, re.MULTILINE)[1]) << 10
    return total


def use(model: torch.nn.Module) -> list[float]:
    """Have the worker look at all weights, and return what it sees."""
    return model.sums()


def seen(model: torch.nn.Module) -> list[float]:
    """Return what is seen here, in the same form."""
    return [float(getattr(model, f"w{number}").detach().double().sum()) for number in range(4)]


def watcher() -> int:
    """Return the process id of the watcher."""
    pid = api._registry._sharing.watcher_pid
    assert pid is not None
    return pid


def by_tensor(model: torch.nn.Module) -> None:
    """Write to its second tensor, by torch."""
    with torch.no_grad():
        model.w1[1023, 1023] += 8


def by_numpy(model: torch.nn.Module) -> None:
    """Write to its second tensor, by NumPy."""
    model.w1.detach().numpy()[512, 512] = 8
