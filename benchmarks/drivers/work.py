"""What workers are asked to do: the same functions for isohub, for its rivals and in process.

Each takes one tensor. Nearly all of the time is the border: what is computed is next to nothing.
"""

from __future__ import annotations

import functools
import os

import torch

__all__ = ["FUNCTIONS", "INPUTS", "STATE_TENSORS", "function_of", "input_of", "same"]

STATE_TENSORS = 320
STATE_NUMEL = 79_700  # 320 tensors of 319 kB: 102 MB
_MEBIBYTE_NUMEL = 1 << 18


def look(x: torch.Tensor) -> torch.Tensor:
    """Return 4 kB at most, computed from the input."""
    return x.view(-1)[:1024] * 1.0


def enlarge(x: torch.Tensor) -> torch.Tensor:
    """Return 64 MiB, computed in this call."""
    return _kept() * x.view(-1)[0]


def state(_x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return 320 tensors, 102 MB, that lie here since before."""
    return _state()


def nested(count: int, x: torch.Tensor) -> dict[str, list[tuple[torch.Tensor, int]]]:
    """Return so many small tensors, in a dict of lists of tuples."""
    small = x.view(-1)[:256]
    return {"found": [(small + number, number) for number in range(count)]}


def pid(_x: torch.Tensor) -> int:
    """Return who runs this."""
    return os.getpid()


@functools.cache
def _kept() -> torch.Tensor:
    return torch.rand(64 * _MEBIBYTE_NUMEL)


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    return {f"layer{number}.weight": torch.rand(STATE_NUMEL) for number in range(STATE_TENSORS)}


FUNCTIONS = {
    "look": look,
    "enlarge": enlarge,
    "state": state,
    "nested-1": functools.partial(nested, 1),
    "nested-10": functools.partial(nested, 10),
    "nested-100": functools.partial(nested, 100),
    "pid": pid,
}
# What is called what in the results: the function, and the shape of its input.
INPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "1 kB in": ("look", (256,)),
    "600 kB in": ("look", (1, 3, 224, 224)),
    "64 MiB in": ("look", (64, _MEBIBYTE_NUMEL)),
    "64 MiB out": ("enlarge", (256,)),
    "state dict": ("state", (256,)),
    "1 tensor out": ("nested-1", (256,)),
    "10 tensors out": ("nested-10", (256,)),
    "100 tensors out": ("nested-100", (256,)),
    "who": ("pid", (1,)),
}


def function_of(case: str):
    return FUNCTIONS[INPUTS[case][0]]


def same(result: object, expected: object) -> bool:
    """Return whether a rival gave what it was asked for: lists for tuples will do, and other random weights."""
    if isinstance(expected, torch.Tensor):
        return isinstance(result, torch.Tensor) and result.shape == expected.shape and result.dtype == expected.dtype
    if isinstance(expected, dict):
        return isinstance(result, dict) and all(same(result.get(name), each) for name, each in expected.items())
    if isinstance(expected, list | tuple):
        return len(result) == len(expected) and all(map(same, result, expected))
    return type(result) is type(expected)


def input_of(case: str) -> torch.Tensor:
    return torch.rand(INPUTS[case][1])
