"""A repository whose models can and cannot be turned into artifacts, and where memory lies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["HUBCONF", "anonymous_bytes", "in_segment"]

HUBCONF = """
    import torch
    from torch import nn


    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4) / 10)
            self.register_buffer("shift", torch.ones(3))
            self.register_buffer("hidden", torch.full((3,), 2.0), persistent=False)

        def forward(self, x):
            return x @ self.weight.t() + self.shift + self.hidden


    class Net(nn.Module):
        '''Tied parameters, a shared sub-module, a frozen parameter, a plain attribute that looks into another.'''

        def __init__(self, scale=1.0):
            super().__init__()
            self.first = Block()
            self.second = self.first
            self.tied = self.first.weight
            self.frozen = nn.Parameter(torch.full((3,), float(scale)), requires_grad=False)
            self.norm = nn.BatchNorm1d(3)
            self.view = self.first.weight.detach()[0]

        def forward(self, x):
            y = self.first(x) + self.second(x) * self.tied.sum() + self.frozen
            return self.norm(y) + self.view[1]

        def fill(self, name, value):
            with torch.no_grad():
                dict([*self.named_parameters(), *self.named_buffers()])[name].fill_(value)


    made = []


    def net(*args, **kwargs):
        '''The same module each time.'''
        if not made:
            made.append(Net(*args[:1]).eval())
        return made[0]


    class Branches(nn.Module):
        '''No script, but a trace: the compiler cannot take **kwargs.'''

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, y=None, **kwargs):
            out = self.linear(x)
            return out if y is None else out * y


    def branches():
        torch.manual_seed(0)
        return Branches().eval()


    class Unfit(nn.Module):
        def forward(self, x):
            return x[: 3].reshape(3, -1) if float(x.sum()) > 0 else open(str(x))


    def unfit():
        return Unfit()


    def loaded(path):
        return torch.jit.load(path)


    def pair():
        return nn.Linear(1, 1), "and more"


    class Big(nn.Module):
        def __init__(self, mib):
            super().__init__()
            self.table = nn.Parameter(torch.full((mib, 1 << 18), 2.0))

        def forward(self, x):
            return x + self.table.mean()


    def large(mib):
        return Big(mib)
"""


def in_segment(tensor: torch.Tensor) -> bool:
    """Return whether a tensor lies in a segment of isohub's that this process has mapped."""
    return any(low <= tensor.data_ptr() < high for low, high in _segments())


def anonymous_bytes() -> int:
    """Return how much memory this process has of its own.

    Not `Private_*` of smaps: shared memory counts there as soon as the other process has let go of it.
    """
    return int(re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024


def _segments() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:isohub" in line:
            low, high = line.split(" ", 1)[0].split("-")
            yield int(low, 16), int(high, 16)
