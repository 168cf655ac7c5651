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


    class Odd(nn.Module):
        '''Tensors of several dtypes and layouts: views of each other, expanded, empty, without dimensions.'''

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.conv.weight = nn.Parameter(self.conv.weight.to(memory_format=torch.channels_last))
            self.halves = nn.Parameter(torch.randn(4).to(torch.bfloat16))
            self.doubles = nn.Parameter(torch.randn(4, dtype=torch.float64))
            base = torch.arange(24.0).reshape(4, 6)
            for name, value in {
                "numbers": torch.arange(4), "flags": torch.ones(4, dtype=torch.bool), "one": torch.ones(1),
                "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "spread": torch.ones(2, 1).expand(2, 4),
                "waves": torch.randn(4, dtype=torch.complex64), "base": base, "column": base[:, 1], "flipped": base.t(),
            }.items():
                self.register_buffer(name, value)
            self.plain = torch.randn(4)

        def forward(self, x):
            y = self.conv(x).mean((2, 3)) * self.halves + self.doubles + self.numbers + self.flags * self.one
            y = y + self.scalar + self.empty.sum() + self.spread[0] + self.waves.real + self.plain
            return y + self.base.sum() + self.column.sum() + self.flipped.mean()


    odd_one = []


    def odd():
        if not odd_one:
            odd_one.append(Odd().eval())
        return odd_one[0]


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
